//! TLS as seen by others: what workspace and agent accept and refuse, with OpenSSL and rustls.

use crate::support::{Process, World, eventually};
use rustls::{
    ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

/// Output of `openssl s_client` to the workspace.
fn s_client(world: &World, arguments: &[&str]) -> Option<Output> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &world.address(), "-CAfile"]).arg(world.path("workspace/ca.pem"));
    let output = command.args(["-verify_return_error"]).args(arguments).stdin(Stdio::null()).output();
    if output.is_err() {
        println!("skipped: there is no openssl");
    }
    output.ok()
}

#[test]
fn tls_1_2_and_1_3_are_accepted_and_1_1_is_refused_by_our_alert() {
    let world = World::new();
    for (version, message) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let Some(output) = s_client(&world, &[version]) else { return };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains(&format!("New, {message}, Cipher is")) && text.contains("Verify return code: 0"),
            "{text}"
        );
    }
    for version in ["-tls1", "-tls1_1"] {
        let Some(output) = s_client(&world, &[version, "-cipher", "ALL:@SECLEVEL=0"]) else { return };
        let message = String::from_utf8_lossy(&output.stderr);
        // A received alert, not one of OpenSSL's own: protocol_version, or handshake_failure if the peer names no acceptable
        // signature algorithm (RFC 8446 §6.2).
        let ours = message.contains("SSL alert number 70") || message.contains("SSL alert number 40");
        assert!(!output.status.success() && ours, "{version}: {message}");
    }
    // A client without a certificate can connect, and only enroll: each request is authorized.
    let Some(output) = s_client(&world, &["-alpn", "h2"]) else { return };
    assert!(String::from_utf8_lossy(&output.stdout).contains("ALPN protocol: h2"));
}

#[test]
fn sessions_are_resumed() {
    let world = World::new();
    let session_file = world.path("session").display().to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        // Tickets of TLS 1.3 follow the handshake.
        let script = format!(
            "(printf 'GET /livez HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n'; sleep 1) | openssl s_client -connect {} \
             -CAfile {} {version} -ign_eof -sess_out {session_file}",
            world.address(),
            world.path("workspace/ca.pem").display()
        );
        let first = Command::new("sh").args(["-c", &script]).output().expect("runs");
        if !String::from_utf8_lossy(&first.stdout).contains("200 OK") {
            println!("skipped: there is no openssl");
            return;
        }
        let Some(second) = s_client(&world, &[version, "-sess_in", &session_file]) else { return };
        let text = String::from_utf8_lossy(&second.stdout);
        assert!(text.contains("Reused, "), "{version}: {text}");
    }
}

/// Version and key exchange group agreed with a rustls peer of these versions.
fn agreed(world: &World, versions: &[&'static SupportedProtocolVersion]) -> (String, String) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    let pem = fs::read(world.path("workspace/ca.pem")).expect("reads");
    roots.add(CertificateDer::from_pem_slice(&pem).expect("a certificate")).expect("is one");
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).expect("are known");
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("builds");
    let mut stream = StreamOwned::new(connection, TcpStream::connect(world.address()).expect("connects"));
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("writes");
    let mut answer = [0; 64];
    let got = stream.read(&mut answer).expect("is answered");
    assert!(answer[..got].starts_with(b"HTTP/1.1 200"));
    let version = stream.conn.protocol_version().map_or_else(String::new, |version| format!("{version:?}"));
    let group =
        stream.conn.negotiated_key_exchange_group().map_or_else(String::new, |group| format!("{:?}", group.name()));
    (version, group)
}

#[test]
fn a_peer_of_either_version_is_served_and_the_best_that_both_know_is_used() {
    let world = World::new();
    assert_eq!(agreed(&world, &[&rustls::version::TLS12]).0, "TLSv1_2");
    let (version, group) = agreed(&world, &[&rustls::version::TLS13, &rustls::version::TLS12]);
    assert_eq!((version.as_str(), group.as_str()), ("TLSv1_3", "X25519MLKEM768"), "post-quantum, and nothing pinned");
    assert_eq!(agreed(&world, &[&rustls::version::TLS13]).0, "TLSv1_3");
}

/// The agent with servers of one version each, with the workspace's certificate.
#[tokio::test(flavor = "multi_thread")]
async fn the_agent_talks_to_1_2_and_1_3_and_not_to_1_1() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let world = World::new();
    world.enroll();
    let read = |name: &str| fs::read(world.path("identity").join(name)).expect("is there");
    let settings = vedette_transport::tls::ClientSettings {
        ca_pem: read("ca.pem"),
        identity_pem: Some((read("cert.pem"), read("key.pem").into())),
        geo: Some(vedette_wire::geo::WorkspaceGeo::Europe),
        ..Default::default()
    };
    for (version, talks) in [("-tls1_2", true), ("-tls1_3", true), ("-tls1_1", false)] {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let mut server = Command::new("openssl");
        server
            .args(["s_server", "-accept", &port.to_string(), version, "-www", "-cert"])
            .arg(world.path("workspace/server.pem"));
        server.arg("-key").arg(world.path("workspace/server.key"));
        if !talks {
            server.args(["-cipher", "ALL:@SECLEVEL=0"]);
        }
        if Command::new("openssl").arg("version").output().is_err() {
            println!("skipped: there is no openssl");
            return;
        }
        let server = Process::start(&mut server, &world.path("openssl.log"));
        eventually("the server", || TcpStream::connect(("127.0.0.1", port)).ok());
        let client = vedette_transport::tls::client(&settings).expect("builds");
        let answer = client.get(format!("https://localhost:{port}/")).send().await;
        match answer {
            Ok(answer) => assert!(talks && answer.status().is_success(), "{version}: {answer:?}"),
            Err(err) => assert!(!talks, "{version}: {}", vedette_transport::tls::root_cause(&err)),
        }
        drop(server);
    }
}

/// The requested name is in the first message (RFC 6066 §3), so that proxies can route by it.
#[tokio::test(flavor = "multi_thread")]
async fn the_agent_names_the_server_that_it_wants() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("is bound").port();
    let first = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let (mut seen, mut block) = (Vec::new(), [0; 4096]);
        while seen.len() < 512 {
            let got = stream.read(&mut block).expect("reads");
            seen.extend_from_slice(&block[..got]);
        }
        seen
    });
    let ca_pem = fs::read(world.path("workspace/ca.pem")).expect("reads");
    let settings = vedette_transport::tls::ClientSettings { ca_pem, ..Default::default() };
    let client = vedette_transport::tls::client(&settings).expect("builds");
    drop(client.get(format!("https://localhost:{port}/")).send().await);
    let hello = first.join().expect("no panic");
    assert!(hello.windows(9).any(|window| window == b"localhost"), "{hello:x?}");
}

/// `[workspace] roots`: the CA file, the platform's trust store (here, that of `SSL_CERT_FILE`), or both.
#[test]
fn the_workspace_is_known_by_its_ca_file_by_the_platform_or_by_either() {
    let (world, other) = (World::new(), World::new());
    let (right, wrong) = (world.path("workspace/ca.pem"), other.path("workspace/ca.pem"));
    let enroll = |roots: &str, ca: Option<&Path>, platform: &Path| {
        drop(fs::remove_dir_all(world.path("identity")));
        world.write_config(&format!("[workspace]\nroots = \"{roots}\"\n"));
        let mut command = Command::new(crate::support::VEDETTE);
        command.args(["enroll", "--workspace", &world.url(), "--token-file"]).arg(world.token("token"));
        command.args(ca.map(|ca| format!("--ca={}", ca.display())));
        command.arg("--config").arg(world.path("vedette.toml")).env("SSL_CERT_FILE", platform);
        let output = command.env_remove("SSL_CERT_DIR").output();
        String::from_utf8_lossy(&output.expect("runs").stderr).into_owned()
    };
    let empty = world.path("empty.pem");
    fs::write(&empty, "").expect("writes");
    for (roots, ca, platform, message) in [
        ("ca", Some(&right), &wrong, "enrolled;"),
        ("ca", Some(&wrong), &right, "not signed by the CA in"),
        ("ca", None, &right, "no CA is given"),
        ("both", Some(&wrong), &right, "enrolled;"),
        ("both", Some(&right), &wrong, "enrolled;"),
        ("both", Some(&wrong), &wrong, "not signed by"),
        ("platform", Some(&right), &wrong, "the platform trusts no authority"),
        ("platform", None, &wrong, "the platform trusts no authority"),
        ("platform", None, &empty, "no root certificate of the platform can be used"),
        ("anybody", Some(&right), &right, "expected one of `ca`, `platform`, `both`"),
        ("platform", None, &right, "enrolled;"),
    ] {
        let answer = enroll(roots, ca.map(PathBuf::as_path), platform);
        assert!(answer.contains(message), "{roots} {ca:?}: {answer}");
    }
    // It delivers.
    world.append("a.log", "a line\n");
    let mut command = Command::new(crate::support::VEDETTE);
    command
        .args(["run", "--config"])
        .arg(world.path("vedette.toml"))
        .env("SSL_CERT_FILE", &right)
        .env_remove("SSL_CERT_DIR");
    let _agent = Process::start(&mut command, &world.path("agent.log"));
    eventually("the line", || (world.count("syslog") == 1).then_some(()));
}

/// `run` could never deliver there; the handshake ends before the token is sent, and no key remains.
#[test]
fn a_server_whose_certificate_names_no_geography_is_no_workspace() {
    let world = World::new();
    let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
    let (certificate, key) = (world.path("plain.pem"), world.path("plain.key"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth", "-CA"])
        .arg(world.path("workspace/ca.pem"))
        .arg("-CAkey")
        .arg(world.path("workspace/ca.key"))
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    let Ok(made) = made else {
        println!("skipped: there is no openssl");
        return;
    };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut server = Command::new("openssl");
    server.args(["s_server", "-www", "-accept", &port.to_string(), "-cert"]).arg(&certificate).arg("-key").arg(&key);
    let _server = Process::start(&mut server, &world.path("openssl.log"));
    eventually("the server", || TcpStream::connect(("127.0.0.1", port)).ok());
    let (token, ca) =
        (world.token("token").display().to_string(), world.path("workspace/ca.pem").display().to_string());
    let url = format!("https://localhost:{port}");
    let output = world.vedette(&["enroll", "--workspace", &url, "--ca", &ca, "--token-file", &token]);
    let message = crate::support::refusal(&output, 1);
    assert!(message.contains("names no geography"), "{message}");
    assert!(!world.path("identity/key.pem").exists());
}
