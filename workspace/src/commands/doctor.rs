//! `doctor`: checks the control store, every landed batch and every table, and makes tables anew from what landed.

use super::{print, serve, who};
use crate::{
    control::{Change, Control, Organization, SET_ASIDE},
    landing::{Landing, ReadError},
    now,
    receive::LANDED_PLAIN_BYTES_MAX,
};
use anyhow::{Context, Result, bail};
use std::path::Path;

/// Keys that are read at once.
const PAGE: u32 = 1000;
/// Batches of one organization that are named.
const NAMED_MAX: usize = 20;

/// Print what is wrong, a line each, and fail where anything is.
pub(super) async fn doctor(dir: &Path, rebuild: bool) -> Result<()> {
    let dir = std::path::absolute(dir)?;
    let control = Control::open(&dir).await?;
    // Tables are not to be written while they are moved.
    let _lock = if rebuild { Some(serve::lock(&dir)?) } else { None };
    let landing = Landing::open(&dir.join("landing"))?;
    let mut wrong = control.integrity().await?;
    wrong.iter_mut().for_each(|line| *line = format!("control store: {line}"));
    let (mut batches, mut anew_count, mut tried_again, mut unsummed) = (0, 0, 0, 0);
    for id in control.organization_ids().await? {
        let organization = control.organization_of(id).await?;
        let Landed { count, lost, set_aside } = landed(&control, &landing, &organization).await?;
        batches += count;
        let (tables, without) = tables(&dir, &control, &organization).await?;
        unsummed += without;
        if rebuild && tables.is_empty() {
            tried_again += control.try_set_aside_again(id).await?;
        } else if set_aside > 0 {
            let what = "landed batches are set aside and in no table; `doctor --rebuild` has them tried again";
            wrong.push(format!("{}: {set_aside} {what}", organization.name));
        }
        if rebuild && !tables.is_empty() {
            if !lost.is_empty() {
                bail!(
                    "{}: {} landed batches cannot be read, and tables made anew would lack them; put {} back from a backup first",
                    organization.name,
                    lost.len(),
                    dir.join("landing").display()
                );
            }
            anew(&dir, &control, &organization).await?;
            anew_count += 1;
        } else {
            wrong.extend(tables.into_iter().map(|line| format!("{}: {line}", organization.name)));
        }
        let more = lost.len().saturating_sub(NAMED_MAX);
        wrong.extend(lost.into_iter().take(NAMED_MAX).map(|line| format!("{}: {line}", organization.name)));
        if more > 0 {
            wrong.push(format!("{}: {more} more landed batches cannot be read", organization.name));
        }
    }
    let mut out: String = wrong.iter().map(|line| format!("{}\n", vedette_wire::text::printable(line))).collect();
    if tried_again > 0 {
        out.push_str(&format!("{tried_again} batches that were set aside are tried again while `serve` runs\n"));
    }
    if anew_count > 0 {
        out.push_str(&format!(
            "the tables of {anew_count} organizations are made anew from what landed while `serve` runs; the damaged ones \
             are kept beside them\n"
        ));
    }
    if unsummed > 0 {
        out.push_str(&format!(
            "{unsummed} files of tables have no checksums, and a flipped bit in them shows to nobody\n"
        ));
    }
    out.push_str(&format!("{batches} landed batches and all tables were read\n"));
    print(out.as_bytes())?;
    if !wrong.is_empty() {
        bail!("{} things are wrong", wrong.len());
    }
    Ok(())
}

/// What landed of an organization.
#[derive(Default)]
struct Landed {
    count: u64,
    /// What cannot be read, and why.
    lost: Vec<String>,
    /// Batches that could not be written into the tables, and can be read.
    set_aside: u64,
}

async fn landed(control: &Control, landing: &Landing, organization: &Organization) -> Result<Landed> {
    let (mut found, mut behind) = (Landed::default(), String::new());
    loop {
        let page = control.landed_behind(organization.id, &behind, PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok(found) };
        behind.clone_from(last);
        for (key, state) in page {
            found.count += 1;
            match landing.read(&key, LANDED_PLAIN_BYTES_MAX).await {
                Ok(_) => found.set_aside += u64::from(state == SET_ASIDE),
                Err(err) if err.is_gone() => found.lost.push(format!("{key}: it is not there any more")),
                Err(err @ ReadError::Damaged(_)) => found.lost.push(format!("{key}: {:#}", anyhow::Error::new(err))),
                Err(err @ ReadError::Store(_)) => return Err(err.into()),
            }
        }
    }
}

#[cfg(feature = "lake")]
async fn tables(dir: &Path, control: &Control, organization: &Organization) -> Result<(Vec<String>, usize)> {
    let known = crate::materialise::versions(control.undecided(organization.id, 0).await?.versions);
    let lake = vedette_lake::Lake::new(dir.join("tables"));
    let (mut wrong, without) = lake.check(organization.id, &known).await?;
    wrong.extend(newer(&lake, control, organization).await?);
    Ok((wrong, without))
}

/// Whether the tables are of a later time than the control store: what they hold of batches that are not here would be written
/// a second time when it is sent again.
#[cfg(feature = "lake")]
pub(super) async fn newer(
    lake: &vedette_lake::Lake,
    control: &Control,
    organization: &Organization,
) -> Result<Option<String>> {
    let known = crate::materialise::versions(control.undecided(organization.id, 0).await?.versions);
    for key in lake.keys_behind(organization.id, &known).await.unwrap_or_default() {
        if !control.is_noted(&key).await? {
            return Ok(Some(format!(
                "the tables hold batches that the control store does not know, {key} among them: they are not of the same backup; \
                 put the tables back with it, or run `vedette-workspace doctor --rebuild`"
            )));
        }
    }
    Ok(None)
}

#[cfg(not(feature = "lake"))]
async fn tables(_: &Path, _: &Control, _: &Organization) -> Result<(Vec<String>, usize)> {
    Ok((Vec::new(), 0))
}

/// Put an organization's tables aside, and have all that landed written into new ones.
async fn anew(dir: &Path, control: &Control, organization: &Organization) -> Result<()> {
    let tables = dir.join("tables").join(organization.id.to_string());
    let aside = dir.join("tables").join(format!("{}.damaged-{}", organization.id, now() / 1_000_000_000));
    match std::fs::rename(&tables, &aside) {
        Ok(()) => {}
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => {}
        Err(err) => return Err(err).with_context(|| format!("cannot move {}", tables.display())),
    }
    let change = Change { who: &who(), reason: "the tables were damaged", now: now() };
    let batches = control.materialise_again(organization.id, change).await?;
    tracing::warn!(organization = organization.name, batches, aside = %aside.display(), "tables are made anew");
    Ok(())
}
