//! The syslog listener: messages arrive, and those that the queue cannot accept are dropped and counted.

use crate::support::{Process, World, eventually};
use serde_json::Value;
use std::{fs, net::UdpSocket, os::unix::net::UnixDatagram, process::Command};

fn signal(agent: &Process, name: &str) {
    let done = Command::new("kill").arg(name).arg(agent.id().to_string()).status();
    assert!(done.is_ok_and(|status| status.success()));
}

#[test]
fn datagrams_arrive_and_what_a_full_queue_cannot_take_is_counted() {
    let mut world = World::new();
    let socket = world.path("log.sock");
    world.write_config(&format!(
        "\n[transport]\nqueue_bytes_max = \"16MiB\"\n\n[collectors.syslog_listener]\nenabled = true\ndatagram = {socket:?}\n"
    ));
    world.enroll();
    let agent = world.run();
    let sender = UnixDatagram::unbound().expect("opens");
    eventually("the socket", || sender.connect(&socket).ok());
    for number in 0..100 {
        sender.send(format!("<13>1 2026-11-23T03:21:19Z h app - - - first {number}").as_bytes()).expect("sends");
    }
    eventually("what was sent", || (world.count("syslog WHERE app = 'app'") == 100).then_some(()));

    world.serve = None;
    let mut random = fastrand::Rng::with_seed(1);
    let mut noise = || (0..1500).map(|_| random.alphanumeric()).collect::<String>();
    for number in 0..12_000 {
        let text = format!("<13>1 2026-11-23T03:21:19Z h app - - - flood {number} {}", noise());
        sender.send(text.as_bytes()).expect("the sender is not refused");
    }
    let account = |world: &World| {
        let ledger = world.ledger();
        ledger.into_iter().find(|account| account["collector"] == "syslog_listener")
    };
    let dropped = eventually("drops that status shows", || {
        let status = world.status();
        let listener = status["collectors"].as_array()?.iter().find(|c| c["id"] == "syslog_listener")?.clone();
        listener["dropped_by_reason"]["queue_full"].as_u64()
    });
    assert!(dropped > 0);
    let address = world.address();
    world.serve(&address);
    let account = eventually("everything to be accounted for", || {
        let account = account(&world)?;
        let of = |key: &str| account[key].as_u64().unwrap_or(0);
        let lost = account["dropped"]["queue_full"].as_u64().unwrap_or(0);
        (of("emitted") == 12_100 && of("stored") + lost == 12_100 && of("in_flight") == 0).then_some(account.clone())
    });
    assert_eq!((&account["missing"], &account["repeated"]), (&0.into(), &0.into()), "{account}");
    drop(agent);
}

/// Datagrams that the kernel dropped are known from `/proc/net/udp`, and are in the ledger.
#[test]
fn datagrams_that_the_kernel_dropped_are_counted() {
    let world = World::new();
    let port = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
    world.write_config(&format!("\n[collectors.syslog_listener]\nenabled = true\nudp = \"127.0.0.1:{port}\"\n"));
    world.enroll();
    let mut agent = world.run();
    eventually("the socket", || {
        let table = std::fs::read_to_string("/proc/net/udp").ok()?;
        table.contains(&format!("0100007F:{port:04X} ")).then_some(())
    });
    let sender = UdpSocket::bind("127.0.0.1:0").expect("opens");
    signal(&agent, "-STOP");
    // More than any receive buffer holds.
    let (text, sent) = (format!("<13>1 2026-11-23T03:21:19Z h app - - - {}", "x".repeat(1400)), 40_000);
    for _ in 0..sent {
        sender.send_to(text.as_bytes(), ("127.0.0.1", port)).expect("sends");
    }
    signal(&agent, "-CONT");
    let mut last = Value::Null;
    let account = eventually("all of them to be stored or counted", || {
        let account = world.ledger().into_iter().find(|account| account["collector"] == "syslog_listener")?;
        if std::mem::replace(&mut last, account.clone()) != account {
            println!("{account}");
        }
        let (stored, lost) = (account["stored"].as_u64()?, account["dropped"]["kernel_loss"].as_u64()?);
        (stored + lost == sent && lost > 0 && stored > 0).then_some(account)
    });
    assert_eq!((&account["missing"], &account["repeated"]), (&0.into(), &0.into()), "{account}");
    agent.terminate();
}

/// Only collectors whose settings change are started again; they continue where they were.
#[test]
fn a_reload_of_one_collector_leaves_the_others_running() {
    let world = World::new();
    let socket = world.path("log.sock");
    world.write_config(&format!("\n[collectors.syslog_listener]\nenabled = true\ndatagram = {socket:?}\n"));
    world.enroll();
    let agent = world.run();
    let sender = UnixDatagram::unbound().expect("opens");
    eventually("the socket", || sender.connect(&socket).ok());
    fs::create_dir(world.path("conf.d")).expect("makes");
    let changes = ["[collectors.syslog]\nbeside_journal = true\n", "[collectors.syslog]\nenabled = false\n", ""];
    let configured = || world.agent_log().matches("the new configuration is in force").count();
    for (number, change) in changes.iter().enumerate() {
        world.append("a.log", "a line before the change\n");
        fs::write(world.path("conf.d/10-syslog.toml"), change).expect("writes");
        signal(&agent, "-HUP");
        eventually("the change", || (configured() == number + 1).then_some(()));
        // The socket that was connected at the start.
        sender.send(format!("<13>1 2026-11-23T03:21:19Z h app - - - {number}").as_bytes()).expect("it is still open");
    }
    world.append("a.log", "the last line\n");
    eventually("what was sent", || (world.count("syslog WHERE app = 'app'") == 3).then_some(()));
    eventually("the lines", || (world.count("syslog WHERE app IS NULL") == 4).then_some(()));
    // A collector that is started again leaves nothing open behind it.
    let open = || fs::read_dir(format!("/proc/{}/fd", agent.id())).expect("it runs").count();
    let (before, known) = (open(), configured());
    for number in 0..12 {
        fs::write(world.path("conf.d/10-syslog.toml"), changes[number % 2]).expect("writes");
        signal(&agent, "-HUP");
        eventually("the change", || (configured() == known + number + 1).then_some(()));
    }
    eventually("open files to be as many", || (open() <= before + 4).then_some(()));
    assert!(!world.agent_log().contains("restarts its tasks"), "{}", world.agent_log());
    for account in world.ledger() {
        assert_eq!((&account["missing"], &account["repeated"]), (&0.into(), &0.into()), "{account}");
    }
}
