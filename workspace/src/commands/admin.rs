//! `init`, `org`, `token`, `agents`.

use super::{
    cli::Format,
    listing::{csv_line, json_line},
    print, who,
};
use crate::{
    clock::{now, rfc3339},
    ingest::LandingStore,
    keys::{self, Authority, Signer, new_token as secret, token_digest},
    replication::{self, Primary},
    store::{AgentRow, Change, ControlStore, SILENT_AFTER_NS},
};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};
use vedette_wire::{geo::WorkspaceGeo, policy::Tier, text::printable};

/// The primary workspace, from the options of `init`.
pub(super) fn primary_of(with: String, ca: Option<PathBuf>, token: Option<PathBuf>) -> Result<Primary> {
    match (with.starts_with("https://"), ca, token) {
        (true, Some(ca), Some(token)) => Ok(Primary::Url { url: with, ca, token }),
        (true, ..) => {
            bail!("--pair-with {with}: also give --pair-ca and --pair-token-file (`token pair` there prints one)")
        }
        (false, None, None) => Ok(Primary::Dir(with.into())),
        (false, ..) => bail!(
            "--pair-with {with}: write https://HOST:PORT, or omit --pair-ca and --pair-token-file for a directory"
        ),
    }
}

/// Whether a directory holds a workspace with its keys and control store. `init` creates the store after the keys.
pub(super) fn is_whole(dir: &Path) -> bool {
    dir.join("ca.pem").exists() && dir.join("control.sqlite").exists()
}

pub(super) async fn init(
    dir: &Path,
    geo: WorkspaceGeo,
    mut names: Vec<String>,
    primary: Option<Primary>,
) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot create {}", dir.display()))?;
    if dir.join("ca.pem").exists() {
        let what = if is_whole(dir) {
            "holds a workspace already; choose another directory"
        } else {
            "holds the remains of an interrupted init; delete the directory"
        };
        bail!("{} {what}", dir.display());
    }
    if names.is_empty() {
        names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let uname = rustix::system::uname();
        let hostname = uname.nodename().to_string_lossy();
        if !names.contains(&hostname.to_string()) && !hostname.is_empty() && hostname != "(none)" {
            names.insert(0, hostname.into_owned());
        }
    }
    if let Some(primary) = &primary {
        replication::join(dir, geo, &names, primary).await?;
    } else {
        keys::create(dir, geo, &names)?;
        Signer::create(dir)?;
        ControlStore::create(dir, geo).await?.close().await;
    }
    LandingStore::open(&dir.join("landing"))?;
    tracing::info!(dir = %dir.display(), %geo, names = names.join(" "), "workspace created; agents need its ca.pem");
    Ok(())
}

pub(super) async fn renew_certificate(dir: &Path, names: &[String]) -> Result<()> {
    let geo = ControlStore::open(dir).await?.geo().await?;
    Authority::load(dir)?.renew_server(dir, geo, names)?;
    tracing::info!(dir = %dir.display(), "the server has a new certificate");
    Ok(())
}

/// Makes a secondary workspace stand alone.
pub(super) async fn promote(dir: &Path, reason: &str) -> Result<()> {
    let control = ControlStore::open(dir).await?;
    let Some(primary) = control.primary().await? else { bail!("this workspace is not the secondary of a pair") };
    if replication::answers(dir, &primary).await? {
        bail!(
            "the primary workspace, {primary}, is still running; shut it down for good first, since two primaries would diverge"
        );
    }
    control.set_primary(None).await?;
    control.audit_by(Change { who: &who(), reason, now: now() }, "pair promote", &format!("{primary}: {reason}")).await
}

pub(super) async fn add_organization(dir: &Path, name: &str, tier: Tier) -> Result<()> {
    let is_plain =
        |letter: char| vedette_wire::text::is_printable(letter) && !matches!(letter, '/' | '\\' | '"' | '\'');
    if name.trim() != name || name.is_empty() || name.len() > 200 || !name.chars().all(is_plain) {
        bail!(
            "an organization's name has 1 to 200 printable characters, no slash or quotation mark, and no leading or trailing white space"
        );
    }
    let control = ControlStore::open(dir).await?;
    control.require_primary().await?;
    let change = Change { who: &who(), reason: "organization added", now: now() };
    let id = control.add_organization(name, tier, &control.signer(dir).await?, change).await?;
    print(format!("{id}\n").as_bytes())
}

pub(super) async fn new_token(dir: &Path, org: &str, uses: u32, hours: u32) -> Result<()> {
    let control = ControlStore::open(dir).await?;
    control.require_primary().await?;
    let organization = control.organization(org).await?;
    let (token, expires) = (secret("vdt_")?, expires_in(hours));
    control.add_token(&organization, &token_digest(&token), uses, now(), expires).await?;
    print(format!("{token}\n").as_bytes())
}

pub(super) async fn pair_token(dir: &Path, hours: u32) -> Result<()> {
    let control = ControlStore::open(dir).await?;
    control.require_primary().await?;
    let token = secret("vdp_")?;
    control.add_pair_token(&token_digest(&token), now(), expires_in(hours)).await?;
    print(format!("{token}\n").as_bytes())
}

fn expires_in(hours: u32) -> i64 {
    now() + i64::from(hours) * 3600 * 1_000_000_000
}

pub(super) async fn agents(dir: &Path, org: &str, format: Format) -> Result<()> {
    let control = ControlStore::open(dir).await?;
    let organization = control.organization(org).await?;
    let now = now();
    let rows = control.agents(organization.id).await?;
    let mut out = String::new();
    if format != Format::Json {
        let head = ["agent", "hostname", "enrolled", "last_seen", "state", "version", "policy_revision", "replaces"];
        out.push_str(&line(&head.map(str::to_owned), format));
    }
    for row in rows {
        let state = state(&row, now);
        let (enrolled, seen) = (rfc3339(row.enrolled), row.last_seen.map(rfc3339));
        if format == Format::Json {
            let object = json!({"agent": row.agent, "hostname": row.hostname, "enrolled": enrolled, "last_seen": seen,
                "state": state, "version": row.version, "policy_revision": row.policy_revision, "replaces": row.replaces});
            out.push_str(&json_line(&object));
        } else {
            let revision = row.policy_revision.to_string();
            let seen = seen.unwrap_or_else(|| "never".to_owned());
            out.push_str(&line(
                &[
                    row.agent,
                    printable(&row.hostname).into_owned(),
                    enrolled,
                    seen,
                    state.to_owned(),
                    printable(&row.version).into_owned(),
                    revision,
                    row.replaces.unwrap_or_default(),
                ],
                format,
            ));
        }
    }
    print(out.as_bytes())
}

fn state(row: &AgentRow, now: i64) -> &'static str {
    match row.last_seen {
        _ if row.revoked.is_some() => "revoked",
        None => "never seen",
        Some(seen) if now - seen > SILENT_AFTER_NS => "silent",
        Some(_) if row.version != env!("CARGO_PKG_VERSION") => "outdated",
        Some(_) => "active",
    }
}

fn line(cells: &[String; 8], format: Format) -> String {
    if format == Format::Csv {
        return csv_line(&cells.each_ref().map(String::as_str));
    }
    let [agent, hostname, enrolled, seen, state, version, revision, replaces] = cells;
    let line = format!(
        "{agent:<32}  {hostname:<20}  {enrolled:<20}  {seen:<20}  {state:<10}  {version:<8}  {revision:<15}  {replaces}"
    );
    format!("{}\n", line.trim_end())
}
