//! State that the two workspaces of a pair share: organizations, policies, agents with revocations, and artifact requests. The
//! primary changes it and the secondary takes it over. Revocations can be made at either.

use super::{AgentKey, ControlStore};
use crate::keys::Signer;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use std::collections::HashSet;
use vedette_wire::{
    AgentId, OrganizationId,
    policy::{Policy as PolicyDocument, SignedPolicy},
};

/// Age in nanoseconds from which a revocation that is new here raises an alert.
const REVOCATION_DELAY_NS: i64 = 60_000_000_000;

/// The shared state, as of one moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Shared {
    organizations: Vec<Organization>,
    policies: Vec<Policy>,
    agents: Vec<SharedAgent>,
    artifacts: Vec<Artifact>,
}

#[derive(Debug, Clone, Serialize, Deserialize, sqlx::FromRow)]
struct Organization {
    id: String,
    name: String,
    tier: String,
    policy_revision: i64,
    created: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize, sqlx::FromRow)]
struct Policy {
    organization: String,
    revision: i64,
    collect: bool,
    document: String,
    signature: String,
    issued: i64,
    who: String,
    reason: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, sqlx::FromRow)]
struct SharedAgent {
    organization: String,
    id: String,
    hostname: String,
    machine: Option<String>,
    version: String,
    enrolled: i64,
    revoked: Option<i64>,
    replaces: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, sqlx::FromRow)]
struct Artifact {
    id: String,
    organization: String,
    agent: String,
    path: String,
    document: String,
    signature: String,
    requested: i64,
    expires: i64,
    who: String,
    reason: String,
}

/// A revoked agent, with its time, nanoseconds UTC.
pub(crate) type Revocation = (OrganizationId, AgentId, i64);

impl ControlStore {
    /// URL or directory of the primary; absent if this is the primary or stands alone.
    pub(crate) async fn primary(&self) -> Result<Option<String>> {
        Ok(sqlx::query_scalar("SELECT value FROM settings WHERE name = 'pair_of'").fetch_optional(&self.pool).await?)
    }

    /// Makes this workspace the secondary of a primary, or lets it stand alone.
    pub(crate) async fn set_primary(&self, primary: Option<&str>) -> Result<()> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("DELETE FROM settings WHERE name = 'pair_of'").execute(&mut *tx).await?;
        if let Some(primary) = primary {
            sqlx::query("INSERT INTO settings (name, value) VALUES ('pair_of', ?)")
                .bind(primary)
                .execute(&mut *tx)
                .await?;
        }
        Ok(tx.commit().await?)
    }

    /// Refuses actions that only the primary may perform.
    pub(crate) async fn require_primary(&self) -> Result<()> {
        match self.primary().await? {
            Some(primary) => bail!("this workspace is the secondary of {primary}; run the command on the primary"),
            None => Ok(()),
        }
    }

    /// The state that the secondary takes over.
    pub(crate) async fn shared(&self, now: i64) -> Result<Shared> {
        let mut tx = self.pool.begin().await?;
        let organizations = sqlx::query_as("SELECT * FROM organizations ORDER BY id").fetch_all(&mut *tx).await?;
        let policies =
            sqlx::query_as("SELECT * FROM policies ORDER BY organization, revision").fetch_all(&mut *tx).await?;
        let agents = sqlx::query_as(
            "SELECT organization, id, hostname, machine, version, enrolled, revoked, replaces FROM agents ORDER BY organization, id",
        )
        .fetch_all(&mut *tx)
        .await?;
        let artifacts = sqlx::query_as(
            "SELECT id, organization, agent, path, document, signature, requested, expires, who, reason FROM artifacts
             WHERE state IN ('requested', 'sending') AND expires > ? ORDER BY id",
        )
        .bind(now)
        .fetch_all(&mut *tx)
        .await?;
        Ok(Shared { organizations, policies, agents, artifacts })
    }

    /// Takes over the primary's state in one transaction. Agents revoked here stay revoked.
    pub(crate) async fn take_over(&self, shared: &Shared) -> Result<()> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for one in &shared.organizations {
            sqlx::query(
                "INSERT INTO organizations (id, name, tier, policy_revision, created) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (id) DO UPDATE SET name = ?2, tier = ?3, policy_revision = ?4
                 WHERE policy_revision <= ?4 AND (name <> ?2 OR tier <> ?3 OR policy_revision <> ?4)",
            )
            .bind(&one.id)
            .bind(&one.name)
            .bind(&one.tier)
            .bind(one.policy_revision)
            .bind(one.created)
            .execute(&mut *tx)
            .await?;
        }
        for one in &shared.policies {
            sqlx::query(
                "INSERT OR IGNORE INTO policies (organization, revision, collect, document, signature, issued, who, reason)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(&one.organization)
            .bind(one.revision)
            .bind(one.collect)
            .bind(&one.document)
            .bind(&one.signature)
            .bind(one.issued)
            .bind(&one.who)
            .bind(&one.reason)
            .execute(&mut *tx)
            .await?;
        }
        agents(&mut tx, &shared.agents).await?;
        artifacts(&mut tx, &shared.artifacts).await?;
        Ok(tx.commit().await?)
    }

    /// All revoked agents.
    pub(crate) async fn revocations(&self) -> Result<Vec<Revocation>> {
        let rows: Vec<(String, String, i64)> = sqlx::query_as(
            "SELECT organization, id, revoked FROM agents WHERE revoked IS NOT NULL ORDER BY organization, id",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(|(organization, agent, when)| Ok((organization.parse()?, agent.parse()?, when))).collect()
    }

    /// Revokes agents that the other workspace has revoked. Raises an alert for an old revocation: this workspace lost it in a restore
    /// from a backup, or was separated from its pair.
    pub(crate) async fn accept_revocations(&self, revoked: &[Revocation], now: i64) -> Result<()> {
        for (organization, agent, when) in revoked {
            let key = AgentKey { organization: *organization, agent: *agent };
            let is_late = now.saturating_sub(*when) > REVOCATION_DELAY_NS;
            if self.revoke_as_of(key, *when, now).await? && is_late {
                tracing::error!(%agent, "an agent is revoked now, which the other workspace of the pair revoked before; this one accepted its data until now; see \
                     `vedette-workspace alerts`");
                let why = "this agent was revoked long ago, and was admitted here until the other workspace of the pair reported it: this workspace was \
                           restored from an older backup, or apart from its pair";
                self.alert(key, "restored", why, now).await?;
            }
        }
        Ok(())
    }

    /// What the primary lost in a restore from a backup: the policies, and whether it lost revocations too.
    pub(crate) async fn lost_by_primary(
        &self,
        shared: &Shared,
        revoked: &[Revocation],
    ) -> Result<(Vec<SignedPolicy>, bool)> {
        let mut policies = Vec::new();
        for one in &shared.organizations {
            let newer: Vec<(String, String)> = sqlx::query_as(
                "SELECT document, signature FROM policies WHERE organization = ? AND revision > ? ORDER BY revision",
            )
            .bind(&one.id)
            .bind(one.policy_revision)
            .fetch_all(&self.pool)
            .await?;
            policies.extend(newer.into_iter().map(|(policy, signature)| SignedPolicy { policy, signature }));
        }
        let admitted: HashSet<&str> =
            shared.agents.iter().filter(|agent| agent.revoked.is_none()).map(|agent| agent.id.as_str()).collect();
        let lost = revoked.iter().any(|(_, agent, _)| admitted.contains(agent.to_string().as_str()));
        Ok((policies, lost))
    }

    /// Takes over policies that the other workspace has and this one has lost.
    pub(crate) async fn accept_policies(&self, signer: &Signer, policies: &[SignedPolicy], now: i64) -> Result<()> {
        for signed in policies {
            if !signer.has_signed(signed)? {
                bail!(
                    "the other workspace of the pair has a policy that was not signed with the key of this workspace"
                );
            }
            let policy: PolicyDocument = serde_json::from_str(&signed.policy)?;
            if self.adopt_policy(&policy, signed, "the other workspace of the pair", now).await? {
                tracing::error!(
                    revision = policy.revision,
                    "this workspace had lost a policy that the other one of the pair has"
                );
                let why = format!(
                    "the other workspace of the pair has policy revision {}, and this one did not: it was restored from an older backup",
                    policy.revision
                );
                self.raise_alert(policy.organization, "", ("restored", &why), now).await?;
            }
        }
        Ok(())
    }
}

/// Takes over agents, and revocations, which nothing undoes.
async fn agents(tx: &mut SqliteConnection, agents: &[SharedAgent]) -> Result<()> {
    for one in agents {
        sqlx::query(
            "INSERT INTO agents (organization, id, hostname, machine, version, policy_revision, enrolled, revoked, replaces)
             VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7, ?8)
             ON CONFLICT (organization, id) DO UPDATE SET machine = coalesce(?4, machine), enrolled = ?6,
               revoked = coalesce(revoked, ?7)
             WHERE ?4 IS NOT NULL AND machine IS NOT ?4 OR enrolled <> ?6 OR revoked IS NULL AND ?7 IS NOT NULL",
        )
        .bind(&one.organization)
        .bind(&one.id)
        .bind(&one.hostname)
        .bind(&one.machine)
        .bind(&one.version)
        .bind(one.enrolled)
        .bind(one.revoked)
        .bind(&one.replaces)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// Takes over requests for artifacts.
async fn artifacts(tx: &mut SqliteConnection, artifacts: &[Artifact]) -> Result<()> {
    for one in artifacts {
        sqlx::query(
            "INSERT OR IGNORE INTO artifacts
             (id, organization, agent, path, document, signature, requested, expires, who, reason)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&one.id)
        .bind(&one.organization)
        .bind(&one.agent)
        .bind(&one.path)
        .bind(&one.document)
        .bind(&one.signature)
        .bind(one.requested)
        .bind(one.expires)
        .bind(&one.who)
        .bind(&one.reason)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}
