use super::*;
use crate::{Sink, StopSignal};
use parking_lot::Mutex;

#[derive(Default)]
struct Seen(Mutex<Vec<Chunk>>);

impl Sink for Seen {
    fn put(&self, chunk: Chunk, _: &StopSignal) -> Result<(), CollectError> {
        self.0.lock().push(chunk);
        Ok(())
    }

    fn report_problem(&self, _: &'static str, message: String) {
        panic!("{message}");
    }
}

fn context() -> CollectorContext {
    CollectorContext::new("/", Arc::new(|| 1_700_000_000_000_000_000))
}

fn count(seen: &Seen) -> usize {
    seen.0.lock().iter().map(|chunk| chunk.entries.len()).sum()
}

#[test]
fn datagrams_of_both_sockets_become_records_without_a_gap() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("run/log.sock");
    let udp_address = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    // The socket file of a killed process is still there.
    std::fs::create_dir(dir.path().join("run")).expect("makes");
    drop(UnixDatagram::bind(&path).expect("binds"));
    let settings = Settings { enabled: true, datagram: Some(path.clone()), udp: Some(udp_address) };
    let (seen, stop) = (Arc::new(Seen::default()), StopSignal::default());
    let mut outlet = Outlet::new(Arc::clone(&seen) as Arc<dyn Sink>, stop.clone());
    let thread = std::thread::spawn(move || Listener { settings }.watch(&context(), &mut outlet));
    let until = |count_wanted: usize| {
        let began = Instant::now();
        while count(&seen) < count_wanted {
            assert!(began.elapsed() < Duration::from_secs(20), "{} records", count(&seen));
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let client = UnixDatagram::unbound().expect("opens");
    let began = Instant::now();
    while client.connect(&path).is_err() {
        assert!(began.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(10));
    }
    for number in 0..1000 {
        client.send(format!("<13>1 2026-11-23T03:21:19Z h app - - - {number}\n").as_bytes()).expect("sends");
    }
    until(1000);
    let device = UdpSocket::bind("127.0.0.1:0").expect("binds");
    for text in ["<34>Oct 11 22:14:15 router su: failed", "not syslog at all\0", "\n"] {
        device.send_to(text.as_bytes(), udp_address).expect("sends");
    }
    until(1002);
    stop.stop();
    thread.join().expect("no panic").expect("no error");
    assert!(!path.exists());
    let chunks = seen.0.lock();
    for name in [path.display().to_string(), format!("udp:{udp_address}")] {
        let of_source = chunks.iter().filter(|chunk| chunk.source.name.as_deref() == Some(&name));
        let positions: Vec<u64> =
            of_source.flat_map(|chunk| chunk.entries.iter().map(|entry| entry.position.0)).collect();
        assert!(
            !positions.is_empty() && positions.iter().enumerate().all(|(index, position)| index as u64 == *position)
        );
    }
    let bodies: Vec<Body> = chunks
        .iter()
        .flat_map(|chunk| {
            chunk.bodies().map(|(_, body)| rmp_serde::from_slice(body).expect("a body")).collect::<Vec<_>>()
        })
        .collect();
    let raw = |body: &Body| match body {
        Body::Syslog(line) => String::from_utf8_lossy(&line.raw).into_owned(),
        other => panic!("{other:?}"),
    };
    assert!(bodies.iter().any(|body| raw(body) == "not syslog at all"), "an unparsable datagram is kept unchanged");
    let (uid, pid) = (rustix::process::getuid().as_raw(), std::process::id());
    let device = device.local_addr().expect("bound").to_string();
    for body in &bodies {
        let Body::Syslog(line) = body else { panic!("{body:?}") };
        let expected = if line.raw.starts_with(b"<13>1 ") {
            (None, Some(uid), Some(pid))
        } else {
            (Some(device.as_str()), None, None)
        };
        assert_eq!((line.sender.as_deref(), line.sender_uid, line.sender_pid), expected, "{}", raw(body));
    }
}

#[test]
fn kernel_drops_are_the_last_field_of_the_sockets_row() {
    let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n  \
                 100: 0100007F:158A 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 42\n";
    assert_eq!(kernel_drops(table, 4711), Some(42));
    assert_eq!(kernel_drops(table, 4712), None);
}

#[test]
fn a_listener_without_an_address_is_refused() {
    let refused = |text: &str| match (SPEC.parse)(toml::from_str(text).expect("TOML"))
        .and_then(|settings| settings.build(&context()))
    {
        Err(err) => err.to_string(),
        Ok(_) => panic!("{text}"),
    };
    assert!(refused("enabled = true").contains("needs datagram, udp or both"));
    assert!(refused("enabled = true\ndatagram = \"log.sock\"").contains("absolute"));
    let long = format!("enabled = true\ndatagram = \"/{}\"", "x".repeat(107));
    assert!(refused(&long).contains("at most 107 bytes"));
    assert!(matches!((SPEC.parse)(toml::Table::new()).and_then(|settings| settings.build(&context())), Ok(Plan::Off)));
}
