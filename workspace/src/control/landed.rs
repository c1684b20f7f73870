//! What has landed and is not materialised yet.

use super::{Change, Control, ledger};
use crate::tiles::Noted;
use anyhow::Result;
use sqlx::SqliteConnection;
use std::collections::BTreeMap;
use vedette_wire::{OrganizationId, policy::Store};

/// A landed batch that is not materialised.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Pending {
    pub(crate) key: String,
    pub(crate) day: String,
    pub(crate) landed: i64,
    pub(crate) bytes: i64,
    #[sqlx(try_from = "String")]
    pub(crate) store: Store,
}

/// The batches that are not marked as materialised, and the versions up to which tables hold those that are.
#[derive(Debug, Clone)]
pub(crate) struct Undecided {
    pub(crate) pending: Vec<Pending>,
    pub(crate) versions: Marks,
}

/// State of a batch that could not be written into the tables.
pub(crate) const SET_ASIDE: i64 = 2;

/// Version and rows that a table is known to have, by its name.
pub(crate) type Marks = BTreeMap<String, (u64, u64)>;

impl Control {
    /// Note a landed batch, lay it beside what is there, and note that its agent was seen. A repeat changes no ledger.
    pub(crate) async fn note_landed(&self, key: &str, day: &str, bytes: usize, noted: &Noted, now: i64) -> Result<()> {
        let header = &noted.header;
        let organization = header.organization.to_string();
        let _turn = self.turn(header.organization).await;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        if insert(&mut tx, key, &organization, day, (bytes as u64, noted.store), now).await? {
            ledger::note(&mut tx, noted, now).await?;
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

    /// When the newest noted batch landed, nanoseconds UTC.
    pub(crate) async fn last_landed(&self) -> Result<Option<i64>> {
        Ok(sqlx::query_scalar("SELECT max(landed) FROM landed").fetch_one(&self.pool).await?)
    }

    /// Whether a batch is noted.
    pub(crate) async fn is_noted(&self, key: &str) -> Result<bool> {
        let found: Option<i64> =
            sqlx::query_scalar("SELECT 1 FROM landed WHERE key = ?").bind(key).fetch_optional(&self.pool).await?;
        Ok(found.is_some())
    }

    /// Note a batch found in the landing store at the start; without `noted` it cannot be read.
    pub(crate) async fn note_found(
        &self,
        key: &str,
        organization: &str,
        day: &str,
        bytes: u64,
        noted: Option<&Noted>,
        now: i64,
    ) -> Result<bool> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let store = noted.map_or(Store::All, |noted| noted.store);
        let new = insert(&mut tx, key, organization, day, (bytes, store), now).await?;
        if let Some(noted) = noted.filter(|_| new) {
            ledger::note(&mut tx, noted, now).await?;
        }
        tx.commit().await?;
        Ok(new)
    }

    /// Oldest first, `most` at the most, as of one moment.
    pub(crate) async fn undecided(&self, organization: OrganizationId, most: u32) -> Result<Undecided> {
        let mut tx = self.pool.begin().await?;
        let pending = sqlx::query_as(
            "SELECT key, day, landed, bytes, store FROM landed WHERE organization = ? AND state = 0 ORDER BY landed LIMIT ?",
        )
        .bind(organization.to_string())
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
        Ok(Undecided { pending, versions })
    }

    /// Mark batches as materialised, and the versions that hold them, in one transaction.
    pub(crate) async fn mark_materialised(
        &self,
        organization: OrganizationId,
        keys: &[String],
        undecodable: &[String],
        versions: &Marks,
    ) -> Result<()> {
        let _turn = self.turn(organization).await;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for (state, keys) in [(1, keys), (SET_ASIDE, undecodable)] {
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

    /// The landed batches of an organization by key, behind one, with their states, so many at the most.
    pub(crate) async fn landed_behind(
        &self,
        organization: OrganizationId,
        behind: &str,
        most: u32,
    ) -> Result<Vec<(String, i64)>> {
        let rows =
            sqlx::query_as("SELECT key, state FROM landed WHERE organization = ? AND key > ? ORDER BY key LIMIT ?")
                .bind(organization.to_string())
                .bind(behind)
                .bind(most)
                .fetch_all(&self.pool)
                .await?;
        Ok(rows)
    }

    /// Have every landed batch of an organization materialised again: its tables are gone.
    pub(crate) async fn materialise_again(&self, organization: OrganizationId, change: Change<'_>) -> Result<u64> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("DELETE FROM table_versions WHERE organization = ?")
            .bind(organization.to_string())
            .execute(&mut *tx)
            .await?;
        let done = sqlx::query("UPDATE landed SET state = 0 WHERE organization = ?")
            .bind(organization.to_string())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        self.audit_by(change, "tables rebuild", &organization.to_string()).await?;
        Ok(done.rows_affected())
    }

    /// Have batches that were set aside tried again; how many these are.
    pub(crate) async fn try_set_aside_again(&self, organization: OrganizationId) -> Result<u64> {
        let done = sqlx::query("UPDATE landed SET state = 0 WHERE organization = ? AND state = ?")
            .bind(organization.to_string())
            .bind(SET_ASIDE)
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected())
    }

    /// What SQLite finds wrong with the control store (`PRAGMA integrity_check`); nothing where it is whole.
    pub(crate) async fn integrity(&self) -> Result<Vec<String>> {
        let said: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(20)").fetch_all(&self.pool).await?;
        Ok(said.into_iter().filter(|line| line != "ok").collect())
    }
}

/// False where it is noted already.
async fn insert(
    tx: &mut SqliteConnection,
    key: &str,
    organization: &str,
    day: &str,
    (bytes, store): (u64, Store),
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
