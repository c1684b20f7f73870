//! `query`.

use super::{cli::Format, print};
use crate::{ingest::LandingStore, store::ControlStore, tables};
use anyhow::{Context, Result};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use vedette_lake::{Output, QueryLimits};

/// Memory for the program, input and expressions, beyond what operators account for.
const BESIDE_BYTES: u64 = 512 << 20;
/// Interval of checks of a query's limits.
const GUARD_EVERY: Duration = Duration::from_millis(50);
/// Maximum wait for recording a query.
const RECORD_TIMEOUT: Duration = Duration::from_millis(500);

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
        tracing::error!("{why}; restrict the query to a time range or an agent");
        std::process::exit(1);
    };
    if let Err(err) = std::thread::Builder::new().name("guard".to_owned()).spawn(watch) {
        tracing::warn!(error = %err, "cannot start the thread that enforces the query limits");
    }
    answered
}

pub(super) async fn query(dir: &Path, org: &str, sql: &str, format: Format, limits: QueryLimits) -> Result<()> {
    tables::check_statement(sql)?;
    let answered = guard(limits);
    let dir = std::path::absolute(dir)?;
    let control = ControlStore::open(&dir).await?;
    let organization = control.organization(org).await?;
    let landing = LandingStore::open(&dir.join("landing"))?;
    let began = Instant::now();
    let output = tables::query(&dir, &control, landing, organization.id, sql, limits).await?;
    let took = began.elapsed();
    if output.cut {
        tracing::warn!(rows_max = limits.rows_max, "the result was truncated; narrow the query or raise --rows-max");
    }
    let answer = render(&output, format)?;
    answered.store(true, Ordering::Release);
    print(&answer)?;
    // The answer is out; others may hold the store.
    let recording = tokio::time::timeout(RECORD_TIMEOUT, control.record_query(organization.id, took)).await;
    if !matches!(recording, Ok(Ok(()))) {
        tracing::debug!("the query is not in the metrics");
    }
    Ok(())
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
