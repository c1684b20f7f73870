//! Through an HTTP proxy with credentials: `CONNECT`, and TLS from end to end inside.

use crate::support::{World, eventually};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use parking_lot::Mutex;
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Heads of received requests, and the proxy's address.
struct Proxy {
    heads: Arc<Mutex<Vec<String>>>,
    address: String,
    /// Stops the proxy with all connections.
    stop: Arc<AtomicBool>,
}

impl Proxy {
    /// A proxy that requires these credentials.
    fn start(user_and_password: &str, address: &str) -> Self {
        let listener = eventually("the address to be free", || TcpListener::bind(address).ok());
        let address = listener.local_addr().expect("is bound").to_string();
        let (heads, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (seen, stopped) = (Arc::clone(&heads), Arc::clone(&stop));
        let expected = format!("basic {}", BASE64_STANDARD.encode(user_and_password));
        listener.set_nonblocking(true).expect("can be");
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let Ok((client, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                client.set_nonblocking(false).expect("can be");
                let (seen, expected, stopped) = (Arc::clone(&seen), expected.clone(), Arc::clone(&stopped));
                std::thread::spawn(move || drop(connect(client, &seen, &expected, &stopped)));
            }
        });
        Self { heads, address, stop }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn connect(client: TcpStream, seen: &Mutex<Vec<String>>, expected: &str, stop: &AtomicBool) -> std::io::Result<()> {
    let (mut reader, mut head) = (BufReader::new(client.try_clone()?), String::new());
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head)? > 0 {}
    seen.lock().push(head.clone());
    let mut client = client;
    if !head.to_lowercase().contains(&format!("proxy-authorization: {}", expected.to_lowercase())) {
        return client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
    }
    let target = head.split(' ').nth(1).unwrap_or_default();
    let server = TcpStream::connect(target)?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let ends = [client.try_clone()?, server.try_clone()?];
    let (mut to_client, mut from_server, mut to_server) = (client, server.try_clone()?, server);
    let upstream = std::thread::spawn(move || std::io::copy(&mut reader, &mut to_server));
    let back = std::thread::spawn(move || std::io::copy(&mut from_server, &mut to_client));
    while !stop.load(Ordering::Acquire) && !upstream.is_finished() && !back.is_finished() {
        std::thread::sleep(Duration::from_millis(5));
    }
    for end in ends {
        drop(end.shutdown(std::net::Shutdown::Both));
    }
    drop((upstream.join(), back.join()));
    Ok(())
}

#[test]
fn everything_goes_through_the_proxy_that_is_configured() {
    let world = World::new();
    let proxy = Proxy::start("agent:s3cret", "127.0.0.1:0");
    let with = |password: &str| {
        world.write_config(&format!("\n[workspace]\nproxy = \"http://agent:{password}@{}\"\n", proxy.address));
    };
    with("wrong");
    let refused = world.enroll_with(&world.url(), &world.path("workspace/ca.pem"), &world.token("t"));
    let message = crate::support::refusal(&refused, 1);
    assert!(message.contains("proxy"), "{message}");
    with("s3cret");
    world.enroll();
    world.append("a.log", "a line\n");
    let mut agent = world.run();
    eventually("the line", || (world.count("syslog") == 1).then_some(()));
    agent.terminate();
    let heads = proxy.heads.lock();
    assert!(heads.len() >= 3 && heads.iter().all(|head| head.starts_with("CONNECT 127.0.0.1:")), "{heads:?}");
    let log = fs::read_to_string(world.path("agent.log")).expect("is there");
    assert!(!log.contains("s3cret"), "credentials are not logged: {log}");
}

/// As `NO_PROXY` elsewhere: by address, by network, and not for others.
#[test]
fn who_is_named_is_reached_without_the_proxy() {
    let world = World::new();
    let proxy = Proxy::start("agent:s3cret", "127.0.0.1:0");
    let with = |not_for: &str| {
        let url = format!("http://agent:s3cret@{}", proxy.address);
        world.write_config(&format!("\n[workspace]\nproxy = {url:?}\nno_proxy = {not_for:?}\n"));
    };
    for (round, not_for) in ["127.0.0.1", "localhost,127.0.0.0/8"].into_iter().enumerate() {
        with(not_for);
        if round == 0 {
            world.enroll();
        }
        world.append("a.log", "a line\n");
        let mut agent = world.run();
        eventually("the line", || (world.count("syslog") == 1 + round as u64).then_some(()));
        agent.terminate();
    }
    assert!(proxy.heads.lock().is_empty(), "nothing came to the proxy");
    with("10.0.0.0/8,.example.net");
    world.append("a.log", "a line\n");
    let mut agent = world.run();
    eventually("the line", || (world.count("syslog") == 3).then_some(()));
    assert!(!proxy.heads.lock().is_empty());
    agent.terminate();
}

#[test]
fn a_proxy_that_is_restarted_is_come_back_to() {
    let world = World::new();
    let proxy = Proxy::start("agent:s3cret", "127.0.0.1:0");
    let address = proxy.address.clone();
    world.write_config(&format!("\n[workspace]\nproxy = \"http://agent:s3cret@{address}\"\n"));
    world.enroll();
    world.append("a.log", "before\n");
    let mut agent = world.run();
    eventually("the line before", || (world.count("syslog") == 1).then_some(()));
    drop(proxy);
    world.append("a.log", "while it is away\n");
    eventually("the agent to notice", || world.status()["delivery"]["last_error"].as_str().map(drop));
    let proxy = Proxy::start("agent:s3cret", &address);
    world.append("a.log", "behind\n");
    eventually("all lines, once each", || (world.count("syslog") == 3).then_some(()));
    assert!(!proxy.heads.lock().is_empty(), "through the proxy again");
    agent.terminate();
}
