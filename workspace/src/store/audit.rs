//! The audit log: who changed what, when and why.

use super::ControlStore;
use anyhow::Result;
use sqlx::SqliteExecutor;

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

impl ControlStore {
    /// Records a change that no transaction of the control store makes.
    pub(crate) async fn audit_by(&self, change: Change<'_>, action: &str, detail: &str) -> Result<()> {
        audit(&self.pool, change, action, detail).await
    }
}

/// Writes a line of the audit log, also within a transaction.
pub(super) async fn audit(at: impl SqliteExecutor<'_>, change: Change<'_>, action: &str, detail: &str) -> Result<()> {
    sqlx::query("INSERT INTO audit_log (time, action, detail, who) VALUES (?, ?, ?, ?)")
        .bind(change.now)
        .bind(action)
        .bind(detail)
        .bind(change.who)
        .execute(at)
        .await?;
    Ok(())
}
