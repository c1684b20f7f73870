//! Control store: organizations, tokens, agents, landed batches, leases. An SQLite file beside the data.
//!
//! `serve` and the commands open the same database at the same time (WAL, with a busy timeout).

mod agents;
mod artifacts;
mod clones;
mod landed;
mod ledger;
mod policies;
mod positions;
mod shared;

#[cfg(test)]
pub(crate) use agents::TokenError;
pub(crate) use agents::{AgentRow, Enrollment};
pub(crate) use artifacts::Piece;
pub(crate) use clones::{Refused, Rekeyed};
#[cfg(feature = "lake")]
pub(crate) use landed::Marks;
pub(crate) use landed::SET_ASIDE;
pub(crate) use ledger::Account;
pub(crate) use policies::Change;
pub(crate) use shared::{Revocation, Shared};

use crate::signer::Signer;
use anyhow::{Context, Result, anyhow, bail};
use sqlx::{
    SqliteExecutor, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::OwnedMutexGuard;
use vedette_wire::{OrganizationId, geo::WorkspaceGeo, policy::Tier};

/// The control store of a workspace.
#[derive(Debug, Clone)]
pub(crate) struct Control {
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

/// An organization.
#[derive(Debug, Clone)]
pub(crate) struct Organization {
    pub(crate) id: OrganizationId,
    pub(crate) name: String,
    pub(crate) policy_revision: u64,
}

/// Maximum wait for others who use the store at its end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

impl Control {
    /// Creates the control store of a new workspace.
    pub(crate) async fn create(dir: &Path, geo: WorkspaceGeo) -> Result<Self> {
        let control = Self::connect(dir, true).await?;
        sqlx::query("INSERT INTO settings (name, value) VALUES ('geo', ?)")
            .bind(geo.name())
            .execute(&control.pool)
            .await
            .context("this directory already holds a workspace")?;
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
            let mut all = self.writers.of.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Adds an organization with its first policy.
    pub(crate) async fn add_organization(
        &self,
        name: &str,
        tier: Tier,
        signer: &Signer,
        change: Change<'_>,
    ) -> Result<OrganizationId> {
        let id = OrganizationId::from_uuid(uuid::Uuid::now_v7());
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let done = sqlx::query("INSERT INTO organizations (id, name, tier, created) VALUES (?, ?, ?, ?)")
            .bind(id.to_string())
            .bind(name)
            .bind(tier.name())
            .bind(change.now)
            .execute(&mut *tx)
            .await;
        match done {
            Err(sqlx::Error::Database(err)) if err.is_unique_violation() => {
                bail!("there is an organization {name:?} already; choose another name")
            }
            other => other.map(drop)?,
        }
        audit(&mut *tx, change, "organization add", &format!("{name} {tier} {id}")).await?;
        tx.commit().await?;
        self.first_policies(signer, change).await?;
        Ok(id)
    }

    /// Finds an organization by name.
    pub(crate) async fn organization(&self, name: &str) -> Result<Organization> {
        if let Some(found) = self.organization_by("name", name).await? {
            return Ok(found);
        }
        let names: Vec<String> = sqlx::query_scalar("SELECT name FROM organizations").fetch_all(&self.pool).await?;
        let near = names
            .iter()
            .map(|known| (strsim::jaro_winkler(name, known), known))
            .filter(|(likeness, _)| *likeness > 0.8)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        Err(match near {
            Some((_, near)) => anyhow!("there is no organization {name:?}; is it {near:?}?"),
            None => {
                anyhow!("there is no organization {name:?}; add it with `vedette-workspace org add {name} --tier TIER`")
            }
        })
    }

    /// Finds an organization by the id in a certificate.
    pub(crate) async fn organization_of(&self, id: OrganizationId) -> Result<Organization> {
        self.organization_by("id", &id.to_string()).await?.ok_or_else(|| anyhow!("there is no organization {id}"))
    }

    async fn organization_by(&self, column: &'static str, value: &str) -> Result<Option<Organization>> {
        let sql = format!("SELECT id, name, policy_revision FROM organizations WHERE {column} = ?");
        let row: Option<(String, String, i64)> =
            sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(value).fetch_optional(&self.pool).await?;
        row.map(|(id, name, revision)| {
            Ok(Organization { id: id.parse()?, name, policy_revision: revision.cast_unsigned() })
        })
        .transpose()
    }

    /// Ids of all organizations.
    pub(crate) async fn organization_ids(&self) -> Result<Vec<OrganizationId>> {
        let ids: Vec<String> = sqlx::query_scalar("SELECT id FROM organizations").fetch_all(&self.pool).await?;
        ids.iter().map(|id| Ok(id.parse()?)).collect()
    }

    /// Records a change that no transaction of the control store makes.
    pub(crate) async fn audit_by(&self, change: Change<'_>, action: &str, detail: &str) -> Result<()> {
        audit(&self.pool, change, action, detail).await
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

/// Writes a line of the audit log, also within a transaction.
async fn audit(at: impl SqliteExecutor<'_>, change: Change<'_>, action: &str, detail: &str) -> Result<()> {
    sqlx::query("INSERT INTO audit_log (time, action, detail, who) VALUES (?, ?, ?, ?)")
        .bind(change.now)
        .bind(action)
        .bind(detail)
        .bind(change.who)
        .execute(at)
        .await?;
    Ok(())
}

/// Raises an alert for an agent, or with an empty id for the organization; counts a repeated one. Also within a transaction.
async fn raise_alert(
    at: impl SqliteExecutor<'_>,
    (organization, agent): (&str, &str),
    (kind, detail): (&str, &str),
    now: i64,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO alerts (organization, agent, kind, detail, first, last, times) VALUES (?1, ?2, ?3, ?4, ?5, ?5, 1)
         ON CONFLICT DO UPDATE SET last = ?5, times = times + 1",
    )
    .bind(organization)
    .bind(agent)
    .bind(kind)
    .bind(detail)
    .bind(now)
    .execute(at)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests;
