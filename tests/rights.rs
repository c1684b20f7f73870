//! An agent without privileges: it says what it cannot see, and sees the rest.

use crate::support::{World, eventually};
use std::{
    io::Write,
    process::{Command, Stdio},
};

#[test]
fn without_ptrace_it_says_so_once_and_still_notices_an_exec_under_the_same_pid() {
    if rustix::process::getuid().as_raw() != 0 {
        println!("skipped: a process of another user takes root");
        return;
    }
    let world = World::new();
    world.write_config("\n[collectors.processes]\nevery = \"1s\"\n");
    world.enroll();
    let mut child = Command::new("/bin/sh")
        .args(["-c", "read line; exec /bin/sh -c 'read line; :'"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("sh runs");
    let _agent = world.run_unprivileged();
    let found = format!("processes WHERE pid = {}", child.id());
    eventually("the snapshot", || (world.count(&found) == 1).then_some(()));
    let rows = world.query(&format!("SELECT path, \"user\", cmd_line FROM {found}"));
    assert_eq!((rows[0]["path"].as_str(), rows[0]["user"].as_str()), (None, Some("root")), "{rows:?}");
    let why = eventually("the complaint", || world.last_error("processes"));
    assert!(why.contains("CAP_SYS_PTRACE"), "{why}");
    child.stdin.as_mut().expect("piped").write_all(b"\n").expect("it reads");
    eventually("the exec", || {
        let rows = world.query(&format!("SELECT cmd_line FROM {found} AND change = 'change'"));
        assert!(rows.len() < 2, "{rows:?}");
        (rows.first()?["cmd_line"] == "/bin/sh -c read line; :").then_some(())
    });
    assert_eq!(world.count("lifecycle WHERE event = 'collector_error' AND about = 'processes'"), 1);
    child.kill().expect("can be killed");
    child.wait().expect("can be waited for");
}
