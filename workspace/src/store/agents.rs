//! Agents: admission, contact, revocation.

use super::{Change, ControlStore, audit::audit};
use anyhow::{Result, bail};
use serde::Serialize;
use vedette_wire::{AgentId, OrganizationId, policy::ReportedCollectors};

/// An agent of an organization, as in the subject of its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct AgentKey {
    pub(crate) organization: OrganizationId,
    pub(crate) agent: AgentId,
}

/// Data of an enrollment.
#[derive(Debug)]
pub(crate) struct Enrollment<'a> {
    pub(crate) agent: AgentId,
    pub(crate) hostname: &'a str,
    pub(crate) machine: Option<&'a str>,
    pub(crate) version: &'a str,
}

/// What an agent says of itself with a poll.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contact<'a> {
    pub(crate) version: &'a str,
    /// Policy revision in force.
    pub(crate) revision: u64,
    /// Absent from agents of earlier releases.
    pub(crate) collectors: Option<&'a ReportedCollectors>,
}

/// An agent in `vedette-workspace agents`.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub(crate) struct AgentRow {
    #[sqlx(rename = "id")]
    pub(crate) agent: String,
    pub(crate) hostname: String,
    pub(crate) enrolled: i64,
    pub(crate) last_seen: Option<i64>,
    pub(crate) version: String,
    pub(crate) policy_revision: i64,
    #[serde(skip)]
    pub(crate) revoked: Option<i64>,
    /// The agent that this one replaced after a re-key.
    pub(crate) replaces: Option<String>,
}

impl ControlStore {
    /// Policy revision in force for an agent; absent if it may not deliver.
    pub(crate) async fn admitted_revision(&self, AgentKey { organization, agent }: AgentKey) -> Result<Option<u64>> {
        let revision: Option<i64> = sqlx::query_scalar(
            "SELECT o.policy_revision FROM agents a JOIN organizations o ON o.id = a.organization
             WHERE a.organization = ? AND a.id = ? AND a.revoked IS NULL",
        )
        .bind(organization.to_string())
        .bind(agent.to_string())
        .fetch_optional(&self.pool)
        .await?;
        Ok(revision.map(i64::cast_unsigned))
    }

    /// Agents of an organization, oldest first.
    pub(crate) async fn agents(&self, organization: OrganizationId) -> Result<Vec<AgentRow>> {
        let rows = sqlx::query_as(
            "SELECT id, hostname, enrolled, last_seen, version, policy_revision, revoked, replaces FROM agents
             WHERE organization = ? ORDER BY enrolled",
        )
        .bind(organization.to_string())
        .fetch_all(&self.pool)
        .await?;
        Ok(rows)
    }
    /// Records contact with an agent, and its revision.
    pub(crate) async fn record_contact(
        &self,
        AgentKey { organization, agent }: AgentKey,
        Contact { version, revision, collectors }: Contact<'_>,
        now: i64,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE agents SET last_seen = max(?1, coalesce(last_seen, 0)), version = ?2, policy_revision = ?3,
               collectors = coalesce(?6, collectors)
             WHERE organization = ?4 AND id = ?5
             AND (last_seen IS NULL OR last_seen < ?1 - 5000000000 OR policy_revision <> ?3 OR version <> ?2
               OR ?6 IS NOT NULL AND collectors IS NOT ?6)",
        )
        .bind(now)
        .bind(version)
        .bind(revision.cast_signed())
        .bind(organization.to_string())
        .bind(agent.to_string())
        .bind(collectors.map(ToString::to_string))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Collectors that agents of an organization have reported.
    pub(crate) async fn reported_collectors(&self, organization: OrganizationId) -> Result<ReportedCollectors> {
        let reported: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT collectors FROM agents
             WHERE organization = ? AND revoked IS NULL AND collectors IS NOT NULL",
        )
        .bind(organization.to_string())
        .fetch_all(&self.pool)
        .await?;
        let mut all = ReportedCollectors::default();
        for one in reported {
            all.0.extend(one.parse::<ReportedCollectors>()?.0);
        }
        Ok(all)
    }

    /// Revokes an agent's certificate; returns the name of the agent's organization.
    pub(crate) async fn revoke(&self, agent: AgentId, change: Change<'_>) -> Result<String> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let organization: Option<String> = sqlx::query_scalar(
            "UPDATE agents SET revoked = ? WHERE id = ? AND revoked IS NULL
             RETURNING (SELECT name FROM organizations o WHERE o.id = agents.organization)",
        )
        .bind(change.now)
        .bind(agent.to_string())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(organization) = organization else {
            bail!("agent {agent} does not exist or is already revoked; see `vedette-workspace agents`");
        };
        audit(&mut *tx, change, "agent revoke", &format!("{agent}: {}", change.reason)).await?;
        tx.commit().await?;
        Ok(organization)
    }

    /// Revokes an agent that the other workspace of the pair revoked at `time`; false if it is already revoked.
    pub(super) async fn revoke_as_of(&self, key: AgentKey, time: i64, now: i64) -> Result<bool> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let change = Change { who: "", reason: "revoked at the other workspace of the pair", now };
        let is_new = revoke(&mut tx, key, time, change).await?;
        tx.commit().await?;
        Ok(is_new)
    }
}

/// Revokes an agent that was revoked at `time`, and records it in the audit log; false if it is already revoked.
pub(super) async fn revoke(
    tx: &mut sqlx::Transaction<'static, sqlx::Sqlite>,
    key: AgentKey,
    time: i64,
    change: Change<'_>,
) -> Result<bool> {
    let done = sqlx::query("UPDATE agents SET revoked = ? WHERE organization = ? AND id = ? AND revoked IS NULL")
        .bind(time)
        .bind(key.organization.to_string())
        .bind(key.agent.to_string())
        .execute(&mut **tx)
        .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    audit(&mut **tx, change, "agent revoke", &format!("{}: {}", key.agent, change.reason)).await?;
    Ok(true)
}
