//! Unattended enrollment at the first start, from a file with workspace, CA, token and geography. The service consumes the file.
//!
//! ```toml
//! workspace = "https://workspace.example.net:8443"
//! ca = "ca.pem"    # optional if [workspace] roots is "platform"
//! token_file = "token"
//! geo = "europe"    # optional
//! ```
//!
//! A relative path is beside this file, or else among the service's credentials.

use super::enroll::{self, EnrollOptions, Unreachable};
use crate::{
    config::{self, Resolved},
    exit::Exit,
    identity::IdentityDir,
    platform,
};
use serde::Deserialize;
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use vedette_wire::geo::WorkspaceGeo;

/// Shortest and longest pause between attempts.
const PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bootstrap {
    workspace: String,
    ca: Option<PathBuf>,
    token_file: PathBuf,
    geo: Option<WorkspaceGeo>,
}

/// Reads the bootstrap file, if there is one.
fn read(config: &Resolved) -> Result<Option<Bootstrap>, Exit> {
    let path = &config.bootstrap;
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(Exit::config(format!("{}: cannot be read: {err}", path.display()))),
    };
    let bootstrap: Bootstrap =
        toml::from_str(&text).map_err(|err| Exit::config(format!("{}: {err}", path.display())))?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    Ok(Some(Bootstrap {
        ca: bootstrap.ca.map(|ca| found(dir, &ca)),
        token_file: found(dir, &bootstrap.token_file),
        ..bootstrap
    }))
}

/// A path of the bootstrap file: beside it, or else a credential of the service.
fn found(dir: &Path, path: &Path) -> PathBuf {
    let beside = dir.join(path);
    let credential = config::credentials_dir().map(|dir| dir.join(path));
    credential.filter(|credential| !beside.exists() && credential.exists()).unwrap_or(beside)
}

/// Names the files of the bootstrap that do not exist.
fn missing(config: &Resolved, bootstrap: &Bootstrap) -> Result<(), Exit> {
    let files = [("token_file", Some(&bootstrap.token_file)), ("ca", bootstrap.ca.as_ref())];
    let missing = files.into_iter().filter_map(|(key, path)| Some((key, path.filter(|path| !path.exists())?)));
    let at = config.bootstrap.display();
    let problems: Vec<String> = missing
        .map(|(key, path)| {
            format!("{at}: {key}: {} does not exist, unless it is a credential of the service", path.display())
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(Exit::Config(problems)) }
}

/// Checks the bootstrap file, if there is one and this host is not enrolled.
pub(super) fn check(config: &Resolved) -> Result<(), Exit> {
    match IdentityDir::new(&config.identity_dir).enrollment() {
        Ok(None) => match read(config)? {
            Some(bootstrap) => missing(config, &bootstrap),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Enrolls from the bootstrap file, if there is one and the host is not enrolled; retries while the workspace is unreachable.
/// Then deletes the file and the token.
pub(super) async fn bootstrap(config: &Resolved) -> Result<(), Exit> {
    let path = &config.bootstrap;
    let enrolled = IdentityDir::new(&config.identity_dir).enrollment()?.is_some();
    let bootstrap = match read(config) {
        Ok(Some(bootstrap)) => bootstrap,
        // An enrolled host does not need the file, whatever it contains.
        Err(_) if enrolled => {
            tracing::warn!(path = %path.display(), "the bootstrap file is invalid; delete it, since this host is enrolled");
            return Ok(());
        }
        Ok(None) => return Ok(()),
        Err(err) => return Err(err),
    };
    // An agent that was killed between its enrollment and the deletion of the file is enrolled, and still has the file.
    if !enrolled {
        let (ca, token) = (bootstrap.ca.as_deref(), bootstrap.token_file.as_path());
        let options = EnrollOptions { workspace: &bootstrap.workspace, ca, token, geo: bootstrap.geo, again: false };
        let mut pause = *PAUSE.start();
        // The service manager must not mistake a workspace that does not answer for a start that hangs.
        platform::ready();
        loop {
            match enroll::enroll(config, &options).await {
                Ok(()) => break,
                Err(Exit::Failure(err)) if err.is::<Unreachable>() => {
                    tracing::warn!(error = format!("{err:#}"), "not enrolled yet; trying again");
                }
                // A restart does not help, so the service manager must not retry.
                Err(exit) => return Err(Exit::Config(exit.reasons())),
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(*PAUSE.end());
        }
    }
    // The service manager keeps credentials in memory, and removes them itself.
    let is_credential = |path: &Path| config::credentials_dir().is_some_and(|dir| path.starts_with(dir));
    for used in [bootstrap.token_file.as_path(), path].into_iter().filter(|path| !is_credential(path)) {
        delete(used);
    }
    Ok(())
}

/// Deletes a file. One on a read-only mount stays; an enrolled host ignores it.
fn delete(path: &Path) {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            let path = path.display();
            tracing::warn!(%path, error = %err, "cannot delete a file that enrollment no longer needs; delete it");
        }
        _ => {}
    }
}
