//! A host's data goes only to the workspace geography of that host, whatever a configuration, a name, a redirect or a proxy
//! says.

use crate::support::{ORG, World, eventually, refusal};
use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

fn config(world: &World, host: &str) {
    world.write_config("");
    let path = world.path("vedette.toml");
    let text =
        fs::read_to_string(&path).expect("reads").replace("cloud = \"off\"\n", &format!("cloud = \"off\"\n{host}\n"));
    fs::write(path, text).expect("writes");
}

#[test]
fn a_host_enrolls_and_runs_in_its_own_geography_alone() {
    let world = World::new();
    // The workspace is in Europe.
    for host in ["brazil", "canada", "japan", "australia"] {
        config(&world, &format!("geography = \"{host}\""));
        let output = world.enroll_with(&world.url(), &world.path("workspace/ca.pem"), &world.token("token"));
        let message = refusal(&output, 1);
        assert!(message.contains("not a workspace of geography"), "{host}: {message}");
    }
    assert!(!world.path("identity/enrollment.json").exists());
    config(&world, "geography = \"atlantis\"");
    assert!(refusal(&world.vedette(&["check"]), 78).contains("united-kingdom"));
    config(&world, "geography = \"united-kingdom\"");
    world.enroll();
    let mut agent = world.run();
    eventually("a heartbeat", || (world.count("heartbeats") > 0).then_some(()));
    agent.terminate();
    // Moved to another continent with its state: it does not run.
    config(&world, "geography = \"india\"");
    let message = refusal(&world.vedette(&["run"]), 78);
    assert!(message.contains("stands in india, whose data belongs to asia-pacific"), "{message}");
    fs::write(world.path("vedette.toml"), "[host]\ngeography = \"india\"\n[workspace]\ngeo = \"europe\"\n")
        .expect("writes");
    assert!(refusal(&world.vedette(&["check"]), 78).contains("belongs to asia-pacific"));
}

/// The workspace's name leads to one of another geography with a certificate of the same CA, and then to a server that
/// redirects every request.
#[test]
fn what_points_elsewhere_gets_no_byte_of_the_host() {
    let mut world = World::new();
    world.enroll();
    let address = world.address();
    world.append("a.log", "before\n");
    let agent = world.run();
    eventually("the first line", || (world.count("syslog") == 1).then_some(()));

    // A workspace of the same authority, in Australia, at the known address.
    world.serve = None;
    let other = World::new();
    fs::remove_dir_all(other.path("workspace")).expect("removes");
    other.workspace(&["init", "--geo", "australia"]);
    for name in ["ca.pem", "ca.key"] {
        fs::copy(world.path("workspace").join(name), other.path("workspace").join(name)).expect("copies");
    }
    other.workspace(&["certificate"]);
    let mut other = other;
    other.workspace(&["org", "add", ORG, "--tier", "free"]);
    other.serve = None;
    other.serve(&address);
    world.append("a.log", "a secret of this host\n");
    eventually("it to be noticed", || {
        let error = world.status()["delivery"]["last_error"].as_str().map(str::to_owned)?;
        error.contains("not a workspace of geography europe").then_some(())
    });
    assert_eq!(other.workspace(&["agents", "--org", ORG, "--format", "json"]), "");
    drop(other);

    // A listener without the authority's key gets only the handshake.
    let listener = eventually("the address", || TcpListener::bind(&address).ok());
    let (came, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, bytes) = (Arc::clone(&came), Arc::clone(&seen));
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            counted.fetch_add(1, Ordering::AcqRel);
            drop(stream.set_read_timeout(Some(Duration::from_millis(300))));
            let mut block = [0; 16 << 10];
            while let Ok(got @ 1..) = stream.read(&mut block) {
                bytes.fetch_add(got, Ordering::AcqRel);
                let text = String::from_utf8_lossy(&block[..got]);
                assert!(!text.contains("secret"), "in the clear");
                drop(stream.write_all(
                    b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n",
                ));
            }
        }
    });
    eventually("it to be tried", || (came.load(Ordering::Acquire) > 0).then_some(()));
    std::thread::sleep(Duration::from_secs(1));
    assert!(seen.load(Ordering::Acquire) < 4096 * came.load(Ordering::Acquire), "a ClientHello and an alert");
    assert!(world.status()["queue"]["batches"].as_u64() > Some(0), "it waits on disk");
    drop(agent);
}
