//! Generated pages are what the types say now.

use crate::support::VEDETTE;
use std::{path::Path, process::Command};

fn check(page: &str, path: &str) {
    let output = Command::new(VEDETTE).args(["reference", page]).output().expect("runs");
    assert!(output.status.success());
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    let fresh = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(written == fresh, "{path} is stale: vedette reference {page} > {path}");
}

#[test]
fn generated_pages_are_up_to_date() {
    check("configuration", "docs/configuration.md");
    check("collectors", "docs/collectors.md");
    check("default", "packaging/vedette.toml");
}

#[test]
fn the_packaged_default_file_is_a_valid_configuration() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/vedette.toml");
    let output = Command::new(VEDETTE).args(["check", "--config"]).arg(file).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn once_prints_one_object_a_line_and_needs_nothing() {
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
