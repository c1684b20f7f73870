//! Policies: all revisions, as signed.

use super::{AgentKey, Change, ControlStore, Organization, agents::revoke, audit::audit};
use crate::keys::Signer;
use anyhow::{Context, Result};
use std::{collections::HashMap, path::Path};
use vedette_wire::{
    OrganizationId,
    policy::{Policy, REVOKED_MAX, SignedPolicy, Tier},
};

/// A revision in `policy show --history`.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Revision {
    pub(crate) document: String,
    pub(crate) issued: i64,
    pub(crate) who: String,
    pub(crate) reason: String,
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

impl ControlStore {
    /// Whether any policy was ever signed here.
    pub(crate) async fn has_policies(&self) -> Result<bool> {
        Ok(sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM policies)").fetch_one(&self.pool).await?)
    }

    /// The policy key; created for a workspace of a release without policies.
    pub(crate) async fn signer(&self, dir: &Path) -> Result<Signer> {
        if self.has_policies().await? || dir.join("policy.key").exists() {
            Signer::load(dir)
        } else {
            Signer::create(dir)
        }
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
            let key = AgentKey { organization: policy.organization, agent: *agent };
            if revoke(&mut tx, key, *time, change).await? {
                revoked.push(key);
            }
        }
        tx.commit().await?;
        for key in revoked {
            tracing::error!(agent = %key.agent, "this workspace admitted an agent that had been revoked; a policy from {from} names the agent as revoked");
            let why = format!(
                "this agent was revoked, and was admitted here until {from} brought the policy that names it: this workspace \
                 was restored from an older backup"
            );
            self.alert(key, "restored", &why, now).await?;
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
    pub(crate) async fn switched_off_after(&self, organization: OrganizationId, revision: u64) -> Result<Option<i64>> {
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
}
