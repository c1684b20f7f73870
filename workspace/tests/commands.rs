//! Runs commands of `vedette-workspace` on a directory.

use std::{
    path::Path,
    process::{Command, Output},
};

fn run(arguments: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vedette-workspace"))
        .args(arguments)
        .arg("--dir")
        .arg(dir)
        .output()
        .expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn refusal(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn init_creates_a_workspace_once_and_its_keys_are_private() {
    let temp = tempfile::tempdir().expect("temp dir");
    let dir = temp.path().join("ws");
    stdout(&run(&["init", "--geo", "europe"], &dir));
    let message = refusal(&run(&["init", "--geo", "europe"], &dir));
    assert!(message.contains("already"), "{message}");
    for name in ["ca.key", "server.key"] {
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(dir.join(name)).expect("is there"));
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert!(dir.join("ca.pem").exists());
}

#[test]
fn token_new_prints_only_the_token_to_stdout() {
    let temp = tempfile::tempdir().expect("temp dir");
    let dir = temp.path().join("ws");
    stdout(&run(&["init", "--geo", "australia"], &dir));
    stdout(&run(&["org", "add", "acme", "--tier", "standard"], &dir));
    let token = stdout(&run(&["token", "new", "--org", "acme"], &dir));
    assert_eq!(token.len(), 4 + 64 + 1, "{token}");
    let bytes = std::fs::read(dir.join("control.sqlite")).expect("is there");
    let secret = token.trim().as_bytes();
    assert!(!bytes.windows(secret.len()).any(|part| part == secret), "only a digest is kept");
}

#[test]
fn errors_state_the_problem_and_the_remedy() {
    let temp = tempfile::tempdir().expect("temp dir");
    let dir = temp.path().join("ws");
    let none = refusal(&run(&["org", "add", "acme", "--tier", "free"], &dir));
    assert!(none.contains("vedette-workspace init"), "{none}");
    let geo = refusal(&run(&["init", "--geo", "mars"], &dir));
    assert!(geo.contains("asia-pacific"), "{geo}");
    for name in ["n\u{e9}", "a b", "", "a..b", "*"] {
        let message = refusal(&run(&["init", "--geo", "europe", "--name", name], &dir));
        assert!(message.contains("is not a DNS name"), "{name}: {message}");
    }
    stdout(&run(&["init", "--geo", "europe"], &dir));
    let org = refusal(&run(&["token", "new", "--org", "nobody"], &dir));
    assert!(org.contains("org add nobody"), "{org}");
    stdout(&run(&["org", "add", "acme", "--tier", "free"], &dir));
    for hours in ["0", "4294967295"] {
        let hours = refusal(&run(&["token", "new", "--org", "acme", "--hours", hours], &dir));
        assert!(hours.contains("1..=87600"), "{hours}");
    }
    for (sql, word) in [
        ("SELEC 1", "SELEC"),
        ("SELECT * FROM nowhere", "nowhere"),
        ("DROP VIEW syslog", "DDL"),
        ("COPY syslog TO '/tmp/x.csv'", "DML"),
    ] {
        let message = refusal(&run(&["query", "--org", "acme", sql], &dir));
        assert!(message.contains(word), "{sql}: {message}");
    }
}

#[test]
fn an_empty_workspace_answers_with_no_rows() {
    let temp = tempfile::tempdir().expect("temp dir");
    let dir = temp.path().join("ws");
    stdout(&run(&["init", "--geo", "europe"], &dir));
    stdout(&run(&["org", "add", "acme", "--tier", "free"], &dir));
    assert_eq!(stdout(&run(&["query", "--org", "acme", "SELECT * FROM syslog", "--format", "json"], &dir)), "");
    let count =
        stdout(&run(&["query", "--org", "acme", "SELECT count(*) AS n FROM processes", "--format", "json"], &dir));
    assert_eq!(count, "{\"n\":0}\n");
    assert_eq!(stdout(&run(&["agents", "--org", "acme", "--format", "json"], &dir)), "");
}

/// The page is generated; a difference means that it must be generated again.
#[test]
fn the_reference_of_the_tables_is_up_to_date() {
    let output = Command::new(env!("CARGO_BIN_EXE_vedette-workspace")).arg("tables-reference").output().expect("runs");
    // Cargo runs tests in the package's directory; a path from compile time may be of another clone.
    let written = std::fs::read_to_string("../docs/tables.md").expect("docs/tables.md is there");
    assert!(written == stdout(&output), "docs/tables.md is stale: vedette-workspace tables-reference > docs/tables.md");
}
