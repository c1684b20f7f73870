//! Through an HTTP proxy with credentials: `CONNECT`, and TLS from end to end inside.

use crate::support::{World, eventually};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

/// Heads of the requests that came, and where the proxy listens.
struct Proxy {
    heads: Arc<Mutex<Vec<String>>>,
    address: String,
}

impl Proxy {
    /// A proxy that lets through whoever brings these credentials.
    fn start(user_and_password: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("is bound").to_string();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (seen, wanted) = (Arc::clone(&heads), format!("basic {}", BASE64_STANDARD.encode(user_and_password)));
        std::thread::spawn(move || {
            for client in listener.incoming().filter_map(Result::ok) {
                let (seen, wanted) = (Arc::clone(&seen), wanted.clone());
                std::thread::spawn(move || drop(connect(client, &seen, &wanted)));
            }
        });
        Self { heads, address }
    }
}

fn connect(client: TcpStream, seen: &Mutex<Vec<String>>, wanted: &str) -> std::io::Result<()> {
    let (mut reader, mut head) = (BufReader::new(client.try_clone()?), String::new());
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head)? > 0 {}
    seen.lock().expect("lock").push(head.clone());
    let mut client = client;
    if !head.to_lowercase().contains(&format!("proxy-authorization: {}", wanted.to_lowercase())) {
        return client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
    }
    let target = head.split(' ').nth(1).unwrap_or_default();
    let server = TcpStream::connect(target)?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let (mut to_client, mut from_server) = (client, server.try_clone()?);
    let back = std::thread::spawn(move || std::io::copy(&mut from_server, &mut to_client));
    let mut server = server;
    std::io::copy(&mut reader, &mut server)?;
    server.shutdown(std::net::Shutdown::Write)?;
    drop(back.join());
    Ok(())
}

#[test]
fn everything_goes_through_the_proxy_that_is_configured() {
    let world = World::new();
    let proxy = Proxy::start("agent:s3cret");
    let with = |password: &str| {
        world.write_config(&format!("\n[workspace]\nproxy = \"http://agent:{password}@{}\"\n", proxy.address));
    };
    with("wrong");
    let refused = world.enroll_with(&world.url(), &world.path("workspace/ca.pem"), &world.token("t"));
    let said = crate::support::refusal(&refused, 1);
    assert!(said.contains("proxy"), "{said}");
    with("s3cret");
    world.enroll();
    world.append("a.log", "a line\n");
    let mut agent = world.run();
    eventually("the line", || (world.count("syslog") == 1).then_some(()));
    agent.terminate();
    let heads = proxy.heads.lock().expect("lock");
    assert!(heads.len() >= 3 && heads.iter().all(|head| head.starts_with("CONNECT 127.0.0.1:")), "{heads:?}");
    let log = fs::read_to_string(world.path("agent.log")).expect("is there");
    assert!(!log.contains("s3cret"), "credentials are not logged: {log}");
}
