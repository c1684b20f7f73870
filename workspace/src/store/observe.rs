//! State of the organizations, for metrics.

use super::{BatchState, ControlStore};
use crate::metrics::OrganizationState;
use anyhow::Result;
use std::{collections::BTreeMap, time::Duration};
use vedette_wire::OrganizationId;

/// Agents without contact for this long count as silent, nanoseconds.
pub(crate) const SILENT_AFTER_NS: i64 = 10 * 60 * 1_000_000_000;

impl ControlStore {
    /// State of all organizations, as of one moment.
    pub(crate) async fn organization_states(&self, now: i64) -> Result<Vec<OrganizationState>> {
        let mut tx = self.pool.begin().await?;
        let agents: Vec<(String, i64, i64, i64, f64)> = sqlx::query_as(
            "SELECT o.id, count(a.id), coalesce(sum(a.last_seen IS NULL OR a.last_seen < ?), 0),
               coalesce(q.queries, 0), coalesce(q.seconds, 0.0)
             FROM organizations o LEFT JOIN agents a ON a.organization = o.id AND a.revoked IS NULL
             LEFT JOIN query_times q ON q.organization = o.id GROUP BY o.id",
        )
        .bind(now.saturating_sub(SILENT_AFTER_NS))
        .fetch_all(&mut *tx)
        .await?;
        let landed: Vec<(String, BatchState, i64, i64, i64)> = sqlx::query_as(
            "SELECT organization, state, count(*), sum(bytes), min(landed) FROM landed WHERE state <> ?
             GROUP BY organization, state",
        )
        .bind(BatchState::Materialised)
        .fetch_all(&mut *tx)
        .await?;
        let alerts: Vec<(String, String, i64)> =
            sqlx::query_as("SELECT organization, kind, count(*) FROM alerts GROUP BY organization, kind")
                .fetch_all(&mut *tx)
                .await?;
        let mut states = BTreeMap::new();
        for (organization, agents, silent, queries, query_seconds) in agents {
            let state = OrganizationState {
                organization: organization.clone(),
                agents: agents.cast_unsigned(),
                silent_agents: silent.cast_unsigned(),
                queries: queries.cast_unsigned(),
                query_seconds,
                ..OrganizationState::default()
            };
            states.insert(organization, state);
        }
        for (organization, state, batches, bytes, oldest) in landed {
            let Some(of) = states.get_mut(&organization) else { continue };
            if state == BatchState::Unreadable {
                of.unreadable_batches = batches.cast_unsigned();
                continue;
            }
            (of.pending_batches, of.pending_bytes) = (batches.cast_unsigned(), bytes.cast_unsigned());
            of.pending_seconds = now.saturating_sub(oldest).max(0) as f64 / 1e9;
        }
        for (organization, kind, count) in alerts {
            if let Some(of) = states.get_mut(&organization) {
                of.alerts.push((kind, count.cast_unsigned()));
            }
        }
        Ok(states.into_values().collect())
    }

    /// Counts an answered query.
    pub(crate) async fn record_query(&self, organization: OrganizationId, took: Duration) -> Result<()> {
        sqlx::query(
            "INSERT INTO query_times (organization, queries, seconds) VALUES (?1, 1, ?2)
             ON CONFLICT DO UPDATE SET queries = queries + 1, seconds = seconds + ?2",
        )
        .bind(organization.to_string())
        .bind(took.as_secs_f64())
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
