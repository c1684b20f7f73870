//! Artifact requests, and which batches hold the pieces of each file.

use super::{AgentKey, Change, ControlStore, Organization, audit::audit};
use crate::keys::Signer;
use anyhow::{Result, bail};
use std::collections::HashSet;
use vedette_wire::{
    AgentId, OrganizationId,
    body::{Artifact, WholeFile},
    policy::{ArtifactRequest, SignedRequest},
};

/// Interval at which open requests are sent again, for an agent that was killed before it stored the reply. Agents ignore
/// requests that they have.
const OFFER_EVERY_NS: i64 = 10_000_000_000;

/// An artifact in `artifact list`.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct ArtifactRow {
    pub(crate) id: String,
    pub(crate) agent: String,
    pub(crate) path: String,
    pub(crate) requested: i64,
    pub(crate) expires: i64,
    pub(crate) who: String,
    pub(crate) reason: String,
    pub(crate) state: String,
    pub(crate) detail: Option<String>,
    /// Facts of the whole file, JSON.
    pub(crate) whole: Option<String>,
}

/// A piece of an artifact, and the batch that holds it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Piece {
    pub(crate) start: i64,
    pub(crate) length: i64,
    pub(crate) key: String,
}

/// What the store records of a piece in a batch.
#[derive(Debug, Clone)]
pub(crate) struct PieceIndex {
    /// Id of the request.
    request: String,
    /// First byte in the file, and number of bytes.
    offset: u64,
    length: u64,
    refused: Option<String>,
    whole: Option<WholeFile>,
}

impl From<Artifact> for PieceIndex {
    fn from(piece: Artifact) -> Self {
        let Artifact { request, offset, data, refused, whole, .. } = piece;
        Self { request, offset, length: data.len() as u64, refused, whole }
    }
}

impl ControlStore {
    /// Requests a file from an agent.
    pub(crate) async fn request_artifact(
        &self,
        organization: &Organization,
        (agent, path, expires): (AgentId, &str, i64),
        signer: &Signer,
        change: Change<'_>,
    ) -> Result<String> {
        let known: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM agents WHERE organization = ? AND id = ? AND revoked IS NULL")
                .bind(organization.id.to_string())
                .bind(agent.to_string())
                .fetch_optional(&self.pool)
                .await?;
        if known.is_none() {
            bail!(
                "organization {} has no agent {agent}, or the agent is revoked; see `vedette-workspace agents`",
                organization.name
            );
        }
        let request = ArtifactRequest {
            id: uuid::Uuid::now_v7().to_string(),
            organization: organization.id,
            agent,
            path: path.to_owned(),
            issued: change.now,
            expires,
        };
        let signed = signer.sign_request(&request)?;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query(
            "INSERT INTO artifacts (id, organization, agent, path, document, signature, requested, expires, who, reason)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&request.id)
        .bind(organization.id.to_string())
        .bind(agent.to_string())
        .bind(path)
        .bind(&signed.request)
        .bind(&signed.signature)
        .bind(change.now)
        .bind(expires)
        .bind(change.who)
        .bind(change.reason)
        .execute(&mut *tx)
        .await?;
        let detail = format!("{agent} {path} {}: {}", request.id, change.reason);
        audit(&mut *tx, change, "artifact request", &detail).await?;
        tx.commit().await?;
        Ok(request.id)
    }

    /// Agents with requests that are due to be offered.
    pub(crate) async fn agents_with_requests(&self, now: i64) -> Result<HashSet<AgentKey>> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT DISTINCT organization, agent FROM artifacts WHERE state IN ('requested', 'sending') AND expires > ?1
             AND (offered IS NULL OR offered NOT BETWEEN ?1 - ?2 AND ?1)",
        )
        .bind(now)
        .bind(OFFER_EVERY_NS)
        .fetch_all(&self.pool)
        .await?;
        let key = |(organization, agent): (String, String)| {
            Ok(AgentKey { organization: organization.parse()?, agent: agent.parse()? })
        };
        rows.into_iter().map(key).collect()
    }

    /// Takes the requests of an agent that are due, and marks them as offered now.
    pub(crate) async fn offer(
        &self,
        AgentKey { organization, agent }: AgentKey,
        now: i64,
    ) -> Result<Vec<SignedRequest>> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "UPDATE artifacts SET offered = ?1 WHERE organization = ?3 AND agent = ?4
             AND state IN ('requested', 'sending') AND expires > ?1
             AND (offered IS NULL OR offered NOT BETWEEN ?1 - ?2 AND ?1)
             RETURNING document, signature",
        )
        .bind(now)
        .bind(OFFER_EVERY_NS)
        .bind(organization.to_string())
        .bind(agent.to_string())
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|(request, signature)| SignedRequest { request, signature }).collect())
    }

    /// Records the pieces in a landed batch. Ignores pieces that were not requested from this agent.
    pub(crate) async fn record_pieces(
        &self,
        AgentKey { organization, agent }: AgentKey,
        key: &str,
        pieces: &[PieceIndex],
    ) -> Result<()> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for piece in pieces {
            let state: Option<String> =
                sqlx::query_scalar("SELECT state FROM artifacts WHERE id = ? AND organization = ? AND agent = ?")
                    .bind(&piece.request)
                    .bind(organization.to_string())
                    .bind(agent.to_string())
                    .fetch_optional(&mut *tx)
                    .await?;
            // Batches may arrive out of order: the last piece before others. A refusal is final.
            let Some(state @ ("requested" | "sending" | "complete")) = state.as_deref() else { continue };
            if piece.length > 0 {
                sqlx::query(
                    "INSERT OR REPLACE INTO artifact_pieces (artifact, start, length, key) VALUES (?, ?, ?, ?)",
                )
                .bind(&piece.request)
                .bind(piece.offset.cast_signed())
                .bind(piece.length.cast_signed())
                .bind(key)
                .execute(&mut *tx)
                .await?;
            }
            let state = match (state, &piece.refused, &piece.whole) {
                ("complete", ..) | (_, None, Some(_)) => "complete",
                (_, Some(_), _) => "refused",
                (_, None, None) => "sending",
            };
            let whole = piece.whole.as_ref().map(serde_json::to_string).transpose()?;
            sqlx::query(
                "UPDATE artifacts SET state = ?, detail = coalesce(?, detail), whole = coalesce(?, whole) WHERE id = ?",
            )
            .bind(state)
            .bind(&piece.refused)
            .bind(whole)
            .bind(&piece.request)
            .execute(&mut *tx)
            .await?;
        }
        Ok(tx.commit().await?)
    }

    /// Artifacts of an organization, newest first.
    pub(crate) async fn artifacts(&self, organization: OrganizationId) -> Result<Vec<ArtifactRow>> {
        let rows = sqlx::query_as(
            "SELECT id, agent, path, requested, expires, who, reason, state, detail, whole FROM artifacts
             WHERE organization = ? ORDER BY requested DESC, id DESC",
        )
        .bind(organization.to_string())
        .fetch_all(&self.pool)
        .await?;
        Ok(rows)
    }

    /// Pieces of an artifact of this organization, in order.
    pub(crate) async fn pieces(&self, organization: OrganizationId, id: &str) -> Result<Vec<Piece>> {
        let rows = sqlx::query_as(
            "SELECT p.start, p.length, p.key FROM artifact_pieces p JOIN artifacts a ON a.id = p.artifact
             WHERE a.organization = ? AND a.id = ? ORDER BY p.start",
        )
        .bind(organization.to_string())
        .bind(id)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows)
    }
}
