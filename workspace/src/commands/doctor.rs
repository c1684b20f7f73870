//! `doctor`: checks the control store, every landed batch and every table, and makes tables anew from what landed.

use super::{print, serve, who};
use crate::{
    control::{Change, Control, Organization},
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
    let (mut batches, mut damaged_tables) = (0, 0);
    for id in control.organization_ids().await? {
        let organization = control.organization_of(id).await?;
        let (count, lost) = landed(&control, &landing, &organization).await?;
        batches += count;
        let tables = tables(&dir, &control, &organization).await?;
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
            damaged_tables += 1;
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
    if damaged_tables > 0 {
        out.push_str(&format!(
            "the tables of {damaged_tables} organizations are made anew from what landed while `serve` runs; the damaged ones \
             are kept beside them\n"
        ));
    }
    out.push_str(&format!("{batches} landed batches and all tables were read\n"));
    print(out.as_bytes())?;
    if !wrong.is_empty() {
        bail!("{} things are wrong", wrong.len());
    }
    Ok(())
}

/// How many batches an organization has, and those that cannot be read.
async fn landed(control: &Control, landing: &Landing, organization: &Organization) -> Result<(u64, Vec<String>)> {
    let (mut count, mut lost, mut behind) = (0, Vec::new(), String::new());
    loop {
        let page = control.landed_behind(organization.id, &behind, PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok((count, lost)) };
        behind.clone_from(last);
        for (key, _) in page {
            count += 1;
            match landing.read(&key, LANDED_PLAIN_BYTES_MAX).await {
                Ok(_) => {}
                Err(err @ ReadError::Damaged(_)) => lost.push(format!("{key}: {:#}", anyhow::Error::new(err))),
                Err(err @ ReadError::Store(_)) => return Err(err.into()),
            }
        }
    }
}

#[cfg(feature = "lake")]
async fn tables(dir: &Path, control: &Control, organization: &Organization) -> Result<Vec<String>> {
    let known = crate::materialise::versions(control.undecided(organization.id, 0).await?.versions);
    Ok(vedette_lake::Lake::new(dir.join("tables")).check(organization.id, &known).await?)
}

#[cfg(not(feature = "lake"))]
async fn tables(_: &Path, _: &Control, _: &Organization) -> Result<Vec<String>> {
    Ok(Vec::new())
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
