//! `query`: SQL over the tables and the batches that are not materialised yet.

use super::print;
use crate::{
    cli::Format,
    control::Control,
    landing::{LandingStore, ReadError},
    receive::LANDED_PLAIN_BYTES_MAX,
};
use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use vedette_lake::{Fresh, Lake, Output, QueryLimits};
use vedette_wire::Batch;

/// Maximum number of batches to read in addition to the tables; limits the list, not its content.
const FRESH_MAX: u32 = 200_000;

/// The landing store for queries.
#[derive(Debug)]
struct Store(LandingStore);

impl vedette_lake::LandedBatches for Store {
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Batch>, String>> {
        Box::pin(async move {
            match self.0.read(key, LANDED_PLAIN_BYTES_MAX).await {
                Ok((batch, _)) => Ok(Some(batch)),
                Err(ReadError::Damaged(err)) => {
                    tracing::warn!(key, error = format!("{err:#}"), "landed batch is damaged; omitted from the answer");
                    Ok(None)
                }
                Err(err @ ReadError::Store(_)) => Err(format!("{:#}", anyhow::Error::new(err))),
            }
        })
    }
}

/// Maximum length of a statement, depth of its brackets, and number of its operators.
const SQL_BYTES_MAX: usize = 256 << 10;
const NESTING_MAX: usize = 128;
const OPERATORS_MAX: usize = 1000;
/// Memory for the program, input and expressions, beyond what operators account for.
const BESIDE_BYTES: u64 = 512 << 20;
/// Interval of checks of a query's limits.
const GUARD_EVERY: Duration = Duration::from_millis(50);

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
fn shallow(sql: &str) -> Result<()> {
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
            "a statement may have {SQL_BYTES_MAX} bytes, nest {NESTING_MAX} brackets and have {OPERATORS_MAX} operators; \
             write a simpler one (a list of values as `IN (…)`)"
        );
    }
    Ok(())
}

/// Exits when the query exceeds its time or memory. An operator that does not yield blocks the runtime's timers, and the memory
/// of expressions is not accounted for. Ends when there is an answer, since its reader may be slow.
fn guard(limits: QueryLimits) -> Arc<AtomicBool> {
    let (began, answered) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let is_answered = Arc::clone(&answered);
    let watch = move || loop {
        std::thread::sleep(GUARD_EVERY);
        if is_answered.load(Ordering::Acquire) {
            return;
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok());
        let resident = kib.map_or(0, |kib: u64| kib.saturating_mul(1024));
        let why = if began.elapsed() > limits.time_max + GUARD_EVERY {
            format!("the query took longer than {:?}", limits.time_max)
        } else if resident > limits.memory_max as u64 + BESIDE_BYTES {
            format!("the query needs more than {} bytes of memory", limits.memory_max)
        } else {
            continue;
        };
        tracing::error!("{why}; narrow it by time or agent");
        std::process::exit(1);
    };
    if let Err(err) = std::thread::Builder::new().name("guard".to_owned()).spawn(watch) {
        tracing::warn!(error = %err, "a query that does not yield is not ended in time");
    }
    answered
}

pub(super) async fn query(dir: &Path, org: &str, sql: &str, format: Format, limits: QueryLimits) -> Result<()> {
    shallow(sql)?;
    let answered = guard(limits);
    let dir = std::path::absolute(dir)?;
    let control = Control::open(&dir).await?;
    let organization = control.organization(org).await?;
    let undecided = control.undecided(organization.id, FRESH_MAX).await?;
    if undecided.pending.len() == FRESH_MAX as usize {
        bail!(
            "more than {FRESH_MAX} batches are not materialised yet, and an answer without the newest would be wrong; \
             query again when `serve` has caught up"
        );
    }
    let fresh: Vec<Fresh> = undecided
        .pending
        .into_iter()
        .map(|pending| Fresh { key: pending.key, day: pending.day, landed: pending.landed, store: pending.store })
        .collect();
    let landing: Arc<dyn vedette_lake::LandedBatches> = Arc::new(Store(LandingStore::open(&dir.join("landing"))?));
    let lake = Lake::new(dir.join("tables"));
    let known = crate::materialise::versions(undecided.versions);
    let output = lake.query(organization.id, sql, &fresh, &landing, &known, limits).await?;
    if output.cut {
        tracing::warn!(rows_max = limits.rows_max, "the answer was cut; narrow the query or raise --rows-max");
    }
    let answer = render(&output, format)?;
    answered.store(true, Ordering::Release);
    print(&answer)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_operator_and_a_chain_of_operators_is_one() {
        assert_eq!(bare("a - 'it''s (--' || \"b/*\" -- x (\n/ /* ' */ c"), "a -    ||    /   c");
        let text = "(+".repeat(5000);
        shallow(&format!("SELECT count(*) FROM syslog WHERE message = '{text}'")).expect("is text");
        shallow(&format!("SELECT 1{}", " + 1".repeat(5000))).expect_err("is a chain");
        shallow(&format!("SELECT {}1{}", "(".repeat(500), ")".repeat(500))).expect_err("nests");
        shallow(&format!("SELECT '' {}", " + '' ".repeat(5000))).expect_err("is a chain of texts");
    }
}
