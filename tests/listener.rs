//! The syslog listener: what is sent to it arrives, and what the queue cannot take is dropped and counted.

use crate::support::{World, eventually};
use std::os::unix::net::UnixDatagram;

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
