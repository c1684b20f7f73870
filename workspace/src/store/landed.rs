//! Landed batches that are not materialised yet.

use super::{Change, ControlStore, audit::audit, ledger};
use crate::batch_index::BatchIndex;
use anyhow::Result;
use sqlx::SqliteConnection;
use std::collections::BTreeMap;
use vedette_wire::{OrganizationId, policy::StoreLevel};

/// State of a landed batch, column `state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::Type)]
#[repr(i64)]
pub(crate) enum BatchState {
    /// Not in the tables yet.
    Pending = 0,
    /// In the tables.
    Materialised = 1,
    /// It cannot be read, or cannot be written to the tables.
    Unreadable = 2,
}

/// A landed batch that is not materialised.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct PendingBatch {
    pub(crate) key: String,
    pub(crate) day: String,
    pub(crate) landed: i64,
    pub(crate) bytes: i64,
    #[sqlx(try_from = "String")]
    pub(crate) store: StoreLevel,
}

/// Pending batches, oldest first, and the table versions that hold the others.
#[derive(Debug, Clone)]
pub(crate) struct PendingBatches {
    pub(crate) batches: Vec<PendingBatch>,
    pub(crate) versions: Marks,
}

/// Known version and number of rows, by table.
pub(crate) type Marks = BTreeMap<String, (u64, u64)>;

impl ControlStore {
    /// Records a landed batch, merges it into the ledger, and updates when its agent was last seen. A repeated batch does not
    /// change the ledger.
    pub(crate) async fn record_landed(
        &self,
        key: &str,
        day: &str,
        bytes: usize,
        index: &BatchIndex,
        now: i64,
    ) -> Result<()> {
        let header = &index.header;
        let organization = header.organization.to_string();
        let _turn = self.turn(header.organization).await;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        if insert(&mut tx, key, &organization, day, (bytes as u64, index.store), now).await? {
            ledger::merge(&mut tx, index, now).await?;
        }
        sqlx::query(
            "UPDATE agents SET last_seen = ?, version = ?, policy_revision = ?, hostname = coalesce(nullif(?, ''), hostname)
             WHERE organization = ? AND id = ?",
        )
        .bind(now)
        .bind(&header.agent_version)
        .bind(header.policy_revision.cast_signed())
        .bind(&header.host.hostname)
        .bind(&organization)
        .bind(header.agent.to_string())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// When the newest recorded batch landed, nanoseconds UTC.
    pub(crate) async fn last_landed(&self) -> Result<Option<i64>> {
        Ok(sqlx::query_scalar("SELECT max(landed) FROM landed").fetch_one(&self.pool).await?)
    }

    /// Whether a batch is recorded.
    pub(crate) async fn is_recorded(&self, key: &str) -> Result<bool> {
        let found: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM landed WHERE key = ?").bind(key).fetch_optional(&self.pool).await?;
        Ok(found.is_some())
    }

    /// Records a batch that was found in the landing store at the start; `index` is absent if it cannot be read.
    pub(crate) async fn record_found(
        &self,
        key: &str,
        organization: &str,
        day: &str,
        bytes: u64,
        index: Option<&BatchIndex>,
        now: i64,
    ) -> Result<bool> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let store = index.map_or(StoreLevel::All, |index| index.store);
        let new = insert(&mut tx, key, organization, day, (bytes, store), now).await?;
        if let Some(index) = index.filter(|_| new) {
            ledger::merge(&mut tx, index, now).await?;
        }
        tx.commit().await?;
        Ok(new)
    }

    /// Up to `most` pending batches, oldest first, as of one moment.
    pub(crate) async fn pending(&self, organization: OrganizationId, most: u32) -> Result<PendingBatches> {
        let mut tx = self.pool.begin().await?;
        let batches = sqlx::query_as(
            "SELECT key, day, landed, bytes, store FROM landed WHERE organization = ? AND state = ? ORDER BY landed LIMIT ?",
        )
        .bind(organization.to_string())
        .bind(BatchState::Pending)
        .bind(most)
        .fetch_all(&mut *tx)
        .await?;
        let versions: Vec<(String, i64, i64)> =
            sqlx::query_as("SELECT name, version, rows FROM table_versions WHERE organization = ?")
                .bind(organization.to_string())
                .fetch_all(&mut *tx)
                .await?;
        let mark = |(name, version, rows): (String, i64, i64)| (name, (version.cast_unsigned(), rows.cast_unsigned()));
        let versions = versions.into_iter().map(mark).collect();
        Ok(PendingBatches { batches, versions })
    }

    /// Marks batches as materialised together with the versions that hold them, in one transaction.
    pub(crate) async fn mark_materialised(
        &self,
        organization: OrganizationId,
        keys: &[String],
        unreadable: &[String],
        versions: &Marks,
    ) -> Result<()> {
        let _turn = self.turn(organization).await;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for (state, keys) in [(BatchState::Materialised, keys), (BatchState::Unreadable, unreadable)] {
            for key in keys {
                sqlx::query("UPDATE landed SET state = ? WHERE key = ?")
                    .bind(state)
                    .bind(key)
                    .execute(&mut *tx)
                    .await?;
            }
        }
        for (name, (version, rows)) in versions {
            sqlx::query(
                "INSERT INTO table_versions (organization, name, version, rows) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (organization, name) DO UPDATE SET version = max(version, ?3), rows = max(rows, ?4)",
            )
            .bind(organization.to_string())
            .bind(name)
            .bind(version.cast_signed())
            .bind(rows.cast_signed())
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Up to a number of landed batches of an organization by key, after one, with their states.
    pub(crate) async fn landed_after(
        &self,
        organization: OrganizationId,
        after: &str,
        most: u32,
    ) -> Result<Vec<(String, BatchState)>> {
        let rows =
            sqlx::query_as("SELECT key, state FROM landed WHERE organization = ? AND key > ? ORDER BY key LIMIT ?")
                .bind(organization.to_string())
                .bind(after)
                .bind(most)
                .fetch_all(&self.pool)
                .await?;
        Ok(rows)
    }

    /// Marks all landed batches of an organization for materialisation, since its tables are gone.
    pub(crate) async fn materialise_again(&self, organization: OrganizationId, change: Change<'_>) -> Result<u64> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("DELETE FROM table_versions WHERE organization = ?")
            .bind(organization.to_string())
            .execute(&mut *tx)
            .await?;
        let done = sqlx::query("UPDATE landed SET state = ? WHERE organization = ?")
            .bind(BatchState::Pending)
            .bind(organization.to_string())
            .execute(&mut *tx)
            .await?;
        audit(&mut *tx, change, "tables rebuild", &organization.to_string()).await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }

    /// Makes unreadable batches pending again; returns their number.
    pub(crate) async fn retry_failed(&self, organization: OrganizationId) -> Result<u64> {
        let done = sqlx::query("UPDATE landed SET state = ? WHERE organization = ? AND state = ?")
            .bind(BatchState::Pending)
            .bind(organization.to_string())
            .bind(BatchState::Unreadable)
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected())
    }
}

/// False if it is already recorded.
async fn insert(
    tx: &mut SqliteConnection,
    key: &str,
    organization: &str,
    day: &str,
    (bytes, store): (u64, StoreLevel),
    now: i64,
) -> Result<bool> {
    let done = sqlx::query(
        "INSERT OR IGNORE INTO landed (key, organization, day, landed, bytes, store) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(key)
    .bind(organization)
    .bind(day)
    .bind(now)
    .bind(bytes.cast_signed())
    .bind(store.name())
    .execute(tx)
    .await?;
    Ok(done.rows_affected() > 0)
}
