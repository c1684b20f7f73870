//! `doctor`: checks the control store, all landed batches and all tables, and rebuilds tables from landed batches.

use super::{print, serve, who};
use crate::{
    clock::now,
    ingest::{LandingStore, ReadError},
    store::{BatchState, Change, ControlStore, Organization},
};
use anyhow::{Context, Result, bail};
use std::path::Path;

/// Number of keys to read at once.
const PAGE: u32 = 1000;
/// Maximum number of batches named per organization.
const NAMED_MAX: usize = 20;

/// Prints problems, one per line, and fails if there are any.
pub(super) async fn doctor(dir: &Path, rebuild: bool) -> Result<()> {
    let dir = std::path::absolute(dir)?;
    let control = ControlStore::open(&dir).await?;
    // Tables must not be written while they are moved.
    let _lock = if rebuild { Some(serve::lock(&dir)?) } else { None };
    let landing = LandingStore::open(&dir.join("landing"))?;
    let mut problems = control.integrity().await?;
    problems.iter_mut().for_each(|line| *line = format!("control store: {line}"));
    let (mut batches, mut rebuild_count, mut retried, mut files_without_checksums) = (0, 0, 0, 0);
    for id in control.organization_ids().await? {
        let organization = control.organization_of(id).await?;
        let LandingReport { count, unreadable, not_in_tables } = landed(&control, &landing, &organization).await?;
        batches += count;
        let (tables, without_checksums) = tables(&dir, &control, &organization).await?;
        files_without_checksums += without_checksums;
        if rebuild && tables.is_empty() {
            retried += control.retry_failed(id).await?;
        } else if not_in_tables > 0 {
            let what = "landed batches are in no table, since an earlier attempt to write them failed; `doctor --rebuild` tries them again";
            problems.push(format!("{}: {not_in_tables} {what}", organization.name));
        }
        if rebuild && !tables.is_empty() {
            if !unreadable.is_empty() {
                bail!(
                    "{}: {} landed batches cannot be read, and rebuilt tables would lack them; restore {} from a backup first",
                    organization.name,
                    unreadable.len(),
                    dir.join("landing").display()
                );
            }
            start_rebuild(&dir, &control, &organization).await?;
            rebuild_count += 1;
        } else {
            problems.extend(tables.into_iter().map(|line| format!("{}: {line}", organization.name)));
        }
        let more = unreadable.len().saturating_sub(NAMED_MAX);
        problems.extend(unreadable.into_iter().take(NAMED_MAX).map(|line| format!("{}: {line}", organization.name)));
        if more > 0 {
            problems.push(format!("{}: {more} more landed batches cannot be read", organization.name));
        }
    }
    let mut out: String = problems.iter().map(|line| format!("{}\n", vedette_wire::text::printable(line))).collect();
    if retried > 0 {
        out.push_str(&format!("{retried} batches are in no table; `serve` will try them again\n"));
    }
    if rebuild_count > 0 {
        out.push_str(&format!(
            "`serve` rebuilds the tables of {rebuild_count} organizations from landed batches; the damaged ones are kept beside them\n"
        ));
    }
    if files_without_checksums > 0 {
        out.push_str(&format!(
            "{files_without_checksums} files of tables have no checksums, so flipped bits in them go unnoticed\n"
        ));
    }
    out.push_str(&format!("{batches} landed batches and all tables were read\n"));
    print(out.as_bytes())?;
    if !problems.is_empty() {
        bail!("{} problems found", problems.len());
    }
    Ok(())
}

/// Result of checking the landed batches of an organization.
#[derive(Default)]
struct LandingReport {
    count: u64,
    /// Unreadable batches, with reasons.
    unreadable: Vec<String>,
    /// Readable batches that could not be written to the tables.
    not_in_tables: u64,
}

async fn landed(control: &ControlStore, landing: &LandingStore, organization: &Organization) -> Result<LandingReport> {
    let (mut found, mut after) = (LandingReport::default(), String::new());
    loop {
        let page = control.landed_after(organization.id, &after, PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok(found) };
        after.clone_from(last);
        for (key, state) in page {
            found.count += 1;
            match landing.read(&key).await {
                Ok(_) => found.not_in_tables += u64::from(state == BatchState::Unreadable),
                Err(err) if err.is_gone() => found.unreadable.push(format!("{key}: missing")),
                Err(err @ ReadError::Damaged(_)) => {
                    found.unreadable.push(format!("{key}: {:#}", anyhow::Error::new(err)))
                }
                Err(err @ ReadError::Store(_)) => return Err(err.into()),
            }
        }
    }
}

#[cfg(feature = "lake")]
async fn tables(dir: &Path, control: &ControlStore, organization: &Organization) -> Result<(Vec<String>, usize)> {
    crate::tables::verify(dir, control, organization.id).await
}

#[cfg(not(feature = "lake"))]
async fn tables(_: &Path, _: &ControlStore, _: &Organization) -> Result<(Vec<String>, usize)> {
    Ok((Vec::new(), 0))
}

/// Moves an organization's tables away, and has all landed batches written to new ones.
async fn start_rebuild(dir: &Path, control: &ControlStore, organization: &Organization) -> Result<()> {
    let tables = dir.join("tables").join(organization.id.to_string());
    let moved_to = dir.join("tables").join(format!("{}.damaged-{}", organization.id, now() / 1_000_000_000));
    match std::fs::rename(&tables, &moved_to) {
        Ok(()) => {}
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => {}
        Err(err) => return Err(err).with_context(|| format!("cannot move {}", tables.display())),
    }
    let change = Change { who: &who(), reason: "the tables were damaged", now: now() };
    let batches = control.materialise_again(organization.id, change).await?;
    tracing::warn!(organization = organization.name, batches, moved_to = %moved_to.display(), "moved the damaged tables away; `serve` rebuilds them from landed batches");
    Ok(())
}
