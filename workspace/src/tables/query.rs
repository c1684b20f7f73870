//! SQL over the tables and the batches that are not materialised yet.

use crate::{
    ingest::{LandingStore, ReadError},
    store::{ControlStore, PendingBatch, PendingBatches},
};
use anyhow::{Result, bail};
use futures::future::BoxFuture;
use std::{path::Path, sync::Arc};
use vedette_lake::{Lake, Output, QueryLimits, ReadFailure};
use vedette_wire::{Batch, OrganizationId};

/// Maximum number of batches to read in addition to the tables; limits the list, not its content.
const PENDING_MAX: u32 = 200_000;

/// The landing store for queries.
#[derive(Debug)]
struct Landing(LandingStore);

impl vedette_lake::LandedBatches for Landing {
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Batch>, ReadFailure>> {
        Box::pin(async move {
            match self.0.read(key).await {
                Ok((batch, _)) => Ok(Some(batch)),
                Err(ReadError::Damaged(err)) => {
                    tracing::warn!(
                        key,
                        error = format!("{err:#}"),
                        "a landed batch is damaged; its rows are missing in the result"
                    );
                    Ok(None)
                }
                Err(err @ ReadError::Store(_)) => Err(anyhow::Error::new(err).into()),
            }
        })
    }
}

/// Maximum length of a statement, depth of its brackets, and number of its operators.
const SQL_BYTES_MAX: usize = 256 << 10;
const NESTING_MAX: usize = 128;
const OPERATORS_MAX: usize = 1000;

/// The statement without quoted text and comments, which nest nothing.
fn bare(sql: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(sql.len()), sql);
    while let Some(at) = rest.find(['\'', '"', '-', '/']) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let (begin, end) = match from.as_bytes() {
            [b'-', b'-', ..] => (2, "\n"),
            [b'/', b'*', ..] => (2, "*/"),
            [b'\'', ..] => (1, "'"),
            [b'"', ..] => (1, "\""),
            _ => {
                out.push_str(&from[..1]);
                rest = &from[1..];
                continue;
            }
        };
        out.push(' ');
        rest = from[begin..].find(end).map_or("", |at| &from[begin + at + end.len()..]);
    }
    out + rest
}

/// Refuses a statement that is too deep for parser and planner: brackets nest, and a chain of operators is as deep as it is
/// long.
pub(crate) fn check_statement(sql: &str) -> Result<()> {
    let bare = bare(sql);
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in bare.bytes() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    let is_sign = |letter: char| "+-*/%|&<>=!~^".contains(letter);
    let is_word = |word: &&str| {
        ["and", "or", "not", "case", "when", "union", "except", "intersect", "join"]
            .iter()
            .any(|known| word.eq_ignore_ascii_case(known))
    };
    let words = bare.split(|letter: char| !letter.is_alphanumeric() && letter != '_').filter(is_word).count();
    let operators = words + bare.chars().filter(|letter| is_sign(*letter)).count();
    if sql.len() > SQL_BYTES_MAX || deepest > NESTING_MAX || operators > OPERATORS_MAX {
        bail!(
            "the statement exceeds a limit: at most {SQL_BYTES_MAX} bytes, {NESTING_MAX} nested brackets and \
             {OPERATORS_MAX} operators; write a simpler one (a list of values as `IN (…)`)"
        );
    }
    Ok(())
}

/// Answers a statement over an organization's tables and its pending batches.
pub(crate) async fn query(
    dir: &Path,
    control: &ControlStore,
    landing: LandingStore,
    organization: OrganizationId,
    sql: &str,
    limits: QueryLimits,
) -> Result<Output> {
    let PendingBatches { batches, versions } = control.pending(organization, PENDING_MAX).await?;
    if batches.len() == PENDING_MAX as usize {
        bail!(
            "at least {PENDING_MAX} batches are not materialised yet, and an answer without the newest would be wrong; \
             query again when `serve` has caught up"
        );
    }
    let pending: Vec<vedette_lake::PendingBatch> = batches
        .into_iter()
        .map(|PendingBatch { key, day, landed, store, .. }| vedette_lake::PendingBatch { key, day, landed, store })
        .collect();
    let landing: Arc<dyn vedette_lake::LandedBatches> = Arc::new(Landing(landing));
    let lake = Lake::new(dir.join("tables"));
    Ok(lake.query(organization, sql, &pending, &landing, &super::versions(versions), limits).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_operator_and_a_chain_of_operators_is_one() {
        assert_eq!(bare("a - 'it''s (--' || \"b/*\" -- x (\n/ /* ' */ c"), "a -    ||    /   c");
        let text = "(+".repeat(5000);
        check_statement(&format!("SELECT count(*) FROM syslog WHERE message = '{text}'")).expect("is text");
        check_statement(&format!("SELECT 1{}", " + 1".repeat(5000))).expect_err("is a chain");
        check_statement(&format!("SELECT {}1{}", "(".repeat(500), ")".repeat(500))).expect_err("nests");
        check_statement(&format!("SELECT '' {}", " + '' ".repeat(5000))).expect_err("is a chain of texts");
    }
}
