//! Cursors and stored positions of agents' sources: what an agent gets back after it lost its queue.

use super::{AgentKey, ControlStore};
use crate::batch_index::BatchIndex;
use anyhow::Result;
use sqlx::SqliteConnection;
use vedette_wire::reply::{Positions, StoredSource};

/// Maximum number of sources in an answer, and of their bytes, unless a single source has more.
const PAGE: usize = 500;
const PAGE_BYTES: u64 = 1 << 20;
/// Size of a range in bytes.
const RANGE_BYTES: u64 = 18;
/// Maximum number of ranges per source, the last ones; further gaps show as missing.
const RANGES_MAX: i64 = 1000;
/// How long a source is remembered as gone, nanoseconds: older batches may land later.
const GONE_NS: i64 = 7 * 86_400 * 1_000_000_000;

/// Stores the cursors of a batch, unless newer ones have landed.
pub(super) async fn record(tx: &mut SqliteConnection, index: &BatchIndex) -> Result<()> {
    let header = &index.header;
    let (organization, agent) = (header.organization.to_string(), header.agent.to_string());
    for update in &header.cursors {
        sqlx::query(
            "INSERT INTO cursors (organization, agent, collector, source, cursor, epoch, seq, sealed)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT DO UPDATE SET cursor = ?5, epoch = ?6, seq = ?7, sealed = ?8
             WHERE (epoch = ?6 AND seq < ?7) OR (epoch <> ?6 AND sealed <= ?8)",
        )
        .bind(&organization)
        .bind(&agent)
        .bind(&update.collector)
        .bind(&update.id)
        .bind(update.cursor.as_deref())
        .bind(header.epoch.to_string())
        .bind(header.seq.cast_signed())
        .bind(header.sealed)
        .execute(&mut *tx)
        .await?;
    }
    if header.cursors.iter().any(|update| update.cursor.is_none()) {
        sqlx::query("DELETE FROM cursors WHERE organization = ? AND agent = ? AND cursor IS NULL AND sealed < ?")
            .bind(&organization)
            .bind(&agent)
            .bind(header.sealed.saturating_sub(GONE_NS))
            .execute(tx)
            .await?;
    }
    Ok(())
}

impl ControlStore {
    /// A page of an agent's sources after one, ordered by collector and id.
    pub(crate) async fn positions(&self, key: AgentKey, after: (&str, &str)) -> Result<Positions> {
        let (organization, agent) = (key.organization.to_string(), key.agent.to_string());
        let mut tx = self.pool.begin().await?;
        let rows: Vec<(String, String, u32, i64)> = sqlx::query_as(
            "SELECT collector, source, length(cursor), sealed FROM cursors
             WHERE organization = ? AND agent = ? AND cursor IS NOT NULL AND (collector, source) > (?, ?)
             ORDER BY collector, source LIMIT ?",
        )
        .bind(&organization)
        .bind(&agent)
        .bind(after.0)
        .bind(after.1)
        .bind(PAGE as i64 + 1)
        .fetch_all(&mut *tx)
        .await?;
        let (mut more, mut bytes, mut sources) = (rows.len() > PAGE, 0, Vec::new());
        for (collector, id, cursor_bytes, sealed) in rows.into_iter().take(PAGE) {
            bytes += u64::from(cursor_bytes) + (collector.len() + id.len()) as u64;
            if bytes > PAGE_BYTES && !sources.is_empty() {
                more = true;
                break;
            }
            let mut stretches: Vec<(i64, i64)> = sqlx::query_as(
                "SELECT start, reached FROM positions WHERE organization = ? AND agent = ? AND collector = ? AND source = ?
                 ORDER BY start DESC LIMIT ?",
            )
            .bind(&organization)
            .bind(&agent)
            .bind(&collector)
            .bind(&id)
            .bind(RANGES_MAX)
            .fetch_all(&mut *tx)
            .await?;
            stretches.reverse();
            bytes += RANGE_BYTES * stretches.len() as u64;
            let cursor: Vec<u8> = sqlx::query_scalar(
                "SELECT cursor FROM cursors WHERE organization = ? AND agent = ? AND collector = ? AND source = ?",
            )
            .bind(&organization)
            .bind(&agent)
            .bind(&collector)
            .bind(&id)
            .fetch_one(&mut *tx)
            .await?;
            let stored = stretches.iter().map(|(from, to)| (from.cast_unsigned(), to.cast_unsigned())).collect();
            sources.push(StoredSource { collector, id, cursor, sealed, stored });
        }
        Ok(Positions { sources, more })
    }
}
