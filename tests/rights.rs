//! An agent without privileges reports what it cannot see, and sees the rest.

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

#[test]
fn nobody_reads_an_agents_memory_or_what_an_earlier_release_left_readable() {
    if rustix::process::getuid().as_raw() != 0 {
        println!("skipped: a process of another user takes root");
        return;
    }
    let mut world = World::new();
    world.enroll();
    let key = world.path("identity/key.pem");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("sets");
    let agent = world.run_unprivileged();
    let mode = || std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&key).expect("is there")) & 0o777;
    eventually("the key to be the agent's alone", || (mode() == 0o600).then_some(()));
    eventually("an answer", || world.vedette(&["status"]).status.success().then_some(()));
    // Files of a process that is not dumpable belong to root in /proc (proc_pid(5)).
    let owner = |id: u32| {
        let meta = std::fs::metadata(format!("/proc/{id}/environ")).expect("it runs");
        std::os::unix::fs::MetadataExt::uid(&meta)
    };
    assert_eq!(owner(agent.id()), 0);
    // The workspace, run by another user.
    let address = world.address();
    world.serve.take().expect("serves").terminate();
    let done = Command::new("chown").args(["-R", "65534:65534"]).arg(world.dir.path()).status();
    assert!(done.is_ok_and(|status| status.success()));
    let binary = world.path("vedette-workspace");
    std::fs::copy(crate::support::workspace_binary(), &binary).expect("copies");
    std::fs::remove_file(world.path("address")).expect("removes");
    let mut command = Command::new(binary);
    command.args(["serve", "--listen", &address, "--dir"]).arg(world.path("workspace"));
    command.arg("--address-file").arg(world.path("address"));
    std::os::unix::process::CommandExt::uid(&mut command, 65_534);
    std::os::unix::process::CommandExt::gid(&mut command, 65_534);
    let serving = crate::support::Process::start(&mut command, &world.path("other.log"));
    eventually("it to serve", || std::fs::read_to_string(world.path("address")).ok());
    assert_eq!(owner(serving.id()), 0);
}
