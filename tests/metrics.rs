//! Metrics of agent and workspace, over HTTP and as a command's output.

use crate::support::{Process, VEDETTE, World, eventually, refusal, root};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
};

/// A loopback address that was free a moment ago.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

/// Answer to a request, as status line, headers and body.
fn get(address: SocketAddr, request: &str) -> Option<String> {
    let mut socket = TcpStream::connect(address).ok()?;
    socket.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Asserts that docs/metrics.md describes every metric of a text.
fn assert_described(text: &str) {
    let page = std::fs::read_to_string(root().join("docs/metrics.md")).expect("is there");
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(["", "_total", "_info"].iter().any(|suffix| page.contains(&format!("`{name}{suffix}`"))), "{name}");
    }
}

/// Values by name and labels.
fn scrape(address: SocketAddr) -> Option<BTreeMap<String, f64>> {
    let answer = get(address, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("openmetrics-text"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    assert_described(body);
    let values = body.lines().filter(|line| !line.starts_with('#'));
    values
        .map(|line| line.rsplit_once(' ').and_then(|(name, value)| Some((name.to_owned(), value.parse().ok()?))))
        .collect()
}

#[test]
fn prometheus_reads_agent_and_workspace() {
    let (mut world, of_agent, of_workspace) = (World::new(), free(), free());
    let address = world.address();
    world.serve.as_mut().expect("serves").terminate();
    world.serve_with(&address, &["--metrics", &of_workspace.to_string(), "--log-format", "json"]);
    world.enroll();
    world.write_config(&format!("\n[metrics]\nlisten = \"{of_agent}\"\n"));
    let mut agent = world.run();
    world.append("a.log", "one\ntwo\nthree\n");
    eventually("the lines to land", || (world.count("syslog") == 3).then_some(()));

    let values = eventually("the agent's metrics", || {
        let values = scrape(of_agent)?;
        (values.get("vedette_emitted_records_total{collector=\"syslog\"}") == Some(&3.0)).then_some(values)
    });
    assert!(values["vedette_delivered_batches_total"] >= 1.0, "{values:?}");
    assert!(values["vedette_resident_memory_bytes"] > 1e6);
    assert_eq!(values["vedette_collector_state{collector=\"syslog\",state=\"running\"}"], 1.0);
    let printed = world.vedette(&["status", "--format", "prometheus"]);
    let printed = String::from_utf8(printed.stdout).expect("UTF-8");
    assert!(printed.contains("vedette_emitted_records_total{collector=\"syslog\"} 3"), "{printed}");
    for (request, expected) in [
        ("GET / HTTP/1.1", "HTTP/1.1 404"),
        ("HEAD /metrics HTTP/1.1", "HTTP/1.1 200"),
        ("POST /metrics HTTP/1.1", "HTTP/1.1 405"),
        ("GET http://localhost/metrics?x HTTP/1.1", "HTTP/1.1 200"),
        ("GET /metrics?x FOO", "HTTP/1.1 400"),
    ] {
        let answer = get(of_agent, &format!("{request}\r\nHost: localhost\r\n\r\n")).expect("answers");
        assert!(answer.starts_with(expected), "{request}: {answer}");
        let has_body = answer.split_once("\r\n\r\n").is_some_and(|(_, body)| !body.is_empty());
        assert!(!(request.starts_with("HEAD") && has_body), "{answer}");
    }
    let endless = get(of_agent, &"x".repeat(9000)).unwrap_or_default();
    assert!(endless.is_empty() || endless.starts_with("HTTP/1.1 4"), "{endless}");

    let values = scrape(of_workspace).expect("answers");
    let sum = |name: &str, label: &str| -> f64 {
        values.iter().filter(|(key, _)| key.starts_with(name) && key.contains(label)).map(|(_, value)| value).sum()
    };
    assert!(sum("vedette_workspace_batches_total", "outcome=\"landed\"") >= 1.0, "{values:?}");
    assert!(sum("vedette_workspace_records_total", "") >= 3.0);
    assert_eq!(sum("vedette_workspace_agents", ""), 1.0);
    assert!(sum("vedette_workspace_queries_total", "") >= 1.0, "`query` is another process: {values:?}");
    assert!(sum("vedette_workspace_requests_total", "route=\"/v1/enroll\",status=\"200\"") == 1.0, "{values:?}");
    assert!(sum("vedette_workspace_request_duration_seconds_count", "/v1/{lane}/{epoch}/{seq}") >= 1.0);
    agent.terminate();
    let log = std::fs::read_to_string(world.path("workspace.log")).expect("is there");
    let json = log.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()).count();
    assert!(json > 0, "{log}");

    // Metrics name organizations and hosts: they are for this machine alone.
    world.write_config("\n[metrics]\nlisten = \"0.0.0.0:9464\"\n");
    assert!(refusal(&world.vedette(&["check"]), 78).contains("metrics.listen: must be a loopback address"));
    world.serve.as_mut().expect("serves").terminate();
    let open = world.workspace_output(&["serve", "--listen", "127.0.0.1:0", "--metrics", "0.0.0.0:1"]);
    assert!(refusal(&open, 1).contains("must be a loopback address"));
}

/// Another program has the port: the agent collects, and answers there once the port is free.
#[test]
fn a_port_in_use_does_not_stop_the_agent() {
    let world = World::new();
    world.enroll();
    let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = taken.local_addr().expect("has one");
    world.write_config(&format!("\n[metrics]\nlisten = \"{address}\"\n"));
    let _agent = world.run();
    world.append("a.log", "one\n");
    eventually("the line to land", || (world.count("syslog") == 1).then_some(()));
    drop(taken);
    eventually("the agent's metrics", || scrape(address));
}

/// The same epoch and sequence name a batch in both logs: the span of the sender, and that of the workspace's request.
#[test]
fn a_batch_can_be_followed_through_both_logs() {
    let mut world = World::new();
    let address = world.address();
    world.serve = None;
    world.serve_with(&address, &["--log", "debug", "--log-format", "json"]);
    world.enroll();
    world.append("a.log", "a line\n");
    let mut command = std::process::Command::new(VEDETTE);
    command.args(["run", "--set", "log.level=debug", "--set", "log.format=json", "--config"]);
    let mut agent = Process::start(command.arg(world.path("vedette.toml")), &world.path("agent.log"));
    eventually("the line", || (world.count("syslog") == 1).then_some(()));
    agent.terminate();
    let events = |name: &str, message: &str| -> Vec<serde_json::Value> {
        let log = std::fs::read_to_string(world.path(name)).expect("reads");
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.filter(|event| event["fields"]["message"] == message).collect()
    };
    assert!(!events("agent.log", "a batch is durable").is_empty());
    let posted = events("agent.log", "posted");
    let batch = &posted.first().expect("was posted")["span"];
    assert_eq!((&batch["name"], &batch["lane"]), (&"batch".into(), &"records".into()), "{batch}");
    let log = std::fs::read_to_string(world.path("workspace.log")).expect("reads");
    let same = format!("\"epoch\":{},", batch["epoch"]);
    assert!(log.lines().any(|line| line.contains(&same) && line.contains("\"name\":\"batch\"")), "{batch}: {log}");
}
