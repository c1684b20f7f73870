//! `query`: SQL over what is materialised and what has just landed.

use super::print;
use crate::{
    cli::Format,
    control::Control,
    landing::{Landing, ReadError},
    receive::LANDED_PLAIN_BYTES_MAX,
};
use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use std::{path::Path, sync::Arc};
use vedette_lake::{Fresh, Lake, Limits, Output};
use vedette_wire::Batch;

/// Landed batches that one query reads beside the tables at the most: a bound on their list, not on their content.
const FRESH_MAX: u32 = 200_000;

/// The landing store as queries read it.
#[derive(Debug)]
struct Store(Landing);

impl vedette_lake::Landing for Store {
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Batch>, String>> {
        Box::pin(async move {
            match self.0.read(key, LANDED_PLAIN_BYTES_MAX).await {
                Ok((batch, _)) => Ok(Some(batch)),
                Err(ReadError::Damaged(err)) => {
                    tracing::warn!(key, error = format!("{err:#}"), "landed batch is damaged; left out of the answer");
                    Ok(None)
                }
                Err(err @ ReadError::Store(_)) => Err(format!("{:#}", anyhow::Error::new(err))),
            }
        })
    }
}

pub(super) async fn query(dir: &Path, org: &str, sql: &str, format: Format, limits: Limits) -> Result<()> {
    let dir = std::path::absolute(dir)?;
    let control = Control::open(&dir).await?;
    let organization = control.organization(org).await?;
    let undecided = control.undecided(organization.id, FRESH_MAX).await?;
    if undecided.pending.len() == FRESH_MAX as usize {
        bail!(
            "more than {FRESH_MAX} batches are not materialised yet, and an answer without the newest would be wrong; \
             ask again when `serve` has caught up"
        );
    }
    let fresh: Vec<Fresh> = undecided
        .pending
        .into_iter()
        .map(|pending| Fresh { key: pending.key, day: pending.day, landed: pending.landed, store: pending.store })
        .collect();
    let landing: Arc<dyn vedette_lake::Landing> = Arc::new(Store(Landing::open(&dir.join("landing"))?));
    let lake = Lake::new(dir.join("tables"));
    let output = lake.query(organization.id, sql, &fresh, &landing, &undecided.versions, limits).await?;
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
