//! A TCP proxy with faults of networks.

use anyhow::Result;
use parking_lot::Mutex;
use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// What the proxy does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// Forwards everything.
    Pass,
    /// Closes new and open connections.
    Refuse,
    /// Forwards nothing in either direction, and closes nothing: half-open connections.
    BlackHole,
    /// Closes a connection after a number of bytes to the workspace.
    CutAfter(u64),
    /// Drops the workspace's answers on open connections, and then closes these.
    LoseAnswers,
    /// Limits bytes per second to the workspace.
    Slow(u64),
}

#[derive(Debug)]
struct Shared {
    mode: Mutex<(Mode, Instant)>,
    target: Mutex<SocketAddr>,
    /// Number of times that a fault took effect.
    bitten: AtomicU64,
}

impl Shared {
    fn mode(&self) -> (Mode, Instant) {
        *self.mode.lock()
    }
}

/// A proxy on a free loopback port, until the process ends.
#[derive(Debug, Clone)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Proxy {
    /// Starts a proxy to an address.
    ///
    /// # Errors
    /// No port can be opened.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            mode: Mutex::new((Mode::Pass, Instant::now())),
            target: Mutex::new(target),
            bitten: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&accepting);
                std::thread::spawn(move || drop(connection(client, &shared)));
            }
        });
        Ok(Self { shared, address })
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the mode.
    pub fn set(&self, mode: Mode) {
        *self.shared.mode.lock() = (mode, Instant::now());
    }

    /// Sets the target address.
    pub fn aim(&self, target: SocketAddr) {
        *self.shared.target.lock() = target;
    }

    /// Number of times that a fault took effect.
    pub fn bitten(&self) -> u64 {
        self.shared.bitten.load(Ordering::Acquire)
    }
}

fn connection(client: TcpStream, shared: &Arc<Shared>) -> Result<()> {
    let opened = Instant::now();
    if shared.mode().0 == Mode::Refuse {
        shared.bitten.fetch_add(1, Ordering::AcqRel);
        return Ok(());
    }
    let target = *shared.target.lock();
    let server = TcpStream::connect(target)?;
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        socket.set_nodelay(true)?;
    }
    let (from, to, up) = (client.try_clone()?, server.try_clone()?, Arc::clone(shared));
    std::thread::spawn(move || {
        drop(pump(from, to, &up, opened, true));
    });
    pump(server, client, shared, opened, false)
}

fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared, opened: Instant, up: bool) -> Result<()> {
    let close = |from: &TcpStream, to: &TcpStream| {
        drop(from.shutdown(Shutdown::Both));
        drop(to.shutdown(Shutdown::Both));
    };
    let (mut block, mut passed) = (vec![0; 16 << 10], 0_u64);
    loop {
        let (mode, since) = shared.mode();
        match mode {
            Mode::Refuse => break,
            Mode::BlackHole => {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            _ => {}
        }
        let got = match from.read(&mut block) {
            Ok(0) => break,
            Ok(got) => got,
            Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        // The mode may have changed while nothing arrived.
        match shared.mode().0 {
            Mode::LoseAnswers if !up && opened < since => {
                shared.bitten.fetch_add(1, Ordering::AcqRel);
                break;
            }
            Mode::CutAfter(bytes) if up && passed + got as u64 > bytes => {
                shared.bitten.fetch_add(1, Ordering::AcqRel);
                break;
            }
            Mode::Slow(rate) if up => std::thread::sleep(Duration::from_secs_f64(got as f64 / rate as f64)),
            _ => {}
        }
        if to.write_all(&block[..got]).is_err() {
            break;
        }
        passed += got as u64;
    }
    close(&from, &to);
    Ok(())
}
