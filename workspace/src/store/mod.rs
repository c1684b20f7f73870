//! Control store: organizations, tokens, agents, landed batches, leases. An SQLite file beside the data.
//!
//! `serve` and the commands open the same database at the same time (WAL, with a busy timeout).

mod agents;
mod alerts;
mod artifacts;
mod audit;
mod cursors;
mod directives;
mod incarnations;
mod landed;
mod ledger;
mod observe;
mod organizations;
mod policies;
mod shared;
mod tokens;

pub(crate) use agents::{AgentKey, AgentRow, Contact, Enrollment};
pub(crate) use artifacts::{Piece, PieceIndex};
pub(crate) use audit::Change;
pub(crate) use directives::{DIRECTIVES_POLL, PendingDirectives};
pub(crate) use incarnations::{Refused, Rekeyed};
#[cfg(feature = "lake")]
pub(crate) use landed::Marks;
pub(crate) use landed::{BatchState, PendingBatch, PendingBatches};
pub(crate) use ledger::Account;
pub(crate) use observe::SILENT_AFTER_NS;
pub(crate) use organizations::Organization;
pub(crate) use shared::{Revocation, Shared};
#[cfg(test)]
use tokens::TokenError;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};
use tokio::sync::OwnedMutexGuard;
use vedette_wire::{OrganizationId, geo::WorkspaceGeo};

/// The control store of a workspace.
#[derive(Debug, Clone)]
pub(crate) struct ControlStore {
    pool: SqlitePool,
    writers: Arc<Writers>,
}

/// Order of writers. SQLite has a single writer, and no fair queue for it. Here writes of one organization wait for each other
/// first, and then for one of each other organization.
#[derive(Debug, Default)]
struct Writers {
    all: Arc<tokio::sync::Mutex<()>>,
    of: Mutex<HashMap<OrganizationId, Arc<tokio::sync::Mutex<()>>>>,
}

/// The right to write, until it is dropped.
struct Turn(#[expect(dead_code, reason = "held")] [OwnedMutexGuard<()>; 2]);

/// Maximum wait for others who use the store at its end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

impl ControlStore {
    /// Creates the control store of a new workspace.
    pub(crate) async fn create(dir: &Path, geo: WorkspaceGeo) -> Result<Self> {
        let control = Self::connect(dir, true).await?;
        sqlx::query("INSERT INTO settings (name, value) VALUES ('geo', ?)")
            .bind(geo.name())
            .execute(&control.pool)
            .await
            .map_err(|err| match err.as_database_error().is_some_and(|err| err.is_unique_violation()) {
                true => anyhow::anyhow!("this directory already holds a workspace"),
                false => anyhow::Error::new(err).context("cannot write the control store"),
            })?;
        Ok(control)
    }

    /// Opens the control store of an existing workspace.
    pub(crate) async fn open(dir: &Path) -> Result<Self> {
        let store = dir.join("control.sqlite");
        match std::fs::metadata(&store) {
            Ok(_) => {}
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => bail!(
                "{} holds no workspace; create one with `vedette-workspace init --dir {} --geo GEO`",
                dir.display(),
                dir.display()
            ),
            Err(err) => {
                return Err(err).with_context(|| {
                    format!("cannot open {}; run this as the user who owns the workspace", dir.display())
                });
            }
        }
        Self::connect(dir, false).await
    }

    async fn connect(dir: &Path, create: bool) -> Result<Self> {
        let path = dir.join("control.sqlite");
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(create)
            .journal_mode(SqliteJournalMode::Wal)
            // Acknowledged batches are in the landing store; rows lost in a power cut are recovered at the start.
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(20));
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            .connect_with(options)
            .await
            .with_context(|| format!("cannot open {}", path.display()))?;
        sqlx::migrate!("./migrations")
            .run(&pool)
            .await
            .with_context(|| format!("cannot upgrade {}", path.display()))?;
        Ok(Self { pool, writers: Arc::default() })
    }

    /// Checkpoints everything into `control.sqlite`, so that a copy of that file is complete.
    pub(crate) async fn close(self) {
        if tokio::time::timeout(CLOSE_TIMEOUT, self.pool.close()).await.is_err() {
            tracing::warn!("the control store is still in use; the last changes are in control.sqlite-wal");
        }
    }

    /// Waits for the right to write for an organization; for writes that take long.
    async fn turn(&self, organization: OrganizationId) -> Turn {
        let own = {
            let mut all = self.writers.of.lock();
            Arc::clone(all.entry(organization).or_default())
        };
        let own = own.lock_owned().await;
        Turn([own, Arc::clone(&self.writers.all).lock_owned().await])
    }

    /// Geography of the workspace.
    pub(crate) async fn geo(&self) -> Result<WorkspaceGeo> {
        let geo: String =
            sqlx::query_scalar("SELECT value FROM settings WHERE name = 'geo'").fetch_one(&self.pool).await?;
        Ok(geo.parse()?)
    }

    /// Result of SQLite's `PRAGMA integrity_check`; empty if the control store is intact.
    pub(crate) async fn integrity(&self) -> Result<Vec<String>> {
        let message: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(20)").fetch_all(&self.pool).await?;
        Ok(message.into_iter().filter(|line| line != "ok").collect())
    }

    /// Takes or renews a lease until `expires`; false if another holder has it.
    pub(crate) async fn lease(&self, name: &str, holder: &str, now: i64, expires: i64) -> Result<bool> {
        let done = sqlx::query(
            "INSERT INTO leases (name, holder, expires) VALUES (?1, ?2, ?4)
             ON CONFLICT (name) DO UPDATE SET holder = ?2, expires = ?4 WHERE holder = ?2 OR expires < ?3",
        )
        .bind(name)
        .bind(holder)
        .bind(now)
        .bind(expires)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }
}

#[cfg(test)]
mod tests;
