//! Damaged disks of a workspace: no wrong answers; `doctor` names the damage and rebuilds tables.

use crate::support::{ORG, World, eventually, refusal};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Files below a directory with a suffix, except checksums.
fn files(dir: &Path, end: &str) -> Vec<PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).into_iter().flatten().map(|entry| entry.expect("an entry").path()) {
            let name = path.file_name().expect("has a name").to_string_lossy().into_owned();
            if path.is_dir() {
                dirs.push(path);
            } else if name.ends_with(end) && !name.starts_with('.') {
                found.push(path);
            }
        }
    }
    found
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("reads");
    let at = bytes.len() / 3;
    bytes[at] ^= 8;
    fs::write(path, bytes).expect("writes");
}

fn doctor(world: &World, more: &[&str]) -> (bool, String) {
    let output = world.workspace_output(&[&["doctor"], more].concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn a_damaged_table_is_an_error_until_it_is_made_anew_from_what_landed() {
    let mut world = World::new();
    world.enroll();
    let mut agent = world.run();
    world.append("a.log", &(0..500).map(|number| format!("line {number}\n")).collect::<String>());
    eventually("the lines", || (world.count("syslog") == 500).then_some(()));
    agent.terminate();
    let tables = world.path("workspace/tables");
    let of_syslog = || {
        let of_table = |path: &PathBuf| path.components().any(|part| part.as_os_str() == "base_event");
        files(&tables, ".parquet").into_iter().find(of_table)
    };
    let parquet = eventually("the table", of_syslog);
    eventually("everything to be in it", || doctor(&world, &[]).0.then_some(()));
    let address = world.address();
    world.serve.take().expect("serves").terminate();

    flip(&parquet);
    let ask = |world: &World| {
        world.workspace_output(&[
            "query",
            "--org",
            ORG,
            "SELECT count(*), min(message), max(message), min(raw) FROM syslog",
        ])
    };
    let message = refusal(&ask(&world), 1);
    assert!(message.contains("doctor --rebuild") && message.contains("is damaged"), "{message}");
    let (well, message) = doctor(&world, &[]);
    assert!(
        !well && message.contains(&parquet.file_name().expect("has one").to_string_lossy().into_owned()),
        "{message}"
    );

    // Not from damaged landed batches.
    let landed = files(&world.path("workspace/landing"), "").into_iter().next().expect("landed");
    let whole = fs::read(&landed).expect("reads");
    flip(&landed);
    let (well, message) = doctor(&world, &["--rebuild"]);
    assert!(!well && message.contains("from a backup"), "{message}");
    fs::remove_file(&landed).expect("removes");
    let (well, message) = doctor(&world, &[]);
    assert!(!well && message.contains("missing"), "{message}");
    fs::write(&landed, whole).expect("writes");

    let (well, message) = doctor(&world, &["--rebuild"]);
    assert!(well && message.contains("rebuilds the tables"), "{message}");
    world.serve(&address);
    assert!(refusal(&world.workspace_output(&["doctor", "--rebuild"]), 1).contains("served by another process"));
    eventually("the lines again", || (world.count("syslog") == 500).then_some(()));
    eventually("the table again", of_syslog);
    eventually("it to be whole", || doctor(&world, &[]).0.then_some(()));
    assert_eq!(world.count("syslog"), 500);
}

#[test]
fn a_damaged_control_store_is_not_served() {
    let mut world = World::new();
    world.enroll();
    world.serve.take().expect("serves").terminate();
    let store = world.path("workspace/control.sqlite");
    let mut bytes = fs::read(&store).expect("reads");
    // Pages of tables and indexes after the first page.
    let pages = bytes.len() / 4096;
    assert!(pages > 10, "what was written is in the file itself after a stop, not in its log: {pages} pages");
    for page in 2..pages {
        bytes[page * 4096 + 100..page * 4096 + 1000].fill(0xa5);
    }
    fs::write(&store, bytes).expect("writes");
    let output = world.workspace_output(&["serve", "--listen", "127.0.0.1:0"]);
    let message = refusal(&output, 1);
    assert!(message.contains("control"), "{message}");
    assert!(!doctor(&world, &[]).0);
}

/// A backup of control store and landing store with newer tables: batches that are sent again would be in them twice.
#[test]
fn tables_of_a_later_time_than_the_control_store_are_not_served() {
    let mut world = World::new();
    world.enroll();
    let agent = world.run();
    world.append("a.log", "one\n");
    eventually("the first line", || (world.count("syslog") == 1).then_some(()));
    let address = world.address();
    world.serve.take().expect("serves").terminate();
    for name in ["control.sqlite", "landing"] {
        let done = std::process::Command::new("cp")
            .arg("-a")
            .arg(world.path("workspace").join(name))
            .arg(world.dir.path())
            .status();
        assert!(done.is_ok_and(|status| status.success()));
    }
    world.serve(&address);
    world.append("a.log", "two\n");
    let in_tables = || {
        let found = files(&world.path("workspace/tables"), ".parquet");
        found.iter().any(|path| path.to_string_lossy().contains("base_event")).then_some(())
    };
    eventually("the tables", in_tables);
    eventually("everything to be in them", || doctor(&world, &[]).0.then_some(()));
    world.serve.take().expect("serves").terminate();
    for name in ["control.sqlite", "landing"] {
        let existing = world.path("workspace").join(name);
        drop(fs::remove_dir_all(&existing));
        drop(fs::remove_file(&existing));
        fs::rename(world.path(name), existing).expect("is put back");
    }
    let message = refusal(&world.workspace_output(&["serve", "--listen", "127.0.0.1:0"]), 1);
    assert!(message.contains("of another backup") && message.contains("doctor --rebuild"), "{message}");
    let (well, message) = doctor(&world, &["--rebuild"]);
    assert!(well && message.contains("rebuilds the tables"), "{message}");
    world.serve(&address);
    world.append("a.log", "three\n");
    eventually("every line", || (world.count("syslog") == 3).then_some(()));
    let rows = world.query("SELECT DISTINCT message FROM syslog");
    assert_eq!(rows.len(), 3, "none twice");
    drop(agent);
}

/// The disk of the landing store is unmounted for a while.
#[test]
fn landed_batches_that_are_away_for_a_while_are_in_the_tables_when_they_are_back() {
    let mut world = World::new();
    world.enroll();
    let mut agent = world.run();
    world.append("a.log", "one\n");
    eventually("the first line", || (world.count("syslog") == 1).then_some(()));
    agent.terminate();
    let address = world.address();
    world.serve.take().expect("serves").kill();
    let (landing, away) = (world.path("workspace/landing"), world.path("away"));
    fs::rename(&landing, &away).expect("is taken away");
    let message = refusal(&world.workspace_output(&["serve", "--listen", "127.0.0.1:0"]), 1);
    assert!(message.contains("is its disk mounted?"), "{message}");
    fs::create_dir(&landing).expect("makes");
    world.serve(&address);
    let message = || fs::read_to_string(world.path("workspace.log")).expect("reads");
    eventually("it to be said", || message().contains("is missing; trying again").then_some(()));
    fs::remove_dir(&landing).expect("is empty");
    fs::rename(&away, &landing).expect("is back");
    let tables = world.path("workspace/tables");
    eventually("the tables", || (!files(&tables, ".parquet").is_empty()).then_some(()));
    assert_eq!(world.count("syslog"), 1);
    let (well, message) = doctor(&world, &[]);
    assert!(well, "{message}");
}
