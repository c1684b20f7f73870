//! Bad input, end to end: each gives a message with a remedy.

use crate::support::{World, eventually, refusal};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

#[test]
fn typos_in_the_configuration_are_named_with_file_line_and_the_nearest_right_word() {
    let world = World::new();
    let config = world.path("vedette.toml");
    for (text, line, expected) in [
        ("[trasport]\n", 1, "did you mean `transport`?"),
        ("\n[transport]\ncompresion = \"zstd\"\n", 3, "did you mean `compression`?"),
        ("[transport]\n\nbatch_bytes_max = \"1MB\"\n", 3, "\"64MiB\""),
        ("[transport]\nbatch_bytes_max = \"1TiB\"\n", 2, "64KiB to 8MiB"),
        ("[collectors.sylog]\n", 1, "did you mean `syslog`?"),
        ("[collectors.syslog]\npats = []\n", 2, "did you mean `paths`?"),
        ("[collectors.syslog]\nenabled = \"yes\"\n", 2, "boolean"),
        ("[collectors.syslog]\nstart = \"middle\"\n", 2, "`end`"),
        ("[collectors.syslog]\npaths = [\"log/*.log\"]\n", 2, "must be absolute"),
        ("[collectors.processes]\nevery = \"often\"\n", 2, "\"60s\""),
        ("[collectors.processes]\nevery = \"0s\"\n", 2, "at least 1s"),
        ("[collectors.processes]\nsnapshot_every = \"1ms\"\n", 2, "at least 1s"),
        ("[workspace]\nurl = \"http://workspace\"\n", 2, "https://"),
        ("[workspace]\ngeo = \"mars\"\n", 2, "asia-pacific"),
        ("[limits]\nmemory_max = \"1MiB\"\n", 2, "at least 32MiB"),
        ("[transport]\nbatch_bytes_max = \"8MiB\"\nqueue_bytes_max = \"64MiB\"\n", 3, "at least 16 × batch_bytes_max"),
        ("[workspace]\n\nca = \"/no/such/ca.pem\"\n", 3, "use the workspace's ca.pem"),
        ("[host]\nroot = \"/no/such/root\"\n", 2, "is not a directory"),
        ("transport = 5\n", 1, "must be a section"),
        ("[log]\nlevel = \"loud\"\n", 2, "debug"),
        ("[state]\ndir = \"state\"\n", 2, "absolute"),
        ("a = = b\n", 1, ""),
    ] {
        fs::write(&config, text).expect("writes");
        let message = refusal(&world.vedette(&["check"]), 78);
        let place = format!("{}:{line}: ", config.display());
        assert!(message.contains(&place) && message.contains(expected), "{text:?}: {message}");
        assert_eq!(refusal(&world.vedette(&["run"]), 78), message, "`run` says the same");
    }
    fs::remove_file(&config).expect("removes");
    let message = refusal(&world.vedette(&["check"]), 78);
    assert!(message.contains("cannot be read"), "{message}");
}

#[test]
fn layers_go_over_each_other_in_their_order_and_name_themselves() {
    let world = World::new();
    let check = |variables: &[(&str, &str)], set: &[&str]| {
        let mut command = Command::new(crate::support::VEDETTE);
        command.args(["check", "--config"]).arg(world.path("vedette.toml")).envs(variables.iter().copied());
        command.args(set.iter().flat_map(|set| ["--set", set]));
        command.output().expect("runs")
    };
    let message = refusal(&check(&[("VEDETTE_TRANSPORT__BATCH_BYTES_MAX", "1B")], &[]), 78);
    assert!(message.contains("environment variable VEDETTE_TRANSPORT__BATCH_BYTES_MAX"), "{message}");
    let near = refusal(&check(&[("VEDETTE_TRANSPORT_COMPRESSION", "gzip")], &[]), 78);
    assert!(near.contains("did you mean VEDETTE_TRANSPORT__COMPRESSION?"), "{near}");
    let kubernetes =
        [("VEDETTE_SERVICE_HOST", "10.0.0.1"), ("VEDETTE_HOST_SERVICE_HOST", "10.0.0.1"), ("VEDETTE_PORT", "x")];
    assert!(check(&kubernetes, &[]).status.success(), "variables of a service of that name are none of ours");
    let secret = refusal(&check(&[], &["workspace.proxy=http://user:secret@proxy:3128"]), 78);
    assert!(secret.contains("list of processes") && !secret.contains("secret@"), "{secret}");
    let both = check(&[("VEDETTE_TRANSPORT__BATCH_BYTES_MAX", "1B")], &["transport.batch_bytes_max=2MiB"]);
    assert!(both.status.success(), "the flag goes over the environment");
    fs::create_dir(world.path("conf.d")).expect("makes");
    fs::write(world.path("conf.d/10-a.toml"), "[transport]\nbatch_age_max = \"1h\"\n").expect("writes");
    let message = refusal(&check(&[], &[]), 78);
    assert!(message.contains("conf.d/10-a.toml:2: "), "{message}");
    fs::write(world.path("conf.d/20-b.toml"), "[transport]\nbatch_age_max = \"2s\"\n").expect("writes");
    assert!(check(&[], &[]).status.success(), "the later file goes over the earlier");
    let message = refusal(&check(&[("VEDETTE_COLLECTORS__SYSLOG__PATHS", "[\"x\"]")], &[]), 78);
    assert!(message.contains("must be absolute"), "{message}");
}

#[test]
fn enrollment_says_what_is_wrong_and_leaves_nothing_half_done() {
    let world = World::new();
    let ca = world.path("workspace/ca.pem");
    let missing = refusal(&world.vedette(&["run"]), 3);
    assert!(missing.contains("vedette enroll"), "{missing}");

    let other = World::new();
    let message = refusal(&world.enroll_with(&world.url(), &other.path("workspace/ca.pem"), &world.token("t1")), 1);
    assert!(message.contains("was not signed by the CA in") && message.contains("use the ca.pem"), "{message}");
    let message = refusal(&world.enroll_with(&world.url(), Path::new("/etc/hostname"), &world.token("t2")), 1);
    assert!(message.contains("no usable certificate") || message.contains("no PEM certificate"), "{message}");
    let message = refusal(&world.enroll_with("https://127.0.0.1:1", &ca, &world.token("t3")), 1);
    assert!(message.contains("is `vedette-workspace serve` running?"), "{message}");
    let message = refusal(&world.enroll_with("http://127.0.0.1:1", &ca, &world.token("t4")), 78);
    assert!(message.contains("over TLS only"), "{message}");
    fs::write(world.path("empty"), "").expect("writes");
    let message = refusal(&world.enroll_with(&world.url(), &ca, &world.path("empty")), 1);
    assert!(message.contains("token new"), "{message}");
    fs::write(world.path("wrong"), "vdt_00").expect("writes");
    let message = refusal(&world.enroll_with(&world.url(), &ca, &world.path("wrong")), 1);
    assert!(message.contains("unknown"), "{message}");
    assert!(!world.path("identity/enrollment.json").exists());

    let token = world.token("token");
    assert!(world.enroll_with(&world.url(), &ca, &token).status.success());
    let message = refusal(&world.enroll_with(&world.url(), &ca, &token), 1);
    assert!(message.contains("--again"), "{message}");
    other.write_config("");
    let message = refusal(&other.enroll_with(&world.url(), &ca, &token), 1);
    assert!(message.contains("used up"), "{message}");
    let mode = fs::metadata(world.path("identity/key.pem")).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    world.write_config("\n[workspace]\nurl = \"https://elsewhere:8443\"\n");
    let message = refusal(&world.vedette(&["run"]), 78);
    assert!(message.contains("workspace.url") && message.contains("elsewhere"), "{message}");
    world.write_config("\n[workspace]\ngeo = \"australia\"\n");
    let message = refusal(&world.vedette(&["run"]), 78);
    assert!(message.contains("workspace.geo"), "{message}");
}

#[test]
fn a_server_certificate_for_another_name_is_refused() {
    let world = World::with_names(&["workspace.example.net"]);
    let message = refusal(&world.enroll_with(&world.url(), &world.path("workspace/ca.pem"), &world.token("t")), 1);
    assert!(message.contains("its certificate has other names"), "{message}");
}

#[test]
fn an_expired_token_is_refused() {
    let world = World::new();
    let token = world.token("token");
    // Expires the token in the control store, since a test cannot wait for an hour.
    if !world.control_sql("UPDATE tokens SET expires = 1") {
        println!("skipped: there is no python3 to age the token with");
        return;
    }
    let message = refusal(&world.enroll_with(&world.url(), &world.path("workspace/ca.pem"), &token), 1);
    assert!(message.contains("expired"), "{message}");
}

#[test]
fn a_state_directory_that_cannot_be_written_is_named() {
    let world = World::new();
    world.enroll();
    fs::write(world.path("state"), "a file where a directory should be").expect("writes");
    let message = refusal(&world.vedette(&["run"]), 1);
    assert!(message.contains("state") && message.contains("check that the directory exists"), "{message}");
}

#[test]
fn a_log_that_cannot_be_read_is_reported_and_the_others_are_read() {
    let world = World::new();
    let fifo = Command::new("mkfifo").arg(world.path("log/pipe.log")).status();
    assert!(fifo.is_ok_and(|status| status.success()));
    let looped = world.path("log/loop.log");
    std::os::unix::fs::symlink(&looped, &looped).expect("links");
    world.append("a.log", "readable\n");
    world.append("secret.log", "x\n");
    fs::set_permissions(world.path("log/secret.log"), fs::Permissions::from_mode(0o000)).expect("sets");
    world.enroll();
    let _agent = world.run_unprivileged();
    eventually("the readable file's line", || (world.count("syslog") == 1).then_some(()));
    let why = eventually("the complaint", || world.last_error("syslog"));
    assert!(why.contains("secret.log") && why.contains("group adm"), "{why}");
    eventually("the record of it", || {
        (world.count("lifecycle WHERE event = 'collector_error' AND about = 'syslog'") == 1).then_some(())
    });
    fs::set_permissions(world.path("log/secret.log"), fs::Permissions::from_mode(0o644)).expect("sets");
    eventually("the other file's line", || (world.count("syslog") == 2).then_some(()));
    eventually("that it is over", || {
        (world.count("lifecycle WHERE event = 'collector_recovered' AND about = 'syslog'") == 1).then_some(())
    });
    assert_eq!(world.last_error("syslog"), None);
}

#[test]
fn a_second_agent_and_a_missing_one_are_told_apart() {
    let world = World::new();
    let message = refusal(&world.vedette(&["status"]), 4);
    assert!(message.contains("no agent runs"), "{message}");
    world.enroll();
    let _agent = world.run();
    eventually("the first agent's start", || world.vedette(&["status"]).status.success().then_some(()));
    let message = refusal(&world.vedette(&["run"]), 1);
    assert!(message.contains("another agent runs under the identity"), "{message}\n{}", world.agent_log());
}

#[test]
fn a_hangup_ends_neither_program() {
    let mut world = World::new();
    world.enroll();
    let mut agent = world.run();
    eventually("the agent's start", || world.vedette(&["status"]).status.success().then_some(()));
    let serving = world.serve.as_ref().expect("serves").id();
    for id in [agent.id(), serving] {
        assert!(Command::new("kill").args(["-HUP", &id.to_string()]).status().is_ok_and(|status| status.success()));
    }
    let has = |log: String, text: &str| log.contains(text).then_some(());
    eventually("the agent's word", || has(world.agent_log(), "the configuration has not changed"));
    eventually("the workspace's word", || {
        has(fs::read_to_string(world.path("workspace.log")).ok()?, "SIGHUP is ignored")
    });
    world.append("a.log", "a line behind it\n");
    eventually("the line", || (world.count("syslog") == 1).then_some(()));
    agent.terminate();
    world.serve.as_mut().expect("serves").terminate();
}

#[test]
fn a_workspace_that_others_could_look_into_is_closed_to_them() {
    let mut world = World::new();
    world.serve.as_mut().expect("serves").terminate();
    let mode = || fs::metadata(world.path("workspace")).expect("is there").permissions().mode() & 0o777;
    fs::set_permissions(world.path("workspace"), fs::Permissions::from_mode(0o755)).expect("sets");
    assert_eq!(mode(), 0o755);
    let address = world.address();
    world.serve(&address);
    assert_eq!(fs::metadata(world.path("workspace")).expect("is there").permissions().mode() & 0o777, 0o700);
    let landing = fs::metadata(world.path("workspace/control.sqlite")).expect("is there");
    assert_eq!(landing.permissions().mode() & 0o077, 0, "nor into what is in it");
}

#[test]
fn an_agent_whose_state_directory_is_removed_begins_again_and_no_second_one_is_let_in() {
    let world = World::new();
    world.enroll();
    let _agent = world.run();
    world.append("a.log", "one\n");
    eventually("the first line", || (world.count("syslog") == 1).then_some(()));
    // Only the socket.
    fs::remove_file(world.path("state/agent.sock")).expect("removes");
    eventually("the socket again", || world.vedette(&["status"]).status.success().then_some(()));
    fs::remove_dir_all(world.path("state")).expect("removes");
    let message = refusal(&world.vedette(&["run"]), 1);
    assert!(message.contains("another agent runs under the identity"), "{message}");
    world.append("a.log", "two\n");
    eventually("the next line", || (world.count("syslog") == 2).then_some(()));
    eventually("status again", || world.vedette(&["status"]).status.success().then_some(()));
    assert!(world.agent_log().contains("the queue's file was removed or replaced"), "{}", world.agent_log());
    let syslog = world.ledger().into_iter().find(|account| account["collector"] == "syslog").expect("is there");
    assert_eq!((&syslog["repeated"], &syslog["missing"]), (&0.into(), &0.into()), "{syslog}");
}

#[test]
fn a_level_of_the_log_that_was_reloaded_outlasts_a_restart_of_the_tasks() {
    let world = World::new();
    world.enroll();
    let agent = world.run();
    eventually("the agent's start", || world.vedette(&["status"]).status.success().then_some(()));
    fs::create_dir(world.path("conf.d")).expect("makes");
    fs::write(world.path("conf.d/10-log.toml"), "[log]\nlevel = \"debug\"\n").expect("writes");
    assert!(Command::new("kill").args(["-HUP", &agent.id().to_string()]).status().is_ok_and(|status| status.success()));
    eventually("the level", || world.agent_log().contains("the new configuration is in force").then_some(()));
    fs::remove_dir_all(world.path("state")).expect("removes");
    let restarted = "the agent restarts its tasks";
    eventually("debug messages behind the restart", || {
        let log = world.agent_log();
        log.split_once(restarted).filter(|(_, behind)| behind.contains("DEBUG")).map(drop)
    });
}

#[test]
fn paths_that_are_no_logs_are_named() {
    let world = World::new();
    let dir = world.path("odd");
    fs::create_dir(&dir).expect("makes");
    let made = Command::new("mkfifo").arg(dir.join("fifo")).status();
    assert!(made.is_ok_and(|status| status.success()));
    std::os::unix::fs::symlink("loop", dir.join("loop")).expect("links");
    std::os::unix::fs::symlink("nowhere", dir.join("dangling")).expect("links");
    fs::write(dir.join("old.log.gz"), "x").expect("writes");
    let names = ["fifo", "loop", "dangling", "old.log.gz"];
    let paths: Vec<String> = names.iter().map(|name| format!("\"{}\"", dir.join(name).display())).collect();
    let good = world.path("log/a.log").display().to_string();
    world.append("a.log", "one\n");
    let text = fs::read_to_string(world.path("vedette.toml")).expect("reads");
    let at = text.find("paths = [").expect("is there");
    let end = at + text[at..].find(']').expect("ends");
    let text = format!("{}paths = [\"{good}\", {}{}", &text[..at], paths.join(", "), &text[end..]);
    fs::write(world.path("vedette.toml"), text).expect("writes");
    world.enroll();
    let _agent = world.run();
    let message = eventually("health to name them", || {
        let output = world.vedette(&["health"]);
        let message = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code() == Some(1) && names.iter().all(|name| message.contains(&format!("odd/{name}"))))
            .then_some(message)
    });
    assert!(!message.contains(&good), "{message}");
    eventually("the good one's line", || (world.count("syslog") == 1).then_some(()));
}

#[test]
fn drafts_in_conf_d_are_no_configuration_and_a_proxy_is_checked_with_its_exceptions() {
    let world = World::new();
    fs::create_dir(world.path("conf.d")).expect("makes");
    std::os::unix::fs::symlink("root@vm.1234:5678", world.path("conf.d/.#a.toml")).expect("links");
    fs::write(world.path("conf.d/.b.toml"), "half =").expect("writes");
    let check = |set: &[&str]| world.vedette(&[&["check"], set].concat());
    assert!(check(&[]).status.success(), "{:?}", check(&[]));
    let proxy = "workspace.proxy=http://proxy:3128";
    for good in ["*", "10.0.0.0/8, ::1/128, .example.com,host", "127.0.0.1"] {
        let output = check(&["--set", proxy, "--set", &format!("workspace.no_proxy={good}")]);
        assert!(output.status.success(), "{good}: {output:?}");
    }
    for bad in ["10.0.0.0/99", "*.x", "http://a", "a b"] {
        let message = refusal(&check(&["--set", proxy, "--set", &format!("workspace.no_proxy={bad}")]), 78);
        assert!(message.contains("workspace.no_proxy"), "{message}");
    }
    refusal(&check(&["--set", "workspace.proxy=http://h:1/path"]), 78);
    let nowhere = refusal(&check(&["--set", "state.dir=/proc/nope/state"]), 78);
    assert!(nowhere.contains("state.dir") && nowhere.contains("/proc"), "{nowhere}");
}

#[test]
fn log_lines_have_colours_on_a_terminal_alone_and_where_nobody_forbids_them() {
    let world = World::new();
    let check =
        format!("{} once --collector host --config {}", crate::support::VEDETTE, world.path("vedette.toml").display());
    let Ok(version) = Command::new("script").arg("--version").output() else {
        println!("skipped: there is no script(1)");
        return;
    };
    assert!(version.status.success());
    for (no_color, has_colours) in [(None, true), (Some(""), true), (Some("1"), false)] {
        let mut terminal = Command::new("script");
        terminal.args(["-qec", &check, "/dev/null"]).env("HTTPS_PROXY", "http://proxy:1").env_remove("NO_COLOR");
        terminal.envs(no_color.map(|value| ("NO_COLOR", value)));
        let output = terminal.stdin(std::process::Stdio::null()).output().expect("runs");
        let message = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(message.contains("HTTPS_PROXY"), "{message}");
        assert_eq!(message.contains("\u{1b}["), has_colours, "{no_color:?}: {message:?}");
    }
}
