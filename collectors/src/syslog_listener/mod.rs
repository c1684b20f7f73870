//! `syslog_listener`: receives RFC 5424 and RFC 3164 messages on a UDP socket (RFC 5426) or on a unix datagram socket like
//! `/dev/log`.
//!
//! Senders do not repeat messages: if the queue accepts nothing for two seconds, datagrams are dropped and counted
//! (`queue_full`) until it does. A sender on the unix socket waits while the socket's buffer is full. UDP datagrams that the
//! kernel drops are counted from `/proc/net/udp` (`kernel_loss`). Killing the agent loses what was received and not committed,
//! at most one batch.

use crate::{
    BuildError, CollectError, CollectorClass, CollectorContext, Outlet, Permission, Right,
    spec::{Collector, Plan, Spec, Watch, collector_settings},
    syslog::parse::{self, Origin},
};
use jiff::tz::TimeZone;
use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType,
        recvmsg,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    net::{SocketAddr, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::FileTypeExt, fs::MetadataExt, fs::PermissionsExt, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use vedette_wire::{Body, Chunk, Dropped, Position, Reason, Source, body::Syslog};

/// Maximum size of a UDP datagram.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// A chunk is emitted at this size, or when no datagrams wait.
const CHUNK_BYTES: usize = 64 << 10;
/// Maximum wait for datagrams between checks for a stop.
const LISTEN: Duration = Duration::from_millis(250);
/// Poll interval for the kernel's count of drops.
const LOSS_EVERY: Duration = Duration::from_secs(5);
/// Requested receive buffer, for bursts; net.core.rmem_max limits it.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// Settings of `[collectors.syslog_listener]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether the collector runs.
    enabled: bool,
    /// Path of a unix datagram socket, as in "/run/vedette/syslog.sock"; created with mode 0666, like /dev/log.
    #[serde(skip_serializing_if = "Option::is_none")]
    datagram: Option<PathBuf>,
    /// Address of a UDP socket, as in "127.0.0.1:5514".
    #[serde(skip_serializing_if = "Option::is_none")]
    udp: Option<SocketAddr>,
}

collector_settings!(Settings);

/// The collector.
enum Definition {}

impl Collector for Definition {
    type Settings = Settings;
    const ID: &'static str = "syslog_listener";
    const CLASS: CollectorClass = CollectorClass::Event;
    const KIND: &'static str = "syslog";
    const SUMMARY: &'static str = "syslog datagrams sent to a socket; off by default";
    const READS: &'static str = "the sockets of `datagram` and `udp`";
    const PERMISSIONS: &'static [Permission] =
        &[Permission { any_of: &[Right::Capability("CAP_NET_BIND_SERVICE")], lost: "ports below 1024" }];

    fn build(settings: &Settings, context: &CollectorContext) -> Result<Plan, BuildError> {
        if context.once.is_some() {
            return Ok(Plan::Off);
        }
        let wrong = |message: &str| Err(BuildError { collector: SPEC.id, message: message.to_owned() });
        match &settings.datagram {
            None if settings.udp.is_none() => return wrong("enabled: needs datagram, udp or both"),
            Some(path) if !path.is_absolute() => return wrong("datagram: must be an absolute path"),
            // sun_path of unix(7) has 108 bytes with its NUL.
            Some(path) if path.as_os_str().len() > 107 => {
                return wrong("datagram: a socket's path has at most 107 bytes");
            }
            _ => {}
        }
        Ok(Plan::Watch(Box::new(Listener { settings: settings.clone() })))
    }
}

pub(crate) const SPEC: Spec = Spec::of::<Definition>();

struct Listener {
    settings: Settings,
}

/// A socket that receives messages.
struct ListenSocket {
    socket: Socket,
    source: Arc<Source>,
    /// Position of the next record.
    next: u64,
    /// The kernel's count of drops at the last poll.
    lost: u64,
}

enum Socket {
    Unix(UnixDatagram),
    Udp(UdpSocket, u64),
}

impl Socket {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Unix(socket) => socket.as_fd(),
            Socket::Udp(socket, _) => socket.as_fd(),
        }
    }

    /// Receives a datagram; returns its length and sender.
    fn receive(&self, into: &mut [u8]) -> io::Result<(usize, Sender)> {
        match self {
            Socket::Unix(socket) => {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let received = recvmsg(socket, &mut [IoSliceMut::new(into)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
                let sender = control.drain().find_map(|message| match message {
                    RecvAncillaryMessage::ScmCredentials(who) => Some(Sender::Process {
                        uid: who.uid.as_raw(),
                        pid: who.pid.as_raw_nonzero().get().cast_unsigned(),
                    }),
                    _ => None,
                });
                Ok((received.bytes, sender.unwrap_or(Sender::Unknown)))
            }
            Socket::Udp(socket, _) => {
                socket.recv_from(into).map(|(length, address)| (length, Sender::Address(address)))
            }
        }
    }
}

/// Sender of a datagram, from the kernel.
enum Sender {
    Unknown,
    Address(SocketAddr),
    Process { uid: u32, pid: u32 },
}

/// Converts a datagram to a record; absent if it is empty.
fn record(datagram: &[u8], sender: &Sender, now: i64, zone: &TimeZone) -> Option<Syslog> {
    let text = datagram.trim_ascii_end();
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.is_empty() {
        return None;
    }
    let origin = if matches!(sender, Sender::Address(_)) { Origin::Any } else { Origin::LocalSocket };
    let line = parse::line(text, origin, now, zone);
    Some(match *sender {
        Sender::Unknown => line,
        Sender::Address(address) => Syslog { sender: Some(address.to_string()), ..line },
        Sender::Process { uid, pid } => Syslog { sender_uid: Some(uid), sender_pid: Some(pid), ..line },
    })
}

impl Watch for Listener {
    fn watch(&mut self, context: &CollectorContext, outlet: &mut Outlet) -> Result<(), CollectError> {
        let zone = crate::host::time_zone(context).1;
        let mut open = Vec::new();
        if let Some(path) = &self.settings.datagram {
            let socket = unix(path).map_err(|err| CollectError::read(path.display().to_string(), err))?;
            open.push(ListenSocket::new(Socket::Unix(socket), path.display().to_string()));
        }
        if let Some(address) = self.settings.udp {
            let socket = udp(address).map_err(|err| CollectError::read(format!("UDP {address}"), err))?;
            open.push(ListenSocket::new(socket, format!("udp:{address}")));
        }
        let (mut block, mut loss_read) = (vec![0; DATAGRAM_BYTES_MAX], Instant::now());
        while !outlet.is_stopped() {
            let failed = |err: io::Error| CollectError::read("a syslog socket", err);
            let mut fds: Vec<PollFd<'_>> =
                open.iter().map(|open| PollFd::from_borrowed_fd(open.socket.fd(), PollFlags::IN)).collect();
            let timeout = rustix::time::Timespec::try_from(LISTEN).map_err(|err| failed(io::Error::other(err)))?;
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(err) => return Err(failed(err.into())),
            }
            for open in &mut open {
                open.drain(context, outlet, &zone, &mut block)?;
            }
            if loss_read.elapsed() >= LOSS_EVERY {
                loss_read = Instant::now();
                for open in &mut open {
                    open.kernel_loss(outlet)?;
                }
            }
        }
        if let Some(path) = &self.settings.datagram {
            drop(std::fs::remove_file(path));
        }
        Ok(())
    }
}

impl ListenSocket {
    fn new(socket: Socket, name: String) -> Self {
        // Positions are running numbers, with a new source in each run.
        let id = format!("run:{:016x}", fastrand::u64(..));
        let source = Arc::new(Source { collector: SPEC.id, id, name: Some(name) });
        // A new socket has no drops, so those before the first poll are counted.
        Self { socket, source, next: 0, lost: 0 }
    }

    /// Emits all waiting datagrams in chunks.
    fn drain(
        &mut self,
        context: &CollectorContext,
        outlet: &Outlet,
        zone: &TimeZone,
        block: &mut [u8],
    ) -> Result<(), CollectError> {
        loop {
            let (now, mut chunk) = (context.now(), Chunk::new(Arc::clone(&self.source)));
            let mut more = true;
            while chunk.bodies.len() < CHUNK_BYTES {
                let Ok((length, sender)) = self.socket.receive(block) else {
                    more = false;
                    break;
                };
                if let Some(line) = record(&block[..length], &sender, now, zone) {
                    chunk.push(now, Position(self.next, self.next + 1), &Body::Syslog(line));
                    self.next += 1;
                }
            }
            if !chunk.entries.is_empty() {
                outlet.offer(chunk, SPEC.class)?;
            }
            if !more || outlet.is_stopped() {
                return Ok(());
            }
        }
    }

    /// Counts datagrams that the kernel dropped since the last poll.
    fn kernel_loss(&mut self, outlet: &Outlet) -> Result<(), CollectError> {
        let lost = self.socket.lost();
        let count = lost.saturating_sub(std::mem::replace(&mut self.lost, lost));
        if count == 0 {
            return Ok(());
        }
        let mut chunk = Chunk::new(Arc::clone(&self.source));
        chunk.dropped.push(Dropped { reason: Reason::KernelLoss, count, positions: None });
        outlet.offer(chunk, SPEC.class)
    }
}

impl Socket {
    /// Number of datagrams dropped since the socket was opened: the last field of its line in /proc/net/udp.
    fn lost(&self) -> u64 {
        let Socket::Udp(_, inode) = self else { return 0 };
        ["/proc/net/udp", "/proc/net/udp6"]
            .iter()
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .find_map(|table| kernel_drops(&table, *inode))
            .unwrap_or(0)
    }
}

fn kernel_drops(table: &str, inode: u64) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(9)?.parse::<u64>().ok()? == inode).then(|| fields.last()?.parse().ok())?
    })
}

fn unix(path: &Path) -> io::Result<UnixDatagram> {
    // Replaces only a socket, which a killed run has left.
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
        std::fs::create_dir_all(dir)?;
        // Writers must reach the socket, whatever the agent's umask is.
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    // Anyone can write here, so the kernel names the sender of each datagram: from the first one on, as senders find the socket
    // once it is bound.
    rustix::net::sockopt::set_socket_passcred(&socket, true)?;
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES);
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(socket.into())
}

fn udp(address: SocketAddr) -> io::Result<Socket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES);
    let inode = std::fs::File::from(socket.as_fd().try_clone_to_owned()?).metadata()?.ino();
    Ok(Socket::Udp(socket, inode))
}

#[cfg(test)]
mod tests;
