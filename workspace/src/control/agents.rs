//! Tokens and agents.

use super::{Change, Control, Organization, audit};
use anyhow::Result;
use serde::Serialize;
use vedette_wire::{AgentId, OrganizationId};

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// Unknown here.
    #[error("the token is unknown to this workspace; create one with `vedette-workspace token new`")]
    Unknown,
    /// Expired.
    #[error("the token has expired; create one with `vedette-workspace token new`")]
    Expired,
    /// Used up.
    #[error("the token is used up; create one with `vedette-workspace token new`")]
    Used,
    /// The key of the request is revoked.
    #[error("this agent's key was revoked; stop the agent, move key.pem away, run `vedette enroll --again`, start it")]
    Revoked,
}

/// Data of an enrollment.
#[derive(Debug)]
pub(crate) struct Enrollment<'a> {
    pub(crate) agent: AgentId,
    pub(crate) hostname: &'a str,
    pub(crate) machine: Option<&'a str>,
    pub(crate) version: &'a str,
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

/// Organization of a token; checks its expiry and remaining uses.
fn good(token: Option<(String, i64, i64)>, now: i64) -> Result<String, TokenError> {
    match token {
        None => Err(TokenError::Unknown),
        Some((_, expires, _)) if expires <= now => Err(TokenError::Expired),
        Some((_, _, uses)) if uses <= 0 => Err(TokenError::Used),
        Some((organization, _, _)) => Ok(organization),
    }
}

impl Control {
    /// Stores the digest of a new token.
    pub(crate) async fn add_token(
        &self,
        organization: &Organization,
        digest: &str,
        uses: u32,
        now: i64,
        expires: i64,
    ) -> Result<()> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("INSERT INTO tokens (digest, organization, created, expires, uses_left) VALUES (?, ?, ?, ?, ?)")
            .bind(digest)
            .bind(organization.id.to_string())
            .bind(now)
            .bind(expires)
            .bind(uses)
            .execute(&mut *tx)
            .await?;
        let change = Change::automatic(now);
        audit(&mut *tx, change, "token new", &format!("{} uses {uses}", organization.name)).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Organization of a valid token.
    pub(crate) async fn check_token(&self, digest: &str, now: i64) -> Result<Result<OrganizationId, TokenError>> {
        let token: Option<(String, i64, i64)> =
            sqlx::query_as("SELECT organization, expires, uses_left FROM tokens WHERE digest = ?")
                .bind(digest)
                .fetch_optional(&self.pool)
                .await?;
        Ok(match good(token, now) {
            Ok(organization) => Ok(organization.parse()?),
            Err(err) => Err(err),
        })
    }

    /// Uses a token and stores the agent, in one transaction.
    pub(crate) async fn enroll(
        &self,
        digest: &str,
        enrollment: &Enrollment<'_>,
        now: i64,
    ) -> Result<Result<Organization, TokenError>> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let token: Option<(String, i64, i64)> =
            sqlx::query_as("SELECT organization, expires, uses_left FROM tokens WHERE digest = ?")
                .bind(digest)
                .fetch_optional(&mut *tx)
                .await?;
        let organization = match good(token, now) {
            Ok(organization) => organization,
            Err(err) => return Ok(Err(err)),
        };
        let revoked: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM agents WHERE organization = ? AND id = ? AND revoked IS NOT NULL")
                .bind(&organization)
                .bind(enrollment.agent.to_string())
                .fetch_optional(&mut *tx)
                .await?;
        if revoked.is_some() {
            return Ok(Err(TokenError::Revoked));
        }
        sqlx::query("UPDATE tokens SET uses_left = uses_left - 1 WHERE digest = ?")
            .bind(digest)
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "INSERT INTO agents (organization, id, hostname, machine, version, policy_revision, enrolled)
             VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6)
             ON CONFLICT (organization, id) DO UPDATE SET hostname = ?3, machine = ?4, version = ?5, enrolled = ?6",
        )
        .bind(&organization)
        .bind(enrollment.agent.to_string())
        .bind(enrollment.hostname)
        .bind(enrollment.machine)
        .bind(enrollment.version)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        let (name, revision): (String, i64) =
            sqlx::query_as("SELECT name, policy_revision FROM organizations WHERE id = ?")
                .bind(&organization)
                .fetch_one(&mut *tx)
                .await?;
        let change = Change::automatic(now);
        audit(&mut *tx, change, "agent enroll", &format!("{name} {}", enrollment.agent)).await?;
        tx.commit().await?;
        Ok(Ok(Organization { id: organization.parse()?, name, policy_revision: revision.cast_unsigned() }))
    }

    /// Policy revision in force for an agent; absent if it may not deliver.
    pub(crate) async fn admit(&self, organization: OrganizationId, agent: AgentId) -> Result<Option<u64>> {
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
}
