//! Unattended enrollment at the first start.

use crate::support::{ORG, World, eventually, refusal};
use serde_json::Value;
use std::{fs, net::TcpListener};

/// The bootstrap file, its companions, and the configuration that names them.
fn files(world: &World, bootstrap: &str) {
    world.write_config("");
    let config = world.path("vedette.toml");
    let text = fs::read_to_string(&config).expect("reads");
    let path = world.path("bootstrap.toml");
    let named = format!("[identity]\nbootstrap = {path:?}\n");
    fs::write(&config, text.replace("[identity]\n", &named)).expect("writes");
    fs::write(path, bootstrap).expect("writes");
}

fn bootstrap(world: &World, more: &str) -> String {
    let (ca, token) = (world.path("workspace/ca.pem"), world.token("token"));
    format!("workspace = {:?}\nca = {ca:?}\ntoken_file = {token:?}\n{more}", world.url())
}

#[test]
fn the_first_start_enrolls_however_long_the_workspace_is_away_and_deletes_what_it_used() {
    let mut world = World::new();
    let text = bootstrap(&world, "geo = \"europe\"\n");
    files(&world, &text);
    world.append("a.log", "a line\n");
    let address = world.address();
    world.serve = None;
    let mut agent = world.run();
    eventually("an attempt", || {
        fs::read_to_string(world.path("agent.log")).ok()?.contains("not enrolled yet").then_some(())
    });
    assert!(world.path("bootstrap.toml").exists() && !world.path("identity/enrollment.json").exists());
    world.serve(&address);
    eventually("the line", || (world.count("syslog") == 1).then_some(()));
    assert!(!world.path("bootstrap.toml").exists() && !world.path("token").exists());
    // An enrolled host ignores a later file.
    fs::write(world.path("bootstrap.toml"), "workspace = ").expect("writes");
    agent.terminate();
    agent = world.run();
    world.append("a.log", "another\n");
    eventually("another line", || (world.count("syslog") == 2).then_some(()));
    assert!(world.vedette(&["check"]).status.success());
    fs::remove_file(world.path("bootstrap.toml")).expect("removes");
    let agents: Value =
        serde_json::from_str(&world.workspace(&["agents", "--org", ORG, "--format", "json"])).expect("one");
    assert_eq!(agents["state"], "active");
    if world.control_sql("UPDATE agents SET version = '0.0.1'") {
        let agents = world.workspace(&["agents", "--org", ORG, "--format", "json"]);
        assert!(agents.contains("\"outdated\""), "{agents}");
    }
    agent.terminate();
    // A file that remains after a kill is deleted, and enrolls nothing.
    let before = fs::read(world.path("identity/enrollment.json")).expect("is there");
    fs::write(world.path("bootstrap.toml"), text).expect("writes");
    let mut agent = world.run();
    eventually("it to be deleted", || (!world.path("bootstrap.toml").exists()).then_some(()));
    eventually("the agent", || world.vedette(&["status"]).status.success().then_some(()));
    assert_eq!(fs::read(world.path("identity/enrollment.json")).expect("is there"), before);
    agent.terminate();
}

#[test]
fn a_bootstrap_file_that_is_wrong_says_so_and_stays() {
    let world = World::new();
    let good = bootstrap(&world, "");
    let token = world.path("token");
    for (text, code, expected) in [
        (good.replace("workspace =", "workspce ="), 78, "workspce"),
        ("a = = b".to_owned(), 78, "bootstrap.toml"),
        (format!("{good}geo = \"mars\"\n"), 78, "asia-pacific"),
        (format!("{good}geo = \"australia\"\n"), 1, "not a workspace of geography australia"),
        (good.replace("https://", "http://"), 78, "must be https://"),
    ] {
        files(&world, &text);
        let output = std::process::Command::new("timeout")
            .args(["8", crate::support::VEDETTE, "run", "--config"])
            .arg(world.path("vedette.toml"))
            .output()
            .expect("runs");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(expected), "{text}: {message}");
        // A failure that may be temporary is retried until a stop.
        assert!(
            output.status.code() == Some(code) || code == 1 && output.status.code() == Some(124),
            "{text}: {message}"
        );
        assert!(world.path("bootstrap.toml").exists() && token.exists());
    }
    fs::write(&token, "vdt_00").expect("writes");
    files(&world, &good);
    // 78: systemd does not start it again.
    assert!(refusal(&world.vedette(&["run"]), 78).contains("the token is unknown"));
    fs::remove_file(&token).expect("removes");
    for command in ["run", "check"] {
        assert!(refusal(&world.vedette(&[command]), 78).contains("token"), "{command}");
    }
    assert!(world.path("bootstrap.toml").exists());
}

/// A signal is acted on, whatever the agent does before it collects: while it enrolls, and while a metadata service keeps it
/// waiting. `terminate` expects the end, with code 0.
#[test]
fn a_stop_before_the_agent_collects_ends_it() {
    let mut world = World::new();
    files(&world, &bootstrap(&world, ""));
    let address = world.address();
    world.serve = None;
    let mut agent = world.run();
    let log = |text: &str| fs::read_to_string(world.path("agent.log")).ok()?.contains(text).then_some(());
    eventually("an attempt", || log("not enrolled yet"));
    agent.terminate();
    log("stopped before this host was enrolled").expect("is in the log");
    assert!(world.path("bootstrap.toml").exists(), "the next start enrolls");

    world.serve(&address);
    let mut agent = world.run();
    eventually("the agent", || world.vedette(&["status"]).status.success().then_some(()));
    agent.terminate();
    let service = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("cloud = \"azure\"\nmetadata_url = \"http://{}\"", service.local_addr().expect("is bound"));
    let config = fs::read_to_string(world.path("vedette.toml")).expect("reads");
    fs::write(world.path("vedette.toml"), config.replace("cloud = \"off\"", &url)).expect("writes");
    let mut agent = world.run();
    let held = service.accept().expect("the agent asks");
    agent.terminate();
    drop(held);
}
