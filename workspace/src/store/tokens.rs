//! Tokens: for enrollment, and for the secondary of a pair. The store holds their digests.

use super::{Change, ControlStore, Organization, agents::Enrollment, audit::audit};
use anyhow::Result;
use vedette_wire::OrganizationId;

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
    #[error(
        "this agent's key was revoked; stop the agent, move key.pem aside, run `vedette enroll --again`, and start it"
    )]
    Revoked,
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

impl ControlStore {
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

    /// Stores the digest of a token for a pair.
    pub(crate) async fn add_pair_token(&self, digest: &str, now: i64, expires: i64) -> Result<()> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("INSERT INTO pair_tokens (digest, expires) VALUES (?, ?)")
            .bind(digest)
            .bind(expires)
            .execute(&mut *tx)
            .await?;
        audit(&mut *tx, Change::automatic(now), "token pair", "").await?;
        tx.commit().await?;
        Ok(())
    }

    /// Uses a token for a pair; false if it is unknown or expired.
    pub(crate) async fn use_pair_token(&self, digest: &str, now: i64) -> Result<bool> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let done = sqlx::query("DELETE FROM pair_tokens WHERE digest = ? AND expires > ?")
            .bind(digest)
            .bind(now)
            .execute(&mut *tx)
            .await?;
        let known = done.rows_affected() == 1;
        if known {
            let change = Change::automatic(now);
            audit(&mut *tx, change, "pair join", "another workspace has this one's keys now").await?;
        }
        tx.commit().await?;
        Ok(known)
    }
}
