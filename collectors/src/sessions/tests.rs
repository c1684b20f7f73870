#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

use super::*;
use std::sync::Arc;

fn context(root: &Path) -> CollectorContext {
    CollectorContext::new(root, Arc::new(|| 1))
}

fn poll(sessions: &mut Sessions, root: &Path) -> Vec<(Change, String)> {
    let bodies = sessions.poll(&context(root)).expect("reads");
    bodies
        .into_iter()
        .map(|body| if let Body::Session(session) = body { (session.change, session.user) } else { panic!("{body:?}") })
        .collect()
}

const FILE: &str = "# This is private data. Do not parse.\nUID=1000\nUSER=alice\nACTIVE=1\nSTATE=active\nREMOTE=1\n\
    TYPE=tty\nCLASS=user\nSCOPE=session-3.scope\nTTY=pts/0\nREMOTE_HOST=192.0.2.7\nSERVICE=sshd\nLEADER=4242\n\
    REALTIME=1795404079123456\nMONOTONIC=1\n";

#[test]
fn a_session_of_logind_is_read_as_it_stands() {
    let session = logind("3", FILE).expect("a session");
    assert_eq!(
        (session.user.as_str(), session.user_id, session.terminal.as_deref()),
        ("alice", Some(1000), Some("pts/0"))
    );
    assert_eq!((session.remote_host.as_deref(), session.service.as_deref()), (Some("192.0.2.7"), Some("sshd")));
    assert_eq!((session.since, session.leader), (Some(1_795_404_079_123_456_000), Some(4242)));
    assert_eq!(logind("4", &FILE.replace("CLASS=user", "CLASS=manager")), None);
    assert_eq!(logind("5", ""), None);
}

#[test]
fn log_ins_and_log_outs_between_two_looks_are_told_once() {
    let dir = tempfile::tempdir().expect("temp dir");
    let run = dir.path().join("run/systemd/sessions");
    std::fs::create_dir_all(&run).expect("makes");
    std::fs::write(run.join("3"), FILE).expect("writes");
    let mut sessions = Sessions::default();
    assert_eq!(poll(&mut sessions, dir.path()), [(Change::Snapshot, "alice".to_owned())]);
    assert_eq!(poll(&mut sessions, dir.path()), []);
    std::fs::write(run.join("4"), FILE.replace("alice", "bob")).expect("writes");
    std::fs::remove_file(run.join("3")).expect("removes");
    let mut seen = poll(&mut sessions, dir.path());
    seen.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(seen, [(Change::End, "alice".to_owned()), (Change::Start, "bob".to_owned())]);
    assert_eq!(poll(&mut sessions, dir.path()), []);
}

#[test]
fn utmp_is_read_where_there_is_no_logind_and_a_torn_record_is_left_out() {
    let mut record = vec![0_u8; 384];
    record[0] = 7;
    record[4..8].copy_from_slice(&77_u32.to_le_bytes());
    record[8..13].copy_from_slice(b"pts/1");
    record[44..47].copy_from_slice(b"eve");
    record[76..85].copy_from_slice(b"192.0.2.9");
    record[340..344].copy_from_slice(&1_700_000_000_u32.to_le_bytes());
    let mut bytes = record.clone();
    record[0] = 8;
    bytes.extend_from_slice(&record);
    bytes.extend_from_slice(&record[..100]);
    if cfg!(target_arch = "x86_64") {
        let dir = tempfile::tempdir().expect("temp dir");
        std::fs::create_dir_all(dir.path().join("run")).expect("makes");
        std::fs::write(dir.path().join("run/utmp"), &bytes).expect("writes");
        let read = read(&context(dir.path())).expect("reads");
        let session = read.values().next().expect("one");
        assert_eq!((read.len(), session.user.as_str(), session.remote_host.as_deref()), (1, "eve", Some("192.0.2.9")));
        assert_eq!(session.since, Some(1_700_000_000_000_000_000));
    }
}

#[test]
fn a_host_without_either_says_so() {
    let dir = tempfile::tempdir().expect("temp dir");
    let Ok(Plan::Absent(why)) = Definition::build(&Settings::default(), &context(dir.path())) else {
        panic!("not absent")
    };
    assert!(why.contains("utmp"), "{why}");
}

#[test]
fn decorations_of_the_host_field_are_no_host() {
    for case in include_str!("utmp-hosts.jsonl").lines() {
        let case: serde_json::Value = serde_json::from_str(case).expect("a case");
        let (display, host) = utmp::display_and_host(case["host"].as_str().expect("text"));
        assert_eq!(case["remote_host"].as_str(), host.as_deref(), "{case}");
        assert_eq!(case["is_remote"], host.is_some(), "{case}");
        if let Some(expected) = case.get("display") {
            assert_eq!(expected.as_str(), display.as_deref(), "{case}");
        }
    }
    let parts = |display: Option<&str>, host: Option<&str>| (display.map(str::to_owned), host.map(str::to_owned));
    for (field, expected) in [
        ("db1.example.net", parts(None, Some("db1.example.net"))),
        ("db1:0.0", parts(Some(":0.0"), Some("db1"))),
        ("2001:db8::1", parts(None, Some("2001:db8::1"))),
        ("fe80::1%eth0:S.2", parts(None, Some("fe80::1%eth0"))),
        ("two words", parts(None, None)),
        ("", parts(None, None)),
    ] {
        assert_eq!(utmp::display_and_host(field), expected, "{field}");
    }
}

#[test]
fn sessions_in_which_nobody_logged_in_are_no_log_ins() {
    let class = |class: &str| {
        let session = logind("3", &FILE.replace("CLASS=user", &format!("CLASS={class}"))).expect("a session");
        Body::from(Session { change: Change::Start, ..session }).class()
    };
    for greeter in ["greeter", "lock-screen", "background", "background-light"] {
        assert_eq!(class(greeter), vedette_wire::ocsf::OcsfClass::LiveEvidenceInfo, "{greeter}");
    }
    for user in ["user", "user-early"] {
        assert_eq!(class(user), vedette_wire::ocsf::OcsfClass::Authentication, "{user}");
    }
}
