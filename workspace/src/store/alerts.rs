//! Alerts of organizations.

use super::{AgentKey, ControlStore};
use anyhow::Result;
use sqlx::SqliteExecutor;
use vedette_wire::OrganizationId;

/// A condition that an operator must look at.
#[derive(Debug, Clone, serde::Serialize, sqlx::FromRow)]
pub(crate) struct Alert {
    pub(crate) agent: String,
    pub(crate) kind: String,
    pub(crate) detail: String,
    pub(crate) first: i64,
    pub(crate) last: i64,
    pub(crate) times: i64,
}

impl ControlStore {
    /// Raises an alert, or counts a repeated one.
    pub(crate) async fn alert(
        &self,
        AgentKey { organization, agent }: AgentKey,
        kind: &str,
        detail: &str,
        now: i64,
    ) -> Result<()> {
        self.raise_alert(organization, &agent.to_string(), (kind, detail), now).await
    }

    /// Raises an alert for an agent, or with an empty id for the whole organization.
    pub(crate) async fn raise_alert(
        &self,
        organization: OrganizationId,
        agent: &str,
        (kind, detail): (&str, &str),
        now: i64,
    ) -> Result<()> {
        raise_alert(&self.pool, (&organization.to_string(), agent), (kind, detail), now).await
    }

    /// Alerts of an organization, newest first.
    pub(crate) async fn alerts(&self, organization: OrganizationId) -> Result<Vec<Alert>> {
        let rows = sqlx::query_as(
            "SELECT agent, kind, detail, first, last, times FROM alerts WHERE organization = ? ORDER BY last DESC",
        )
        .bind(organization.to_string())
        .fetch_all(&self.pool)
        .await?;
        Ok(rows)
    }
}

/// Raises an alert for an agent, or with an empty id for the organization; or counts a repeated one. `executor` may be a
/// transaction.
pub(super) async fn raise_alert(
    executor: impl SqliteExecutor<'_>,
    (organization, agent): (&str, &str),
    (kind, detail): (&str, &str),
    now: i64,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO alerts (organization, agent, kind, detail, first, last, times) VALUES (?1, ?2, ?3, ?4, ?5, ?5, 1)
         ON CONFLICT DO UPDATE SET last = ?5, times = times + 1",
    )
    .bind(organization)
    .bind(agent)
    .bind(kind)
    .bind(detail)
    .bind(now)
    .execute(executor)
    .await?;
    Ok(())
}
