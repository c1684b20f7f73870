//! `artifact request | list | get`: files of hosts, for forensics.

use super::{
    cli::{ArtifactRequestArguments, Format},
    listing::{csv_line, json_line},
    print, who,
};
use crate::{
    clock::{now, rfc3339},
    ingest::LandingStore,
    store::{Change, ControlStore, Piece},
};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{fs::File, io::Write, os::unix::fs::OpenOptionsExt, path::Path};
use vedette_wire::{Body, text::printable};

pub(super) async fn request(request: &ArtifactRequestArguments) -> Result<()> {
    if !request.path.starts_with('/') || request.path.chars().any(char::is_control) {
        bail!("--path must be an absolute path of the host");
    }
    if request.reason.trim().is_empty() {
        bail!("--reason must not be empty");
    }
    let control = ControlStore::open(&request.dir).await?;
    control.require_primary().await?;
    let organization = control.organization(&request.org).await?;
    let (now, who) = (now(), who());
    let expires = now + i64::from(request.hours) * 3600 * 1_000_000_000;
    let change = Change { who: &who, reason: request.reason.trim(), now };
    let signer = control.signer(&request.dir).await?;
    let id = control.request_artifact(&organization, (request.agent, &request.path, expires), &signer, change).await?;
    print(format!("{id}\n").as_bytes())
}

pub(super) async fn list(dir: &Path, org: &str, format: Format) -> Result<()> {
    let control = ControlStore::open(dir).await?;
    let organization = control.organization(org).await?;
    let now = now();
    let mut out = match format {
        Format::Json => String::new(),
        Format::Csv => "id,requested,agent,path,state,detail\n".to_owned(),
        Format::Table => format!("{:<36}  {:<20}  {:<32}  {:<9}  path\n", "id", "requested", "agent", "state"),
    };
    for row in control.artifacts(organization.id).await? {
        let over = row.expires <= now && row.state == "requested";
        let state = if over { "expired".to_owned() } else { row.state };
        let whole: Value = row.whole.as_deref().map(serde_json::from_str).transpose()?.unwrap_or_default();
        let requested = rfc3339(row.requested);
        match format {
            Format::Json => {
                let line = json!({"id": row.id, "agent": row.agent, "path": row.path, "requested": requested,
                    "expires": rfc3339(row.expires), "who": row.who, "reason": row.reason, "state": state,
                    "detail": row.detail, "file": whole});
                out.push_str(&json_line(&line));
            }
            Format::Csv => {
                let detail = row.detail.unwrap_or_default();
                out.push_str(&csv_line(&[&row.id, &requested, &row.agent, &row.path, &state, &detail]));
            }
            Format::Table => {
                let message =
                    row.detail.or_else(|| Some(format!("{} bytes", whole["size"].as_u64()?))).unwrap_or_default();
                out.push_str(&format!(
                    "{}  {requested}  {:<32}  {state:<9}  {}  {}\n",
                    row.id,
                    row.agent,
                    printable(&row.path),
                    printable(&message)
                ));
            }
        }
    }
    print(out.as_bytes())
}

/// Writes the pieces to a new file, and compares it with the digest that the host sent.
pub(super) async fn get(dir: &Path, org: &str, id: &str, to: &Path) -> Result<()> {
    let control = ControlStore::open(dir).await?;
    let organization = control.organization(org).await?;
    let row = control.artifacts(organization.id).await?.into_iter().find(|row| row.id == id);
    let row = row.with_context(|| format!("organization {org} has no artifact {id}; see `artifact list`"))?;
    let whole = match (row.state.as_str(), &row.whole) {
        ("complete", Some(whole)) => serde_json::from_str::<Value>(whole)?,
        ("refused", _) => bail!("the host refused the request: {}", row.detail.unwrap_or_default()),
        (state, _) => bail!("the file has not arrived; the request is {state}; see `artifact list`"),
    };
    let landing = LandingStore::open(&dir.join("landing"))?;
    let pieces = control.pieces(organization.id, id).await?;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .with_context(|| format!("cannot create {}", to.display()))?;
    let written = write(&landing, &pieces, id, &whole, &mut file).await;
    if written.is_err() {
        // A partial or altered file is useless.
        drop(std::fs::remove_file(to));
    }
    written?;
    print(json_line(&whole).as_bytes())
}

async fn write(landing: &LandingStore, pieces: &[Piece], id: &str, whole: &Value, file: &mut File) -> Result<()> {
    let (mut digest, mut at, mut batch) = (Sha256::new(), 0, None);
    let size = whole["size"].as_i64().unwrap_or(i64::MAX);
    // A file that changed is sent again. If it became shorter, pieces of the longer one remain, and are left out.
    for piece in pieces.iter().filter(|piece| piece.start < size) {
        if piece.start != at {
            bail!("bytes {at} to {} have not arrived yet; try again later", piece.start);
        }
        if batch.as_ref().is_none_or(|(key, _)| *key != piece.key) {
            batch = Some((piece.key.clone(), landing.read(&piece.key).await?.0));
        }
        let records = batch.iter().flat_map(|(_, batch)| &batch.records);
        let data = records.into_iter().find_map(|record| match &record.body {
            Body::Artifact(part) if part.request == id && part.offset.cast_signed() == piece.start => Some(&part.data),
            _ => None,
        });
        let data = data.with_context(|| format!("{} does not hold the piece at {at}", piece.key))?;
        digest.update(data);
        file.write_all(data)?;
        at += piece.length;
    }
    file.sync_all()?;
    let digest = hex::encode(digest.finalize());
    if whole["sha256"] != digest {
        bail!("the received file has SHA-256 {digest}, and the host stated {}: request it again", whole["sha256"]);
    }
    Ok(())
}
