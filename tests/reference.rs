//! Generated pages match the types.

use crate::support::{VEDETTE, root};
use std::process::Command;

fn check(page: &str, path: &str) {
    let output = Command::new(VEDETTE).args(["reference", page]).output().expect("runs");
    assert!(output.status.success());
    let file = root().join(path);
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    let generated = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(committed == generated, "{path} is stale: vedette reference {page} > {path}");
}

#[test]
fn generated_pages_are_up_to_date() {
    check("configuration", "docs/configuration.md");
    check("collectors", "docs/collectors.md");
    check("default", "packaging/vedette.toml");
}

#[test]
fn the_packaged_default_file_is_a_valid_configuration() {
    let file = root().join("packaging/vedette.toml");
    let output = Command::new(VEDETTE).args(["check", "--config"]).arg(file).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn completions_and_man_pages_are_complete() {
    let run = |arguments: &[&str]| {
        let output = Command::new(VEDETTE).args(arguments).output().expect("runs");
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]);
        assert!(["enroll", "once", "status"].iter().all(|word| script.contains(word)), "{shell}");
    }
    for program in [VEDETTE.as_ref(), crate::support::workspace_binary()] {
        let dir = tempfile::tempdir().expect("temp dir");
        let status = Command::new(program).args(["man", "--dir"]).arg(dir.path()).status();
        assert!(status.is_ok_and(|status| status.success()));
        let pages: std::collections::BTreeSet<String> = std::fs::read_dir(dir.path())
            .expect("lists")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        assert!(pages.len() > 10, "{pages:?}");
        for page in &pages {
            let text = std::fs::read_to_string(dir.path().join(page)).expect("reads").replace("\\-", "-");
            let named = text.split_whitespace().filter_map(|word| word.strip_suffix("(1)"));
            for named in named {
                assert!(pages.contains(&format!("{named}.1")), "{page} refers to {named}, which was not generated");
            }
        }
    }
    let version: serde_json::Value = serde_json::from_str(&run(&["version", "--json"])).expect("one object");
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}

/// The inventory of this machine, against the official schema.
#[test]
fn once_gives_valid_ocsf_on_this_machine() {
    let schema =
        std::fs::read_to_string(root().join("wire/tests/ocsf/ocsf-1.8.0.json")).expect("the vendored schema is there");
    let schema: serde_json::Value = serde_json::from_str(&schema).expect("it is JSON");
    let mut validators = std::collections::BTreeMap::new();
    for class in schema["classes"].as_object().expect("classes by name").values() {
        let mut class = class.clone();
        class["$defs"] = schema["$defs"].clone();
        let uid = class["properties"]["class_uid"]["const"].as_u64().expect("a number");
        validators.insert(uid, jsonschema::validator_for(&class).expect("compiles"));
    }
    let output = Command::new(VEDETTE).args(["once", "--format", "ocsf"]).output().expect("runs");
    let mut checked = std::collections::BTreeSet::new();
    for line in String::from_utf8(output.stdout).expect("UTF-8").lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect("one object a line");
        let uid = event["class_uid"].as_u64().expect("a number");
        let errors: Vec<String> = validators[&uid].iter_errors(&event).map(|err| err.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}: {line}");
        checked.insert(uid);
    }
    assert!(checked.contains(&5001) && checked.contains(&5040), "{checked:?}");
}

#[test]
fn once_prints_one_object_per_line_without_configuration_or_enrollment() {
    for format in ["ocsf", "json"] {
        let output = Command::new(VEDETTE)
            .args(["once", "--collector", "host", "--collector", "processes", "--format", format])
            .output()
            .expect("runs");
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(text.lines().count() > 1);
        for line in text.lines() {
            let object: serde_json::Value = serde_json::from_str(line).expect("one object a line");
            assert!(object.is_object());
        }
    }
}
