//! One sample of every record that can be emitted, with every optional field filled.

use std::collections::BTreeMap;
use vedette_wire::{
    AgentId, Batch, Chunk, Epoch, Header, LaneName, Ledger, OrganizationId, OsFamily, Position, Reason, Record, Source,
    SourceRef,
    body::*,
    geo::WorkspaceGeo,
    record::{HostLabel, Predecessor},
};

const T0: i64 = 1_795_404_079_123_456_789;

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn snapshot(change: Change) -> Option<Snapshot> {
    (change == Change::Snapshot).then(|| Snapshot { id: "s1".to_owned(), count: 2 })
}

fn host() -> Host {
    Host {
        os: OperatingSystem {
            family: OsFamily::Linux,
            name: "Debian GNU/Linux".to_owned(),
            id: some("debian"),
            version: some("12"),
            build: some("20261101"),
            pretty_name: some("Debian GNU/Linux 12 (bookworm)"),
            edition: some("server"),
            kernel: some("6.18.44"),
            architecture: some("x86_64"),
        },
        hostname: "web1".to_owned(),
        domain: some("example.net"),
        machine_id: some("0123456789abcdef0123456789abcdef"),
        boot_id: some("6f1d0ef5-3c0e-4b1e-8d3f-1f2e3d4c5b6a"),
        boot_time: Some(T0 - 1_000_000_000_000),
        time_zone: some("Europe/Berlin"),
        cpu: Cpu { model: some("a processor"), logical: Some(8), cores: Some(4) },
        memory_bytes: Some(16 << 30),
        virtualization: some("kvm"),
        container: some("podman"),
        firmware: Firmware { vendor: some("SeaBIOS"), version: some("1.16"), date: some("04/01/2014") },
        hardware: Hardware {
            vendor: some("QEMU"),
            product: some("Standard PC"),
            serial: some("42"),
            uuid: some("11111111-2222-3333-4444-555555555555"),
        },
        cloud: Some(Box::new(CloudInstance {
            cloud: "aws".to_owned(),
            region: some("eu-central-1"),
            zone: some("eu-central-1a"),
            instance_id: some("i-0123456789abcdef0"),
            instance_type: some("t3.micro"),
            image: some("ami-0123456789abcdef0"),
            account: some("123456789012"),
            tags: BTreeMap::from([("team".to_owned(), "blue".to_owned())]),
        })),
    }
}

fn process(change: Change) -> Process {
    Process {
        change,
        snapshot: snapshot(change),
        uid: "6f1d0ef5/812/4711".to_owned(),
        pid: 812,
        ppid: 1,
        name: "nginx".to_owned(),
        path: some("/usr/sbin/nginx"),
        deleted: true,
        args: vec!["nginx".to_owned(), "-g".to_owned(), "daemon off;".to_owned()],
        args_cut: false,
        user: Some(Principal { id: PrincipalId::Number(33), name: some("www-data") }),
        group: Some(Principal { id: PrincipalId::Number(33), name: None }),
        started: Some(T0),
        cwd: some("/"),
        session: Some(812),
        cgroup: some("/system.slice/nginx.service"),
        container: some("4f5e6d"),
        namespaces: Namespaces { mnt: Some(1), pid: Some(2), net: Some(3), user: Some(4) },
        kernel: true,
        state: Some(ProcessState::Sleeping),
    }
}

fn address(change: Change) -> Address {
    Address {
        change,
        snapshot: snapshot(change),
        interface: "eth0".to_owned(),
        interface_index: 2,
        interface_kind: some("ethernet"),
        state: "up".to_owned(),
        mac: some("02:00:00:00:00:01"),
        mtu: Some(1500),
        address: some("192.0.2.7"),
        prefix: Some(24),
        scope: some("universe"),
        gateways: vec!["192.0.2.1".to_owned()],
        dns: vec!["192.0.2.53".to_owned()],
    }
}

fn session(change: Change) -> Session {
    Session {
        change,
        snapshot: snapshot(change),
        id: "3".to_owned(),
        user: "alice".to_owned(),
        user_id: Some(1000),
        terminal: some("pts/0"),
        display: some(":0"),
        remote_host: some("192.0.2.99"),
        since: Some(T0),
        service: some("sshd"),
        class: some("user"),
        source: "logind".to_owned(),
        leader: Some(4242),
    }
}

fn syslog(message: &str) -> Syslog {
    let head = "<86>1 2026-11-23T03:21:19.5Z web1 sshd 812 ID47 [a@1 b=\"c\"] ";
    let span = |part: &str| {
        let at = head.find(part).expect("the part is in the head") as u32;
        Some(Span(at, at + part.len() as u32))
    };
    let raw = format!("{head}{message}");
    Syslog {
        time: Some(T0),
        inferred: Inferred::Zone,
        facility: Some(10),
        severity: Some(6),
        host: span("web1"),
        app: span("sshd"),
        pid: span("812"),
        message_id: span("ID47"),
        structured_data: span("[a@1 b=\"c\"]"),
        message: Some(Span(head.len() as u32, raw.len() as u32)),
        raw: raw.into_bytes(),
        part: None,
        unfinished: false,
        sender: None,
        sender_uid: None,
        sender_pid: None,
    }
}

fn journal(message: &str) -> Journal {
    Journal {
        message: message.to_owned(),
        time: T0,
        cursor: "s=1;i=2;b=3;m=4;t=5;x=6".to_owned(),
        priority: Some(6),
        facility: Some(10),
        identifier: some("sudo"),
        unit: some("ssh.service"),
        transport: some("syslog"),
        pid: Some(812),
        uid: Some(0),
        gid: Some(0),
        comm: some("sudo"),
        exe: some("/usr/bin/sudo"),
        cmd_line: some("sudo ls"),
        audit_session: Some(3),
        login_uid: Some(1000),
        hostname: some("web1"),
        boot_id: some("6f1d0ef53c0e4b1e8d3f1f2e3d4c5b6a"),
        message_id: some("fc2e22bc6ee647b6b90729ab34a250b1"),
        more: BTreeMap::from([("_CAP_EFFECTIVE".to_owned(), "0".to_owned())]),
    }
}

fn crash() -> Crash {
    Crash {
        file: "/var/lib/systemd/coredump/core.nginx.33.6f1d.812.1.zst".to_owned(),
        format: "systemd-coredump".to_owned(),
        size: 4096,
        sha256: some("00ff"),
        time: Some(T0),
        process: some("nginx"),
        pid: Some(812),
        path: some("/usr/sbin/nginx"),
        cmd_line: some("nginx -g daemon off;"),
        signal: Some(11),
        user_id: Some(33),
        unit: some("nginx.service"),
        package: some("nginx 1.22.1"),
        truncated: true,
    }
}

fn heartbeat() -> Heartbeat {
    Heartbeat {
        version: "0.1.0".to_owned(),
        policy_revision: 3,
        endpoint: some("https://workspace.example.net:8443"),
        endpoint_since: Some(T0),
        endpoint_why: some("preferred"),
        queue_bytes: 65536,
        queue_batches: 2,
        oldest_unsent: Some(T0),
        rss_bytes: Some(15 << 20),
        waiting: None,
        quarantined: 0,
        collectors: vec![CollectorHealth {
            id: "syslog".to_owned(),
            state: "running".to_owned(),
            emitted: 7,
            dropped: 1,
            why: some("cannot open /var/log/x"),
        }],
    }
}

fn artifact() -> Artifact {
    Artifact {
        request: "0190-a".to_owned(),
        path: "/bin/tool".to_owned(),
        offset: 512,
        data: vec![0, 1, 2],
        refused: None,
        whole: Some(WholeFile {
            size: 515,
            sha256: "ab".repeat(32),
            real_path: "/usr/bin/tool".to_owned(),
            mode: 0o100_755,
            user_id: 0,
            user: some("root"),
            group_id: 0,
            group: some("root"),
            accessed: T0,
            modified: T0,
            changed: T0,
            torn: true,
        }),
    }
}

fn container_log() -> ContainerLog {
    ContainerLog {
        message: b"GET / 200".to_vec(),
        time: Some(T0),
        stream: Some(Stream::Stdout),
        part: Some(1),
        unfinished: true,
        attributes: some("{\"tag\":\"web\"}"),
        container: Container {
            id: Some("0".repeat(64)),
            name: some("web"),
            image: some("registry.example.net/web:1"),
            namespace: some("shop"),
            pod: some("web-0"),
            pod_uid: some("6f1d0ef5-3c0e-4b1e-8d3f-1f2e3d4c5b6a"),
            restarts: Some(2),
        },
    }
}

fn lifecycle(event: LifecycleEvent) -> Lifecycle {
    Lifecycle {
        event,
        message: "started".to_owned(),
        version: "0.1.0".to_owned(),
        collector: some("syslog"),
        configuration: some("00ff"),
    }
}

/// Bodies that between them reach every class and activity that is emitted.
pub(crate) fn bodies() -> Vec<Body> {
    let mut all: Vec<Body> = vec![host().into(), crash().into(), heartbeat().into()];
    for change in [Change::Snapshot, Change::Start, Change::Change, Change::End] {
        all.push(process(change).into());
        all.push(address(change).into());
        all.push(session(change).into());
    }
    all.push(syslog("Server listening on 0.0.0.0 port 22.").into());
    all.push(syslog("Accepted publickey for alice from 192.0.2.7 port 51514 ssh2: ED25519 SHA256:abc").into());
    all.push(syslog("Failed password for root from 192.0.2.7 port 51514 ssh2").into());
    all.push(syslog("pam_unix(sshd:session): session closed for user alice").into());
    all.push(journal("COMMAND=/bin/ls").into());
    all.push(journal("pam_unix(sudo:session): session opened for user root(uid=0) by alice(uid=1000)").into());
    for event in [
        LifecycleEvent::Start,
        LifecycleEvent::Stop,
        LifecycleEvent::Configuration,
        LifecycleEvent::CollectorError,
        LifecycleEvent::CollectorRecovered,
    ] {
        all.push(lifecycle(event).into());
    }
    all.push(Unknown { raw: vec![0x81, 0xa1] }.into());
    // Bodies with nothing optional in them must render and validate as well.
    all.push(Host::default().into());
    all.push(Crash { file: "/core".to_owned(), ..Crash::default() }.into());
    all.push(Syslog { raw: b"not \xff syslog".to_vec(), ..Syslog::default() }.into());
    all.push(Journal::default().into());
    // What came after the golden batches stands at the end.
    all.push(artifact().into());
    all.push(container_log().into());
    all
}

/// A batch of all bodies.
pub(crate) fn batch() -> Batch {
    let bodies = bodies();
    let mut ledger = Ledger::default();
    ledger.emit("syslog", 40);
    ledger.drop("syslog", Reason::QueueFull, 2);
    let records: Vec<Record> = (0..)
        .zip(bodies)
        .map(|(at, body)| Record { source: 0, observed: T0, position: Position(at, at + 1), body })
        .collect();
    Batch {
        header: Header {
            version: vedette_wire::format_version(OsFamily::Linux),
            organization: OrganizationId("01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("a UUID")),
            agent: AgentId([7; 16]),
            lane: LaneName::Records,
            epoch: Epoch(0xfeed_0000_0000_0001),
            seq: 1,
            sealed: T0,
            geo: WorkspaceGeo::Europe,
            policy_revision: 3,
            agent_version: "0.1.0".to_owned(),
            host: HostLabel {
                os_family: OsFamily::Linux,
                hostname: "web1".to_owned(),
                os_name: "Debian GNU/Linux".to_owned(),
                os_version: some("12"),
                machine: some("4f1c0000000000000000000000000001"),
                boot: some("b0000000000000000000000000000001"),
            },
            sources: vec![SourceRef {
                collector: "syslog".to_owned(),
                id: "8:1:42:0011".to_owned(),
                name: some("/var/log/syslog"),
                reached: records.len() as u64,
                dropped: Vec::new(),
            }],
            records: records.len() as u32,
            ledger,
            lowest_held: 1,
            set_aside: Default::default(),
            predecessor: Some(Predecessor {
                epoch: Epoch(1),
                last_seq: 9,
                lowest_held: None,
                set_aside: Default::default(),
            }),
            cursors: Vec::new(),
            resealed: true,
            split_into: Vec::new(),
        },
        records,
    }
}

/// An empty chunk of a log file.
pub(crate) fn chunk() -> Chunk {
    Chunk::new(std::sync::Arc::new(Source { collector: "syslog", id: "8:1:42:0011".to_owned(), name: None }))
}

/// Whole lines of a log file, each as it stands there and as it is recognised.
pub(crate) fn whole_lines() -> Vec<(Vec<u8>, Syslog)> {
    let all = syslog("Server listening on 0.0.0.0 port 22.");
    let traditional = Syslog {
        raw: b"Nov 23 03:21:19 web1 kernel: up".to_vec(),
        time: Some(T0 / 1000 * 1000),
        inferred: Inferred::YearAndZone,
        host: Some(Span(16, 20)),
        app: Some(Span(21, 27)),
        message: Some(Span(29, 31)),
        ..Syslog::default()
    };
    let plain = Syslog { raw: b"not \xff syslog\0".to_vec(), ..Syslog::default() };
    let ends = [&b"\n"[..], b"\r\n"];
    [all, traditional, plain]
        .into_iter()
        .zip(ends.into_iter().cycle())
        .map(|(line, end)| ([&line.raw, end].concat(), line))
        .collect()
}
