//! The house rules as tests: the architecture's arrows, module docs, file length, nothing unfinished.

use crate::support::root;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
};

/// Maximum number of lines in a file.
const LINES_MAX: usize = 500;

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs: Vec<PathBuf> = [
        "fuzz/fuzz_targets",
        "platform",
        "wire",
        "journal",
        "collectors",
        "transport",
        "agent",
        "workspace",
        "lake",
        "benches",
        "packaging",
        "tests",
    ]
    .map(|dir| root().join(dir))
    .into();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("lists").filter_map(Result::ok) {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 50, "the sources are found");
    found
}

/// Dependencies among this project's packages, including dev-dependencies, except the tests' use of benches.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let mut out = BTreeMap::new();
    for package in metadata["packages"].as_array().expect("a list") {
        let of_tests = |value: &&Value| value["kind"] == "dev" && value["name"] == "vedette-benches";
        let dependencies = package["dependencies"].as_array().expect("a list").iter();
        let dependencies = dependencies.filter(|value| !of_tests(value)).map(name);
        out.insert(name(package), dependencies.collect());
    }
    out
}

#[test]
fn the_arrows_of_the_architecture_hold() {
    let arrows = arrows();
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("vedette-benches", &["vedette-journal", "vedette-wire", "vedette-transport"][..]),
        ("vedette-platform", &[][..]),
        ("vedette-wire", &[][..]),
        ("vedette-journal", &[][..]),
        ("vedette-packaging", &[][..]),
        ("vedette-collectors", &["vedette-journal", "vedette-wire"][..]),
        ("vedette-transport", &["vedette-platform", "vedette-wire"][..]),
        ("vedette-lake", &["vedette-wire"][..]),
        ("vedette-workspace", &["vedette-wire", "vedette-lake"][..]),
        ("vedette-agent", &["vedette-platform", "vedette-wire", "vedette-collectors", "vedette-transport"][..]),
    ]);
    assert_eq!(arrows.keys().map(String::as_str).collect::<Vec<_>>(), allowed.keys().copied().collect::<Vec<_>>());
    for (package, dependencies) in &arrows {
        let ours = dependencies.iter().filter(|name| name.starts_with("vedette-"));
        for dependency in ours {
            assert!(allowed[package.as_str()].contains(&dependency.as_str()), "{package} -> {dependency}");
        }
    }
    // Collectors have no network, wire has neither I/O nor async, and only lake knows its engines.
    let forbidden: [(&str, &[&str]); 7] = [
        ("vedette-platform", &["reqwest", "rustls", "redb", "sysinfo"]),
        ("vedette-journal", &["tokio", "tracing", "rustix", "libc"]),
        ("vedette-wire", &["tokio", "reqwest", "tracing", "redb"]),
        ("vedette-collectors", &["reqwest", "rustls", "tokio", "redb", "hyper"]),
        ("vedette-transport", &["sysinfo", "notify"]),
        ("vedette-agent", &["redb", "datafusion", "deltalake-core", "object_store", "sqlx"]),
        ("vedette-workspace", &["datafusion", "deltalake-core"]),
    ];
    for (package, names) in forbidden {
        for name in names {
            assert!(!arrows[package].contains(*name), "{package} -> {name}");
        }
    }
}

#[test]
fn wire_has_no_clock_and_no_files() {
    for path in sources().into_iter().filter(|path| path.starts_with(root().join("wire/src"))) {
        let text = fs::read_to_string(&path).expect("reads");
        for word in ["SystemTime", "Instant::now", "std::fs", "std::net", "std::env", "std::thread", "now_v7()"] {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}

#[test]
fn transport_never_sees_a_body() {
    for path in sources().into_iter().filter(|path| path.starts_with(root().join("transport/src"))) {
        if path.to_string_lossy().contains("tests") {
            continue;
        }
        // An example in a doc comment shows what a collector does.
        let text = fs::read_to_string(&path).expect("reads");
        let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let text = code.join("\n");
        for word in ["wire::body", "codec::decode("] {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
        let mut names = text.split(|letter: char| !letter.is_alphanumeric());
        assert!(names.all(|name| name != "Body"), "{}", path.display());
    }
}

#[test]
fn crash_points_exist_in_tests_alone() {
    let manifest = |name: &str| fs::read_to_string(root().join(name).join("Cargo.toml")).expect("reads");
    // Off by default, and enabled below `dev-dependencies` only, which no release build uses.
    assert!(manifest("transport").contains("failpoints = []") && !manifest("transport").contains("default = "));
    for package in ["agent", "workspace", "collectors", "benches", "lake"] {
        let text = manifest(package);
        let (release, _) = text.split_once("[dev-dependencies]").unwrap_or((&text, ""));
        assert!(!release.contains("failpoints"), "{package}");
    }
}

#[test]
fn every_file_says_what_it_is_for_and_fits() {
    for path in sources() {
        let text = fs::read_to_string(&path).expect("reads");
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{}: {lines} lines are more than {LINES_MAX}", path.display());
        let is_tests = path.file_name().is_some_and(|name| name == "tests.rs");
        assert!(is_tests || text.starts_with("//!"), "{} has no module doc", path.display());
    }
}

#[test]
fn nothing_is_left_unfinished() {
    let words = ["todo", "unimplemented", "#[ignore", "FIXME"].map(|word| match word {
        "todo" | "unimplemented" => format!("{word}!("),
        other => other.to_owned(),
    });
    for path in sources().into_iter().filter(|path| !path.ends_with("tests/tidy.rs")) {
        let text = fs::read_to_string(&path).expect("reads");
        for word in &words {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}

/// The fuzz targets are a workspace of their own, whose lock file must not fall behind.
#[test]
fn fuzz_targets_use_the_crates_of_the_programs() {
    let versions = |path: &str| -> BTreeSet<(String, String)> {
        let text = fs::read_to_string(root().join(path)).expect("reads");
        let lock: toml::Table = text.parse().expect("a lock file is TOML");
        let packages =
            lock["package"].as_array().expect("a list").iter().filter(|package| package.get("source").is_some());
        let field = |package: &toml::Value, name: &str| package[name].as_str().expect("text").to_owned();
        packages.map(|package| (field(package, "name"), field(package, "version"))).collect()
    };
    let (ours, fuzz) = (versions("Cargo.lock"), versions("fuzz/Cargo.lock"));
    let own = ["libfuzzer-sys", "arbitrary"];
    let others: Vec<_> = fuzz.difference(&ours).filter(|(name, _)| !own.contains(&name.as_str())).collect();
    assert!(
        others.is_empty(),
        "cp Cargo.lock fuzz/Cargo.lock, then cargo metadata --manifest-path fuzz/Cargo.toml: {others:?}"
    );
}
