//! `artifacts`: files that the organization asks for, one at a time, where the host's own list of globs allows it.
//!
//! A request names a path. Symbolic links are followed first, and the path behind them has to be on the list; the file is
//! then opened without following any, and it is looked again what was opened. Only a regular file is sent, in pieces, with
//! owner, mode and times, and its digest with the last piece. The cursor is how much of it is durable: after a restart the
//! rest is sent.

use crate::{
    Cx, Outlet, Wake,
    settings::Bytes,
    spec::{self, BuildError, Class, CollectError, Plan, Spec, Watch},
};
use glob::{MatchOptions, Pattern};
use nix::unistd::{Gid, Group, Uid, User};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use vedette_wire::{
    Body, Chunk, Position, Source,
    body::{Artifact, WholeFile},
};

pub(crate) const SPEC: Spec = Spec {
    id: "artifacts",
    class: Class::Artifact,
    kind: "artifact",
    summary: "files that the organization asks for, where `allow` permits it; policy cannot switch it off",
    reads: "what is asked for and on the list `allow`; CAP_DAC_READ_SEARCH",
    check: spec::check::<Settings>,
    schema: spec::schema::<Settings>,
    defaults: spec::defaults::<Settings>,
    build,
    skip: None,
};

/// A piece of a file.
const PIECE_BYTES: usize = 512 << 10;
/// How often it is looked for requests where nobody wakes it.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// `**` crosses directories and `*` does not; a leading dot is a character like others (`.ssh`).
const MATCHING: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

/// Settings of `[collectors.artifacts]`. Policy cannot switch it off; the host may narrow it, down to nothing.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Globs of paths that may be sent; `**` crosses directories. The default: programs, service units, cron, the
    /// configuration of ssh and authorized keys, logs. Nothing that is a secret by itself: no keys, no password hashes.
    allow: Vec<String>,
    /// Bytes of one file.
    bytes_max: Bytes,
}

impl Default for Settings {
    fn default() -> Self {
        let allow = [
            "/usr/bin/*",
            "/usr/sbin/*",
            "/usr/local/bin/*",
            "/usr/local/sbin/*",
            "/usr/lib/systemd/**/*",
            "/etc/systemd/system/**/*",
            "/run/systemd/system/**/*",
            "/etc/init.d/*",
            "/etc/crontab",
            "/etc/cron.*/*",
            "/var/spool/cron/**/*",
            "/etc/ssh/ssh_config",
            "/etc/ssh/ssh_config.d/*",
            "/etc/ssh/sshd_config",
            "/etc/ssh/sshd_config.d/*",
            "/root/.ssh/authorized_keys",
            "/home/*/.ssh/authorized_keys",
            "/var/log/**/*",
        ];
        Self { allow: allow.map(str::to_owned).to_vec(), bytes_max: Bytes(1 << 30) }
    }
}

/// A request that was verified, with what the policy says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Its id.
    pub request: String,
    /// Path on the host.
    pub path: String,
    /// Globs that the policy limits requests to; none, there is no such limit.
    pub paths: Vec<String>,
    /// Bytes of one file that the policy allows.
    pub bytes_max: u64,
    /// Why it is refused before anything is looked at.
    pub refused: Option<String>,
}

/// Requests that wait, from the agent to this collector. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Requests(Arc<Mutex<Vec<Wanted>>>);

impl Requests {
    /// Have these answered, behind those that wait.
    pub fn add(&self, wanted: Vec<Wanted>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(wanted);
    }

    /// Those that wait.
    pub fn waiting(&self) -> Vec<Wanted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It has been handed over, whole or refused.
    fn answered(&self, request: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|wanted| wanted.request != request);
    }

    /// Ids of those that wait.
    pub fn ids(&self) -> Vec<String> {
        self.waiting().into_iter().map(|wanted| wanted.request).collect()
    }
}

fn build(table: toml::Table, cx: &Cx) -> Result<Plan, BuildError> {
    let settings: Settings = spec::parse(SPEC.id, table)?;
    let wrong = |message: String| BuildError { collector: SPEC.id, message };
    for glob in &settings.allow {
        Pattern::new(glob).map_err(|err| wrong(format!("allow: {glob:?} is not a glob: {err}")))?;
        if !glob.starts_with('/') {
            return Err(wrong(format!("allow: {glob:?} must be absolute, as in \"/var/log/*.log\"")));
        }
    }
    match (&cx.requests, cx.once) {
        (Some(requests), None) => Ok(Plan::Watch(Box::new(Artifacts { settings, requests: requests.clone() }))),
        _ => Ok(Plan::Off),
    }
}

struct Artifacts {
    settings: Settings,
    requests: Requests,
}

impl Watch for Artifacts {
    fn watch(&mut self, cx: &Cx, outlet: &mut Outlet) -> Result<(), CollectError> {
        loop {
            for wanted in self.requests.waiting() {
                let sent = cx.cursors.iter().find(|(id, _)| *id == wanted.request);
                let sent: Option<Sending> = sent.and_then(|(_, bytes)| rmp_serde::from_slice(bytes).ok());
                self.answer(cx, outlet, &wanted, sent.as_ref())?;
                if outlet.is_stopped() {
                    return Ok(());
                }
                self.requests.answered(&wanted.request);
            }
            if outlet.wait(LOOK_EVERY) == Wake::Stop {
                return Ok(());
            }
        }
    }
}

/// Why a file is not sent.
type Refusal = String;

impl Artifacts {
    /// Send a file, or why not.
    fn answer(&self, cx: &Cx, outlet: &Outlet, wanted: &Wanted, sent: Option<&Sending>) -> Result<(), CollectError> {
        let source =
            Arc::new(Source { collector: SPEC.id, id: wanted.request.clone(), name: Some(wanted.path.clone()) });
        let opened = match &wanted.refused {
            Some(why) => Err(why.clone()),
            None => self.open(cx, wanted),
        };
        let refused = match opened {
            Ok((file, real)) => match self.send(cx, outlet, wanted, &source, (file, real), sent)? {
                Ok(()) => return Ok(()),
                Err(why) => why,
            },
            Err(why) => why,
        };
        tracing::warn!(path = wanted.path, why = refused, "an artifact was asked for and is not sent");
        let body = Artifact {
            request: wanted.request.clone(),
            path: wanted.path.clone(),
            refused: Some(refused),
            ..Artifact::default()
        };
        let mut chunk = Chunk::new(source);
        let from = sent.map_or(0, |sent| sent.offset);
        chunk.push(cx.now(), Position(from, from + 1), &Body::from(body));
        chunk.forget.push(wanted.request.clone());
        outlet.emit(chunk)
    }

    fn matches(globs: &[String], path: &str) -> bool {
        globs.iter().any(|glob| Pattern::new(glob).is_ok_and(|glob| glob.matches_with(path, MATCHING)))
    }

    /// The file, and its path behind symbolic links as the host sees it.
    fn open(&self, cx: &Cx, wanted: &Wanted) -> Result<(File, String), Refusal> {
        if !wanted.path.starts_with('/') {
            return Err("the path is not absolute".to_owned());
        }
        let failed = |err: io::Error| format!("it cannot be opened: {err}");
        let found = cx.host().and_then(|root| root.find(Path::new(&wanted.path))).map_err(failed)?;
        let host = found.path().display().to_string();
        if !Self::matches(&self.settings.allow, &host) {
            return Err(format!(
                "{host} is not on this host's list of what may be asked for ([collectors.artifacts] allow)"
            ));
        }
        if !wanted.paths.is_empty() && !Self::matches(&wanted.paths, &host) {
            return Err(format!("{host} is not among the paths that the policy allows"));
        }
        let meta = found.meta();
        if !meta.is_file() {
            return Err("it is not a regular file".to_owned());
        }
        // A FIFO or a device in its place must neither hang nor be read.
        let file = found.read().map_err(failed)?;
        let most = self.settings.bytes_max.0.min(wanted.bytes_max);
        if meta.len() > most {
            return Err(format!("it has {} bytes, and {most} are allowed", meta.len()));
        }
        Ok((file, host))
    }

    /// Send what is behind `from`; what is before is read for the digest.
    fn send(
        &self,
        cx: &Cx,
        outlet: &Outlet,
        wanted: &Wanted,
        source: &Arc<Source>,
        (mut file, real_path): (File, String),
        sent: Option<&Sending>,
    ) -> Result<Result<(), Refusal>, CollectError> {
        // The file's own trouble must not stand before other requests.
        let failed = |err: io::Error| Ok(Err(format!("it cannot be read: {err}")));
        let before = match file.metadata() {
            Ok(meta) => meta,
            Err(err) => return failed(err),
        };
        // Another file, or another content: from the beginning.
        let from = sent.filter(|sent| sent.stamp == stamp(&before)).map_or(0, |sent| sent.offset);
        let most = self.settings.bytes_max.0.min(wanted.bytes_max);
        let (mut digest, mut offset, mut piece) = (Sha256::new(), 0, vec![0; PIECE_BYTES]);
        loop {
            let got = match fill(&mut file, &mut piece) {
                Ok(got) => got,
                Err(err) => return failed(err),
            };
            digest.update(&piece[..got]);
            let (start, end) = (offset, offset + got as u64);
            offset = end;
            if end > most {
                return Ok(Err(format!("it grew beyond {most} bytes while it was read")));
            }
            let last = got < PIECE_BYTES;
            if end <= from && !last {
                continue;
            }
            let whole = if last {
                let digest = hex::encode(std::mem::take(&mut digest).finalize());
                let after = match file.metadata() {
                    Ok(meta) => meta,
                    Err(err) => return failed(err),
                };
                Some(whole(&before, &after, digest, end, real_path.clone()))
            } else {
                None
            };
            let skipped = usize::try_from(from.saturating_sub(start)).unwrap_or(got).min(got);
            let body = Artifact {
                request: wanted.request.clone(),
                path: wanted.path.clone(),
                offset: start + skipped as u64,
                data: piece[skipped..got].to_vec(),
                refused: None,
                whole,
            };
            let mut chunk = Chunk::new(Arc::clone(source));
            // The last piece may be empty, and is a record all the same.
            let position = Position(start + skipped as u64, end + u64::from(last));
            chunk.push(cx.now(), position, &Body::from(body));
            if last {
                chunk.forget.push(wanted.request.clone());
            } else {
                let sending = Sending { offset: end, stamp: stamp(&before) };
                chunk.cursor = Some(rmp_serde::to_vec_named(&sending).expect("numbers serialize"));
            }
            outlet.emit(chunk)?;
            if last || outlet.is_stopped() {
                return Ok(Ok(()));
            }
        }
    }
}

/// Device, inode, length and time of the last write.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(meta: &std::fs::Metadata) -> Stamp {
    (meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec())
}

/// How much of which file is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Sending {
    offset: u64,
    stamp: Stamp,
}

/// Read until the block is full or the file ends.
fn fill(file: &mut File, block: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < block.len() {
        match file.read(&mut block[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(got)
}

fn whole(
    before: &std::fs::Metadata,
    after: &std::fs::Metadata,
    sha256: String,
    size: u64,
    real_path: String,
) -> WholeFile {
    let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    WholeFile {
        size,
        sha256,
        real_path,
        mode: before.mode(),
        user_id: before.uid(),
        user: User::from_uid(Uid::from_raw(before.uid())).ok().flatten().map(|user| user.name),
        group_id: before.gid(),
        group: Group::from_gid(Gid::from_raw(before.gid())).ok().flatten().map(|group| group.name),
        accessed: nanoseconds(before.atime(), before.atime_nsec()),
        modified: nanoseconds(before.mtime(), before.mtime_nsec()),
        changed: nanoseconds(before.ctime(), before.ctime_nsec()),
        torn: stamp(before) != stamp(after),
    }
}

#[cfg(test)]
mod tests;
