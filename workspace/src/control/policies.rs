//! Policies: all revisions as signed, and alerts.

use super::{Control, Organization, audit, raise_alert};
use crate::signer::Signer;
use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use vedette_wire::{
    AgentId, OrganizationId,
    policy::{Policy, REVOKED_MAX, SignedPolicy, Tier},
};

/// Author, reason and time of a change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change<'a> {
    pub(crate) who: &'a str,
    pub(crate) reason: &'a str,
    pub(crate) now: i64,
}

impl Change<'_> {
    /// A change without author and reason.
    pub(crate) const fn automatic(now: i64) -> Self {
        Self { who: "", reason: "", now }
    }
}

/// A revision in `policy show --history`.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Revision {
    pub(crate) document: String,
    pub(crate) issued: i64,
    pub(crate) who: String,
    pub(crate) reason: String,
}

/// A condition that an organization must look at.
#[derive(Debug, Clone, serde::Serialize, sqlx::FromRow)]
pub(crate) struct Alert {
    pub(crate) agent: String,
    pub(crate) kind: String,
    pub(crate) detail: String,
    pub(crate) first: i64,
    pub(crate) last: i64,
    pub(crate) times: i64,
}

type Transaction = sqlx::Transaction<'static, sqlx::Sqlite>;

async fn insert(tx: &mut Transaction, signer: &Signer, policy: &Policy, change: Change<'_>) -> Result<()> {
    let signed = signer.sign(policy)?;
    keep(tx, policy, &signed, change).await?;
    sqlx::query("UPDATE organizations SET policy_revision = ?, tier = ? WHERE id = ?")
        .bind(policy.revision.cast_signed())
        .bind(policy.tier.name())
        .bind(policy.organization.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Stores a revision, and records it in the audit log.
async fn keep(tx: &mut Transaction, policy: &Policy, signed: &SignedPolicy, change: Change<'_>) -> Result<()> {
    sqlx::query(
        "INSERT INTO policies (organization, revision, collect, document, signature, issued, who, reason)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(policy.organization.to_string())
    .bind(policy.revision.cast_signed())
    .bind(policy.collect)
    .bind(&signed.policy)
    .bind(&signed.signature)
    .bind(policy.issued)
    .bind(change.who)
    .bind(change.reason)
    .execute(&mut **tx)
    .await?;
    let detail = format!("{} revision {}: {}", policy.organization, policy.revision, change.reason);
    audit(&mut **tx, change, "policy set", &detail).await
}

/// Revokes an agent that was revoked at `time`, and records it in the audit log; false if it is already revoked.
async fn revoke(tx: &mut Transaction, who: (OrganizationId, AgentId), time: i64, change: Change<'_>) -> Result<bool> {
    let done = sqlx::query("UPDATE agents SET revoked = ? WHERE organization = ? AND id = ? AND revoked IS NULL")
        .bind(time)
        .bind(who.0.to_string())
        .bind(who.1.to_string())
        .execute(&mut **tx)
        .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    audit(&mut **tx, change, "agent revoke", &format!("{}: {}", who.1, change.reason)).await?;
    Ok(true)
}

impl Control {
    /// Whether any policy was ever signed here.
    pub(crate) async fn has_policies(&self) -> Result<bool> {
        Ok(sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM policies)").fetch_one(&self.pool).await?)
    }

    /// Creates first policies for organizations of an older release.
    pub(crate) async fn first_policies(&self, signer: &Signer, change: Change<'_>) -> Result<()> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let without: Vec<(String, String, i64)> = sqlx::query_as(
            "SELECT id, tier, policy_revision FROM organizations o
             WHERE NOT EXISTS (SELECT 1 FROM policies p WHERE p.organization = o.id)",
        )
        .fetch_all(&mut *tx)
        .await?;
        for (id, tier, revision) in without {
            let tier: Tier = tier.parse().map_err(anyhow::Error::msg)?;
            let first = Policy::first(id.parse()?, tier, change.now);
            insert(&mut tx, signer, &Policy { revision: revision.cast_unsigned(), ..first }, change).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Changes the policy of an organization by a new revision.
    pub(crate) async fn set_policy(
        &self,
        organization: &Organization,
        signer: &Signer,
        change: Change<'_>,
        edit: impl FnOnce(&mut Policy) -> Result<()>,
    ) -> Result<Policy> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let document: String =
            sqlx::query_scalar("SELECT document FROM policies WHERE organization = ? ORDER BY revision DESC LIMIT 1")
                .bind(organization.id.to_string())
                .fetch_one(&mut *tx)
                .await?;
        let mut policy: Policy = serde_json::from_str(&document)?;
        edit(&mut policy)?;
        policy.check().map_err(anyhow::Error::msg)?;
        let revoked: Vec<(String, i64)> = sqlx::query_as(
            "SELECT id, revoked FROM agents WHERE organization = ? AND revoked IS NOT NULL ORDER BY revoked DESC LIMIT ?",
        )
        .bind(organization.id.to_string())
        .bind(REVOKED_MAX as i64)
        .fetch_all(&mut *tx)
        .await?;
        policy.revoked = revoked.into_iter().map(|(agent, time)| Ok((agent.parse()?, time))).collect::<Result<_>>()?;
        // Clock seconds are never reused as revisions, even after a restore from a backup.
        policy.revision = (policy.revision + 1).max(change.now.cast_unsigned() / 1_000_000_000);
        policy.issued = change.now;
        insert(&mut tx, signer, &policy, change).await?;
        tx.commit().await?;
        Ok(policy)
    }

    /// Takes over a revision that was signed here and lost, and revokes the agents that it names; false if it is known. One that is
    /// older than the one in force is only stored.
    pub(crate) async fn adopt_policy(
        &self,
        policy: &Policy,
        signed: &SignedPolicy,
        from: &str,
        now: i64,
    ) -> Result<bool> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let (organization, revision) = (policy.organization.to_string(), policy.revision.cast_signed());
        let is_known: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM policies WHERE organization = ? AND revision = ?)")
                .bind(&organization)
                .bind(revision)
                .fetch_one(&mut *tx)
                .await?;
        if is_known {
            return Ok(false);
        }
        sqlx::query("UPDATE organizations SET policy_revision = ?1, tier = ?2 WHERE id = ?3 AND policy_revision < ?1")
            .bind(revision)
            .bind(policy.tier.name())
            .bind(&organization)
            .execute(&mut *tx)
            .await?;
        let reason = format!("brought by {from}: this store was restored");
        keep(&mut tx, policy, signed, Change { who: "", reason: &reason, now }).await?;
        let mut revoked = Vec::new();
        for (agent, time) in &policy.revoked {
            let reason = format!("named by a policy that {from} brought");
            let change = Change { who: "", reason: &reason, now };
            if revoke(&mut tx, (policy.organization, *agent), *time, change).await? {
                revoked.push(*agent);
            }
        }
        tx.commit().await?;
        for agent in revoked {
            tracing::error!(%agent, "a revoked agent was admitted here; a policy that {from} brought names it");
            let why = format!(
                "this agent was revoked, and was admitted here until {from} brought the policy that names it: this workspace \
                 was restored from an older backup"
            );
            self.alert((policy.organization, agent), "restored", &why, now).await?;
        }
        Ok(true)
    }

    /// The known revisions next to an unknown one.
    pub(crate) async fn revisions_beside(&self, organization: OrganizationId, revision: u64) -> Result<Vec<u64>> {
        let beside: (Option<i64>, Option<i64>) = sqlx::query_as(
            "SELECT max(revision) FILTER (WHERE revision < ?2), min(revision) FILTER (WHERE revision > ?2)
             FROM policies WHERE organization = ?1",
        )
        .bind(organization.to_string())
        .bind(revision.cast_signed())
        .fetch_one(&self.pool)
        .await?;
        // Nothing precedes the first, and later ones than the last are not lost.
        Ok(match beside {
            (Some(below), Some(above)) => vec![below.cast_unsigned(), above.cast_unsigned()],
            _ => Vec::new(),
        })
    }

    /// A revision of an organization's policy as signed; absent if unknown.
    pub(crate) async fn policy(
        &self,
        organization: OrganizationId,
        revision: u64,
    ) -> Result<Option<(Policy, SignedPolicy)>> {
        let row: Option<(String, String)> =
            sqlx::query_as("SELECT document, signature FROM policies WHERE organization = ? AND revision = ?")
                .bind(organization.to_string())
                .bind(revision.cast_signed())
                .fetch_optional(&self.pool)
                .await?;
        row.map(|(policy, signature)| {
            let parsed = serde_json::from_str(&policy).context("a policy in the control store is damaged")?;
            Ok((parsed, SignedPolicy { policy, signature }))
        })
        .transpose()
    }

    /// All revisions, newest first.
    pub(crate) async fn policy_history(&self, organization: OrganizationId) -> Result<Vec<Revision>> {
        let rows = sqlx::query_as(
            "SELECT document, issued, who, reason FROM policies WHERE organization = ? ORDER BY revision DESC",
        )
        .bind(organization.to_string())
        .fetch_all(&self.pool)
        .await?;
        Ok(rows)
    }

    /// When collection was first switched off after a revision, nanoseconds UTC.
    pub(crate) async fn switched_off_behind(&self, organization: OrganizationId, revision: u64) -> Result<Option<i64>> {
        let issued = sqlx::query_scalar(
            "SELECT min(issued) FROM policies WHERE organization = ? AND revision > ? AND collect = 0",
        )
        .bind(organization.to_string())
        .bind(revision.cast_signed())
        .fetch_one(&self.pool)
        .await?;
        Ok(issued)
    }

    /// The revision in force of every organization.
    pub(crate) async fn policy_revisions(&self) -> Result<HashMap<OrganizationId, u64>> {
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT id, policy_revision FROM organizations").fetch_all(&self.pool).await?;
        rows.into_iter().map(|(id, revision)| Ok((id.parse()?, revision.cast_unsigned()))).collect()
    }

    /// Records contact with an agent, and its revision.
    pub(crate) async fn heard_of(
        &self,
        (organization, agent): (OrganizationId, AgentId),
        version: &str,
        revision: u64,
        now: i64,
    ) -> Result<()> {
        sqlx::query(
            "UPDATE agents SET last_seen = max(?1, coalesce(last_seen, 0)), version = ?2, policy_revision = ?3
             WHERE organization = ?4 AND id = ?5
             AND (last_seen IS NULL OR last_seen < ?1 - 5000000000 OR policy_revision <> ?3 OR version <> ?2)",
        )
        .bind(now)
        .bind(version)
        .bind(revision.cast_signed())
        .bind(organization.to_string())
        .bind(agent.to_string())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Raises an alert, or counts a repeated one.
    pub(crate) async fn alert(
        &self,
        (organization, agent): (OrganizationId, AgentId),
        kind: &str,
        detail: &str,
        now: i64,
    ) -> Result<()> {
        self.alert_of(organization, &agent.to_string(), (kind, detail), now).await
    }

    /// Raises an alert for an agent, or with an empty id for the organization.
    pub(crate) async fn alert_of(
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
            bail!("there is no agent {agent} that is not revoked already; see `vedette-workspace agents`");
        };
        audit(&mut *tx, change, "agent revoke", &format!("{agent}: {}", change.reason)).await?;
        tx.commit().await?;
        Ok(organization)
    }

    /// Revokes an agent that the other workspace of the pair revoked at `time`; false if it is already revoked.
    pub(super) async fn revoke_late(&self, who: (OrganizationId, AgentId), time: i64, now: i64) -> Result<bool> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let change = Change { who: "", reason: "revoked at the other workspace of the pair", now };
        let is_new = revoke(&mut tx, who, time, change).await?;
        tx.commit().await?;
        Ok(is_new)
    }
}
