//! `syslog_listener`: what programs and devices send to a socket: RFC 5424 and RFC 3164 datagrams, UDP (RFC 5426) or a
//! unix datagram socket like `/dev/log`.
//!
//! What is sent cannot be asked for again: where the queue takes nothing for two seconds, datagrams are dropped and counted
//! (`queue_full`) until it does again. A sender on the unix socket waits while the socket's buffer is full; UDP datagrams that the kernel
//! dropped are counted from `/proc/net/udp` (`kernel_loss`). What was received and not yet committed when the agent is
//! killed is lost, one batch at the most.

use crate::{
    Cx, Outlet,
    spec::{self, BuildError, Class, CollectError, Plan, Spec, Watch},
    syslog::parse::{self, Origin},
};
use jiff::tz::TimeZone;
use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
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

pub(crate) const SPEC: Spec = Spec {
    id: "syslog_listener",
    class: Class::Event,
    kind: "syslog",
    summary: "syslog datagrams sent to a socket; off by default",
    reads: "the sockets of `datagram` and `udp`; ports below 1024 take CAP_NET_BIND_SERVICE",
    check: spec::check::<Settings>,
    schema: spec::schema::<Settings>,
    defaults: spec::defaults::<Settings>,
    build,
    skip: None,
};

/// The longest datagram that UDP can carry.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// A chunk is handed over at this size, or when nothing more waits.
const CHUNK_BYTES: usize = 64 << 10;
/// The sockets are listened to in pieces of this length, to see a stop.
const LISTEN: Duration = Duration::from_millis(250);
/// How often the kernel is asked what it dropped.
const LOSS_EVERY: Duration = Duration::from_secs(5);
/// Asked of the kernel for bursts; it gives what net.core.rmem_max allows.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// Settings of `[collectors.syslog_listener]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether it runs.
    enabled: bool,
    /// Path of a unix datagram socket, as in "/run/vedette/syslog.sock"; made with mode 0666, as /dev/log is.
    #[serde(skip_serializing_if = "Option::is_none")]
    datagram: Option<PathBuf>,
    /// Address of a UDP socket, as in "127.0.0.1:5514".
    #[serde(skip_serializing_if = "Option::is_none")]
    udp: Option<SocketAddr>,
}

fn build(table: toml::Table, cx: &Cx) -> Result<Plan, BuildError> {
    let settings: Settings = spec::parse(SPEC.id, table)?;
    if !settings.enabled || cx.once.is_some() {
        return Ok(Plan::Off);
    }
    let wrong = |message: &str| Err(BuildError { collector: SPEC.id, message: message.to_owned() });
    match &settings.datagram {
        None if settings.udp.is_none() => return wrong("enabled: needs datagram, udp or both"),
        Some(path) if !path.is_absolute() => return wrong("datagram: must be an absolute path"),
        // sun_path of unix(7) has 108 bytes, the last of them zero.
        Some(path) if path.as_os_str().len() > 107 => return wrong("datagram: a socket's path has at most 107 bytes"),
        _ => {}
    }
    Ok(Plan::Watch(Box::new(Listener { settings })))
}

struct Listener {
    settings: Settings,
}

/// A socket that is listened to, and what came of it.
struct Open {
    socket: Socket,
    source: Arc<Source>,
    /// Position of the next record.
    next: u64,
    /// What the kernel had dropped when it was asked last.
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

    /// The length of the next datagram, and who sent it.
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

/// Who sent a datagram, as the kernel says.
enum Sender {
    Unknown,
    Address(SocketAddr),
    Process { uid: u32, pid: u32 },
}

/// A datagram as a record; absent where there is nothing in it.
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
    fn watch(&mut self, cx: &Cx, outlet: &mut Outlet) -> Result<(), CollectError> {
        let zone = crate::host::time_zone(cx).1;
        let mut open = Vec::new();
        if let Some(path) = &self.settings.datagram {
            let socket = unix(path).map_err(|err| CollectError::read(path.display().to_string(), err))?;
            open.push(Open::new(Socket::Unix(socket), path.display().to_string()));
        }
        if let Some(address) = self.settings.udp {
            let socket = udp(address).map_err(|err| CollectError::read(format!("UDP {address}"), err))?;
            open.push(Open::new(socket, format!("udp:{address}")));
        }
        let (mut block, mut asked) = (vec![0; DATAGRAM_BYTES_MAX], Instant::now());
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
                open.drain(cx, outlet, &zone, &mut block)?;
            }
            if asked.elapsed() >= LOSS_EVERY {
                asked = Instant::now();
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

impl Open {
    fn new(socket: Socket, name: String) -> Self {
        // Positions are a running number, another in each run.
        let id = format!("run:{:016x}", fastrand::u64(..));
        let source = Arc::new(Source { collector: SPEC.id, id, name: Some(name) });
        // A new socket has lost nothing: what the kernel drops before it is asked first counts as well.
        Self { socket, source, next: 0, lost: 0 }
    }

    /// Everything that waits, in chunks.
    fn drain(&mut self, cx: &Cx, outlet: &Outlet, zone: &TimeZone, block: &mut [u8]) -> Result<(), CollectError> {
        loop {
            let (now, mut chunk) = (cx.now(), Chunk::new(Arc::clone(&self.source)));
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

    /// Count what the kernel dropped since it was asked last.
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
    /// Datagrams that the kernel dropped since the socket was opened: the last field of its line in /proc/net/udp.
    fn lost(&self) -> u64 {
        let Socket::Udp(_, inode) = self else { return 0 };
        ["/proc/net/udp", "/proc/net/udp6"]
            .iter()
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .find_map(|table| lost_of(&table, *inode))
            .unwrap_or(0)
    }
}

fn lost_of(table: &str, inode: u64) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(9)?.parse::<u64>().ok()? == inode).then(|| fields.last()?.parse().ok())?
    })
}

fn unix(path: &Path) -> io::Result<UnixDatagram> {
    // Only a socket may be in the way: one that is left from a run that was killed.
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
        std::fs::create_dir_all(dir)?;
        // Whoever is to write to the socket has to come to it, whatever the agent's umask is.
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
    }
    let socket = UnixDatagram::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    socket.set_nonblocking(true)?;
    // Anybody may write here: the kernel says with each datagram who did.
    rustix::net::sockopt::set_socket_passcred(&socket, true)?;
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES);
    Ok(socket)
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
