//! `artifacts`: files that the organization requests, one at a time, if the host's list of globs allows them.
//!
//! A request names a path. The collector resolves symbolic links first, and checks the resolved path against the list. It then
//! opens the file without following links, and verifies what it opened. It sends regular files only, in pieces, with owner,
//! mode and times, and with the digest in the last piece. The cursor states how much is durable; after a restart the rest is
//! sent.

use crate::{
    ApprovedRequest, BuildError, CollectError, CollectorClass, CollectorContext, Outlet, Permission, Requests, Right,
    Wake,
    settings::Bytes,
    spec::{Collector, CollectorSettings, Plan, Spec, Watch},
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
    sync::Arc,
    time::Duration,
};
use vedette_wire::{
    Body, Chunk, Position, Source,
    body::{Artifact, WholeFile},
};

/// Size of a piece.
const PIECE_BYTES: usize = 512 << 10;
/// Poll interval for requests without a wake-up.
const DURABLE_POLL: Duration = Duration::from_secs(5);
/// `**` crosses directories and `*` does not; a leading dot is an ordinary character (`.ssh`).
const MATCHING: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

/// Settings of `[collectors.artifacts]`. A policy cannot switch it off. The host can restrict it, even to no files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Globs of paths that may be sent; `**` crosses directories. Default: programs, service units, cron, ssh configuration and
    /// authorized keys, logs. Not secrets: no keys, no password hashes.
    allow: Vec<String>,
    /// Maximum size of a file in bytes.
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

impl CollectorSettings for Settings {}

/// The collector.
enum Definition {}

impl Collector for Definition {
    type Settings = Settings;
    const ID: &'static str = "artifacts";
    const CLASS: CollectorClass = CollectorClass::Artifact;
    const KIND: &'static str = "artifact";
    const SUMMARY: &'static str =
        "files that the organization requests, if `allow` permits; policy cannot switch it off";
    const READS: &'static str = "requested files on the list `allow`";
    const PERMISSIONS: &'static [Permission] = &[Permission {
        any_of: &[Right::Capability("CAP_DAC_READ_SEARCH")],
        lost: "requested files that others cannot read",
    }];

    fn build(settings: &Settings, context: &CollectorContext) -> Result<Plan, BuildError> {
        let wrong = |message: String| BuildError { collector: SPEC.id, message };
        for glob in &settings.allow {
            Pattern::new(glob).map_err(|err| wrong(format!("allow: {glob:?} is not a glob: {err}")))?;
            if !glob.starts_with('/') {
                return Err(wrong(format!("allow: {glob:?} must be absolute, as in \"/var/log/*.log\"")));
            }
        }
        match (&context.requests, context.once) {
            (Some(requests), None) => {
                Ok(Plan::Watch(Box::new(Artifacts { settings: settings.clone(), requests: requests.clone() })))
            }
            _ => Ok(Plan::Off),
        }
    }
}

pub(crate) const SPEC: Spec = Spec::of::<Definition>();

struct Artifacts {
    settings: Settings,
    requests: Requests,
}

impl Watch for Artifacts {
    fn watch(&mut self, context: &CollectorContext, outlet: &mut Outlet) -> Result<(), CollectError> {
        loop {
            for approved in self.requests.waiting() {
                let sent = context.cursors.iter().find(|(id, _)| *id == approved.request);
                let sent: Option<SentPart> = sent.and_then(|(_, bytes)| rmp_serde::from_slice(bytes).ok());
                self.answer(context, outlet, &approved, sent.as_ref())?;
                if outlet.is_stopped() {
                    return Ok(());
                }
                self.requests.answered(&approved.request);
            }
            if outlet.wait(DURABLE_POLL) == Wake::Stop {
                return Ok(());
            }
        }
    }
}

/// Why a file is not sent.
type Refusal = String;

impl Artifacts {
    /// Sends a file or a refusal.
    fn answer(
        &self,
        context: &CollectorContext,
        outlet: &Outlet,
        approved: &ApprovedRequest,
        sent: Option<&SentPart>,
    ) -> Result<(), CollectError> {
        let source =
            Arc::new(Source { collector: SPEC.id, id: approved.request.clone(), name: Some(approved.path.clone()) });
        let opened = match &approved.refused {
            Some(why) => Err(why.clone()),
            None => self.open(context, approved),
        };
        let refused = match opened {
            Ok((file, real)) => match self.send(context, outlet, approved, &source, (file, real), sent)? {
                Ok(()) => return Ok(()),
                Err(why) => why,
            },
            Err(why) => why,
        };
        tracing::warn!(path = approved.path, why = refused, "artifact request refused");
        let body = Artifact {
            request: approved.request.clone(),
            path: approved.path.clone(),
            refused: Some(refused),
            ..Artifact::default()
        };
        let mut chunk = Chunk::new(source);
        let from = sent.map_or(0, |sent| sent.offset);
        chunk.push(context.now(), Position(from, from + 1), &Body::from(body));
        chunk.forget.push(approved.request.clone());
        outlet.emit(chunk)
    }

    fn matches(globs: &[String], path: &str) -> bool {
        globs.iter().any(|glob| Pattern::new(glob).is_ok_and(|glob| glob.matches_with(path, MATCHING)))
    }

    /// The file, and its resolved path on the host.
    fn open(&self, context: &CollectorContext, approved: &ApprovedRequest) -> Result<(File, String), Refusal> {
        if !approved.path.starts_with('/') {
            return Err("the path is not absolute".to_owned());
        }
        let failed = |err: io::Error| format!("it cannot be opened: {err}");
        let found = context.host().and_then(|root| root.find(Path::new(&approved.path))).map_err(failed)?;
        let host = found.path().display().to_string();
        if !Self::matches(&self.settings.allow, &host) {
            return Err(format!("{host} is not on this host's list of allowed paths ([collectors.artifacts] allow)"));
        }
        if !approved.paths.is_empty() && !Self::matches(&approved.paths, &host) {
            return Err(format!("{host} is not among the paths that the policy allows"));
        }
        let meta = found.meta();
        if !meta.is_file() {
            return Err("it is not a regular file".to_owned());
        }
        // A FIFO or a device must neither block nor be read.
        let file = found.read().map_err(failed)?;
        let most = self.settings.bytes_max.0.min(approved.bytes_max);
        if meta.len() > most {
            return Err(format!("it has {} bytes, and {most} are allowed", meta.len()));
        }
        Ok((file, host))
    }

    /// Sends the file from an offset on; reads the part before it for the digest.
    fn send(
        &self,
        context: &CollectorContext,
        outlet: &Outlet,
        approved: &ApprovedRequest,
        source: &Arc<Source>,
        (mut file, real_path): (File, String),
        sent: Option<&SentPart>,
    ) -> Result<Result<(), Refusal>, CollectError> {
        // An error of the file must not block other requests.
        let failed = |err: io::Error| Ok(Err(format!("it cannot be read: {err}")));
        let before = match file.metadata() {
            Ok(meta) => meta,
            Err(err) => return failed(err),
        };
        // Another file or other content is sent from the beginning.
        let from = sent.filter(|sent| sent.fingerprint == fingerprint(&before)).map_or(0, |sent| sent.offset);
        let most = self.settings.bytes_max.0.min(approved.bytes_max);
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
                request: approved.request.clone(),
                path: approved.path.clone(),
                offset: start + skipped as u64,
                data: piece[skipped..got].to_vec(),
                refused: None,
                whole,
            };
            let mut chunk = Chunk::new(Arc::clone(source));
            // The last piece may be empty, and is a record too.
            let position = Position(start + skipped as u64, end + u64::from(last));
            chunk.push(context.now(), position, &Body::from(body));
            if last {
                chunk.forget.push(approved.request.clone());
            } else {
                let sending = SentPart { offset: end, fingerprint: fingerprint(&before) };
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
type FileFingerprint = (u64, u64, u64, i64, i64);

fn fingerprint(meta: &std::fs::Metadata) -> FileFingerprint {
    (meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec())
}

/// How much of a file is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SentPart {
    offset: u64,
    #[serde(rename = "stamp")]
    fingerprint: FileFingerprint,
}

/// Reads until the block is full or the file ends.
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
        torn: fingerprint(before) != fingerprint(after),
    }
}

#[cfg(test)]
mod tests;
