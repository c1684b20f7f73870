//! Faults caused by neighbours: organizations, peers, users of the host, and a hostile workspace.
//!
//! The longest wait is that of the quiet agent beside them.

use crate::campaign::{Campaign, Row, Run, Setup, number};
use anyhow::{Context, Result, bail};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::{FileExt, symlink},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use vedette_benches::{numbered::Rotation, peer, world::peak_bytes};

/// Memory of `serve`.
const MEMORY: &str = "1GiB";
/// Time limit until a loud organization's batches are in the tables.
const TABLES_TIMEOUT: Duration = Duration::from_secs(300);

/// A quiet agent that writes 500 lines per second, at a workspace with limited memory.
fn quiet(config: &str) -> Result<Run> {
    let mut run = Run::new(&Setup { config, rate: 500, rotation: Rotation::Rename(20_000) })?;
    run.world.stop_serving();
    run.world.serve_with("127.0.0.1:0", &["--memory", MEMORY])?;
    run.proxy.aim(run.world.address()?.parse()?);
    run.start()?;
    run.until_stored(500)?;
    Ok(run)
}

/// Runs asynchronous clients.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

fn path(seq: u64) -> String {
    format!("records/0000000000000007/{seq}")
}

/// Row of a fault: a remark, the peak resident set, and the time until all lines were stored after it.
fn note(row: Result<Row>, what: &str, peak: u64, healed: Instant) -> Result<Option<Row>> {
    let mut row = row?;
    row.note = format!("{what}, VmHWM {} MiB, {:.1} s to recover", peak >> 20, healed.elapsed().as_secs_f64());
    Ok(Some(row))
}

/// Batches of a loud organization at the limit of their expansion; one that would expand to gigabytes is refused.
pub(crate) fn bombs(campaign: &Campaign) -> Result<Option<Row>> {
    let run = quiet("")?;
    let loud = run.world.other("loud")?;
    let times = campaign.of(48, 6);
    let (mut peak, mut healed) = (0, Instant::now());
    let row = run.judge(|run| {
        let host = loud.lines(1, 3000, "x", 1, |header| header.host.hostname = "h".repeat(1 << 20));
        let lines = |seq| if seq % 2 == 0 { (40, "l".repeat(1 << 20)) } else { (200_000, "short".to_owned()) };
        block_on(async {
            if loud.put(&path(1), host).await.status != 422 {
                bail!("host names of 1 MiB were taken");
            }
            for seq in 1..=times {
                let (count, line) = lines(seq);
                let answer = loud.put(&path(seq), loud.lines(seq, count, &line, 1, |_| ())).await;
                if answer.status != 200 {
                    bail!("batch {seq} was not taken: {answer:?}");
                }
            }
            Ok(())
        })??;
        // Waits until all are in the tables, which takes the memory.
        let (all, until) = ((1..=times).map(|seq| lines(seq).0).sum::<u64>(), Instant::now() + TABLES_TIMEOUT);
        loop {
            // A query over this much that is not in the tables yet may exceed its time.
            let rows = run.world.query_other("SELECT count(*) AS stored FROM syslog").unwrap_or_default();
            let stored = rows.first().map_or(0, |row| number(row, "stored"));
            if stored >= all {
                break;
            }
            if Instant::now() > until {
                bail!("{stored} of {all} lines of the loud one are in the tables");
            }
            std::thread::sleep(Duration::from_secs(2));
        }
        (peak, healed) = (run.world.serve_peak_bytes()?, Instant::now());
        Ok(times)
    });
    note(row, &format!("in the tables, serve with {MEMORY}"), peak, healed)
}

pub(crate) fn holes(campaign: &Campaign) -> Result<Option<Row>> {
    let run = quiet("")?;
    let loud = run.world.other("loud")?;
    let times = campaign.of(48, 12);
    let (mut peak, mut healed) = (0, Instant::now());
    let row = run.judge(|run| {
        // Each has as many position runs as allowed; one with more is refused.
        let batches: Vec<_> = (1..=times).map(|seq| (seq, loud.lines(seq, 2000, "x", 2, |_| ()))).collect();
        let ragged = loud.lines(1, 20_000, "x", 2, |_| ());
        block_on(async {
            let loud = Arc::new(loud);
            if loud.put(&path(1), ragged).await.status != 413 {
                bail!("20,000 runs were taken");
            }
            let mut sending = tokio::task::JoinSet::new();
            for (seq, sealed) in batches {
                let loud = Arc::clone(&loud);
                sending.spawn(async move { loud.put(&path(seq), sealed).await.status });
            }
            while let Some(status) = sending.join_next().await {
                if status? != 200 {
                    bail!("a batch that is as ragged as may be was not taken");
                }
            }
            Ok(())
        })??;
        healed = Instant::now();
        peak = run.world.serve_peak_bytes()?;
        Ok(times)
    });
    note(row, "all at once", peak, healed)
}

pub(crate) fn connections(campaign: &Campaign) -> Result<Option<Row>> {
    let run = quiet("")?;
    let ca = fs::read(run.world.path("workspace/ca.pem"))?;
    let (mut peak, mut healed, mut held, mut enrolled) = (0, Instant::now(), 0, 0);
    let junk = run.world.other("junk")?;
    let row = run.judge(|run| {
        let address = run.world.address()?;
        let until = Instant::now() + Duration::from_secs(campaign.of(60, 10));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<()> {
            let hold = scope.spawn(|| {
                let (mut open, mut made) = (std::collections::VecDeque::new(), 0);
                while !stop.load(Ordering::Relaxed) {
                    // Closed connections are replaced.
                    if let Ok(connection) = peer::silent(&ca, &address) {
                        open.push_back(connection);
                        made += 1;
                    }
                    if open.len() > 1000 {
                        open.pop_front();
                    }
                }
                made
            });
            let nonsense = serde_json::json!({"token": "nonsense", "csr": "", "hostname": "h", "version": "1"});
            let done = (|| {
                while Instant::now() < until {
                    block_on(async {
                        for _ in 0..20 {
                            junk.post("enroll", &nonsense).await;
                        }
                    })?;
                    run.world.other(&format!("honest-{enrolled}"))?;
                    enrolled += 1;
                }
                Ok(())
            })();
            stop.store(true, Ordering::Relaxed);
            held = hold.join().expect("it does not panic");
            done
        })?;
        healed = Instant::now();
        peak = run.world.serve_peak_bytes()?;
        Ok(1)
    });
    note(row, &format!("{held} connections were made; {enrolled} honest enrollments, none refused"), peak, healed)
}

/// Files of another user in the directory of the log: a flood while delivery is slow, a sparse file of a terabyte, and more
/// files than descriptors.
pub(crate) fn files(campaign: &Campaign) -> Result<Option<Row>> {
    let (limit, flood_bytes) = campaign.of((512, 3_u64 << 30), (64, 128 << 20));
    let config = format!("[transport]\nqueue_bytes_max = \"{limit}MiB\"\n");
    let setup = Setup { config: &config, rate: 500, rotation: Rotation::Rename(20_000) };
    let mut run = Run::with_glob(&setup, "*.log")?;
    let dir = run.world.path("log");
    for number in 0..400 {
        fs::write(dir.join(format!("many-{number}.log")), format!("one of many {number}\n"))?;
    }
    run.start()?;
    let pid = run.agent.as_ref().context("it runs")?.id();
    let limited = Command::new("prlimit").args(["--nofile=256:256", "--pid", &pid.to_string()]).status()?;
    if !limited.success() {
        bail!("prlimit cannot set a limit");
    }
    run.until_stored(500)?;
    // Slow enough that the flood fills its share even if a busy machine writes and reads it slowly.
    let speed = campaign.of(4_000_000, 400_000);
    run.proxy.set(vedette_benches::proxy::Mode::Slow(speed));
    let (mut peak, mut healed, mut waited) = (0, Instant::now(), false);
    let row = run.judge(|run| {
        File::create(dir.join("nothing.log"))?.write_all_at(b"behind a terabyte\n", 1 << 40)?;
        let mut flood = File::create(dir.join("flood.log"))?;
        let mut block = vec![0; 1 << 20];
        for _ in 0..flood_bytes >> 20 {
            block.iter_mut().for_each(|byte| *byte = fastrand::alphanumeric() as u8);
            block.chunks_mut(200).for_each(|line| *line.last_mut().expect("not empty") = b'\n');
            flood.write_all(&block)?;
        }
        let began = Instant::now();
        let (least, most) = (Duration::from_secs(campaign.of(90, 10)), Duration::from_secs(300));
        while began.elapsed() < least || !waited && began.elapsed() < most {
            std::thread::sleep(Duration::from_millis(500));
            let status = run.world.status()?.context("the agent answers")?;
            waited |= status.to_string().contains("flood.log waits");
            peak = peak.max(peak_bytes(pid)?);
        }
        healed = Instant::now();
        if !waited {
            bail!("the flood did not wait for its share of the queue");
        }
        Ok(1)
    });
    note(
        row,
        &format!("{} MiB of flood at {} MB/s, queue of {limit} MiB; agent", flood_bytes >> 20, speed as f64 / 1e6),
        peak,
        healed,
    )
}

pub(crate) fn links(campaign: &Campaign) -> Result<Option<Row>> {
    let setup = Setup { rate: 500, ..Setup::default() };
    let mut run = Run::with_glob(&setup, "**/*.log")?;
    let dir = run.world.path("log");
    for (name, to) in [("one", "two"), ("two", "one"), ("self", "."), ("up", "..")] {
        symlink(to, dir.join(name))?;
    }
    fs::create_dir(dir.join("deep"))?;
    symlink("../deep", dir.join("deep/again"))?;
    symlink("..", dir.join("deep/up"))?;
    run.start()?;
    let pid = run.agent.as_ref().context("it runs")?.id();
    let (mut peak, mut healed) = (0, Instant::now());
    let row = run.judge(|run| {
        std::thread::sleep(Duration::from_secs(campaign.of(30, 8)));
        (peak, healed) = (peak_bytes(pid)?, Instant::now());
        run.until_stored(500)?;
        Ok(1)
    });
    note(row, "agent", peak, healed)
}

/// A server with the workspace's key answers every request with an endless body.
pub(crate) fn endless(campaign: &Campaign) -> Result<Option<Row>> {
    // Queued lines are read again, so the file must remain.
    let mut run = Run::new(&Setup { rate: 500, rotation: Rotation::Never, ..Setup::default() })?;
    let hostile = Hostile::start(&run.world.path("workspace"))?;
    run.proxy.aim(hostile.address.parse()?);
    run.start()?;
    let pid = run.agent.as_ref().context("it runs")?.id();
    let (mut peak, mut healed) = (0, Instant::now());
    let row = run.judge(|run| {
        // It also starts after a lost queue, and asks for positions.
        std::thread::sleep(Duration::from_secs(campaign.of(40, 8)));
        peak = peak_bytes(pid)?;
        run.kill()?;
        fs::remove_file(run.world.path("state/records.redb"))?;
        run.start()?;
        let restarted = run.agent.as_ref().context("it runs")?.id();
        std::thread::sleep(Duration::from_secs(campaign.of(40, 8)));
        peak = peak.max(peak_bytes(restarted)?);
        run.proxy.aim(run.world.address()?.parse()?);
        run.proxy.set(vedette_benches::proxy::Mode::Refuse);
        std::thread::sleep(Duration::from_millis(200));
        run.proxy.set(vedette_benches::proxy::Mode::Pass);
        healed = Instant::now();
        Ok(2)
    });
    let (requests, bytes) = (hostile.requests.load(Ordering::Relaxed), hostile.bytes.load(Ordering::Relaxed));
    note(row, &format!("{requests} requests, {} MiB of answers were taken; agent", bytes >> 20), peak, healed)
}

/// Endless answers, until the process ends.
struct Hostile {
    address: String,
    requests: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

impl Hostile {
    fn start(workspace: &Path) -> Result<Self> {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(&fs::read(workspace.join("server.pem"))?).collect();
        let key = PrivateKeyDer::from_pem_slice(&fs::read(workspace.join("server.key"))?)?;
        let config = Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(chain?, key)?);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (requests, bytes) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let hostile = Self { address: listener.local_addr()?.to_string(), requests, bytes };
        let (requests, bytes) = (Arc::clone(&hostile.requests), Arc::clone(&hostile.bytes));
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (config, requests, bytes) = (Arc::clone(&config), Arc::clone(&requests), Arc::clone(&bytes));
                std::thread::spawn(move || drop(answer(socket, config, &requests, &bytes)));
            }
        });
        Ok(hostile)
    }
}

fn answer(socket: TcpStream, config: Arc<ServerConfig>, requests: &AtomicU64, bytes: &AtomicU64) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, socket);
    let mut head = [0; 16 << 10];
    if stream.read(&mut head)? == 0 {
        return Ok(());
    }
    requests.fetch_add(1, Ordering::Relaxed);
    let text = String::from_utf8_lossy(&head).into_owned();
    // An answer that starts as expected, and does not end.
    let begin = if text.starts_with("GET /v1/positions") {
        r#"{"sources":["#
    } else if text.starts_with("GET /v1/policy") {
        r#"{"artifacts":["#
    } else {
        r#"{"duplicate":false,"policy_revision":18446744073709551615,"x":["#
    };
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")?;
    let block = r#"{"x":1},"#.repeat(8 << 10);
    let mut part = begin.to_owned();
    loop {
        write!(stream, "{:x}\r\n{part}\r\n", part.len())?;
        bytes.fetch_add(part.len() as u64, Ordering::Relaxed);
        part.clone_from(&block);
    }
}
