//! `query`: SQL over what is materialised and what has just landed.

use super::print;
use crate::{cli::Format, control::Control, landing::Landing, receive::PLAIN_BYTES_MAX};
use anyhow::{Context, Result};
use std::path::Path;
use vedette_lake::{Lake, Landed, Limits, Output};

/// Landed batches that one query reads beside the tables at the most.
const FRESH_MAX: u32 = 20_000;

/// Sealed bytes of them at the most: decoded and as rows they are some twenty times that.
const FRESH_BYTES_MAX: i64 = 64 << 20;

pub(super) async fn query(dir: &Path, org: &str, sql: &str, format: Format, limits: Limits) -> Result<()> {
    let dir = std::path::absolute(dir)?;
    let control = Control::open(&dir).await?;
    let organization = control.organization(org).await?;
    let undecided = control.undecided(organization.id, FRESH_MAX).await?;
    if undecided.pending.len() == FRESH_MAX as usize {
        tracing::warn!("more than {FRESH_MAX} batches are not materialised yet; the newest are left out of the answer");
    }
    let landing = Landing::open(&dir.join("landing"))?;
    let (mut fresh, mut bytes) = (Vec::with_capacity(undecided.pending.len()), 0);
    for pending in undecided.pending {
        bytes += pending.bytes;
        if bytes > FRESH_BYTES_MAX {
            tracing::warn!(
                "more has landed than one query reads beside the tables; the newest is left out of the answer"
            );
            break;
        }
        match landing.read(&pending.key, PLAIN_BYTES_MAX).await {
            Ok(batch) => fresh.push(Landed { key: pending.key, day: pending.day, landed: pending.landed, batch }),
            Err(err) => tracing::warn!(
                key = pending.key,
                error = format!("{:#}", anyhow::Error::new(err)),
                "landed batch cannot be read"
            ),
        }
    }
    let lake = Lake::new(dir.join("tables"));
    let output = lake.query(organization.id, sql, &fresh, &undecided.versions, limits).await?;
    if output.cut {
        tracing::warn!(rows_max = limits.rows_max, "the answer was cut; narrow the query or raise --rows-max");
    }
    print(&render(&output, format)?)
}

fn render(output: &Output, format: Format) -> Result<Vec<u8>> {
    vedette_lake::render(
        output,
        match format {
            Format::Json => vedette_lake::Format::Json,
            Format::Table => vedette_lake::Format::Table,
            Format::Csv => vedette_lake::Format::Csv,
        },
    )
    .context("the answer cannot be printed")
}

/// `docs/tables.md`.
pub(super) fn tables_reference() -> String {
    vedette_lake::reference()
}
