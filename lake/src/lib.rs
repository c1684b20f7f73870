//! What has landed, as tables: one Delta table per organization and OCSF class, partitioned by day, and SQL over both
//! what is materialised and what has just landed.
//!
//! A commit names the landed keys that it holds. Whoever materialises or queries is told by the control store up to
//! which version each table is known to hold everything, and reads the names in the commits behind it: after a crash
//! in the middle, no batch is written twice and none is left out.

mod checksum;
mod columns;
mod fresh;
mod minutes;
mod query;
mod render;
mod table;

pub use columns::{TableColumns, tables};
pub use fresh::{Fresh, Landing};
pub use query::{Limits, Output, QueryError};
pub use render::{Format, reference, render};

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};
use vedette_wire::{Batch, OrganizationId, Record, ocsf::Class, policy::Store};

/// A batch that has landed.
#[derive(Debug, Clone)]
pub struct Landed {
    /// Its landing key.
    pub key: String,
    /// Day of the partition: the day it was sealed, `YYYY-MM-DD`.
    pub day: String,
    /// When it landed, nanoseconds UTC.
    pub landed: i64,
    /// The store level that it was observed under: which of its security events are kept.
    pub store: Store,
    /// What it holds.
    pub batch: Batch,
}

impl Landed {
    /// The records that are kept, with their index in the batch.
    fn kept(&self) -> impl Iterator<Item = (usize, &Record)> {
        self.batch.records.iter().enumerate().filter(|(_, record)| self.store.keeps(&record.body))
    }
}

/// What a table is known to hold: every batch that is marked as materialised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mark {
    /// Its version, or a later one.
    pub version: u64,
    /// Rows that it then had, or more; 0 where an older release did not say.
    pub rows: u64,
}

/// What each table is known to hold, by table name.
pub type Versions = BTreeMap<String, Mark>;

/// Why tables cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// Delta Lake failed.
    #[error("table {table} cannot be used")]
    Table {
        /// The table's directory.
        table: PathBuf,
        /// Why.
        #[source]
        source: Box<deltalake_core::DeltaTableError>,
    },
    /// The disk failed.
    #[error("{path} cannot be written")]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A table has less than it is known to hold.
    #[error(
        "table {table} is damaged: it has version {version} with {rows} rows, and had version {} with {}; \
         `vedette-workspace doctor --rebuild` makes the tables anew from what landed",
        mark.version,
        mark.rows
    )]
    Damaged {
        /// The table's directory.
        table: PathBuf,
        /// The version that it has; 0 where it is gone.
        version: u64,
        /// The rows that it has.
        rows: u64,
        /// What it is known to hold.
        mark: Mark,
    },
    /// Rows could not be built.
    #[error("rows cannot be built: {0}")]
    Rows(String),
}

/// The tables of all organizations, below one directory.
#[derive(Debug, Clone)]
pub struct Lake {
    root: PathBuf,
}

impl Lake {
    /// Tables below `root`, an absolute path.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn table_dir(&self, organization: OrganizationId, class: Class) -> PathBuf {
        self.root.join(organization.to_string()).join(class.table())
    }

    /// The directory of one organization's tables.
    pub fn organization_dir(&self, organization: OrganizationId) -> PathBuf {
        self.root.join(organization.to_string())
    }

    /// Write batches of one organization to its tables; the caller holds the organization's lease.
    ///
    /// # Errors
    /// [`LakeError`]; what was written stays, and is found by its names when the same batches come again.
    pub async fn materialise(
        &self,
        organization: OrganizationId,
        batches: &[Landed],
        known: &Versions,
    ) -> Result<Versions, LakeError> {
        let mut versions = known.clone();
        for class in Class::ALL {
            let holds = |landed: &&Landed| landed.kept().any(|(_, record)| record.body.class() == class);
            let wanted: Vec<&Landed> = batches.iter().filter(holds).collect();
            if wanted.is_empty() {
                continue;
            }
            let dir = self.table_dir(organization, class);
            let mark = mark_of(known, class);
            let there = table::open(&dir).await?;
            table::check(there.as_ref(), &dir, mark)?;
            let table = match there {
                Some(table) => table,
                None => table::create(&dir, class).await?,
            };
            let held: BTreeSet<String> = table::keys_since(&table, &dir, mark.version).await?.into_iter().collect();
            let fresh: Vec<&Landed> = wanted.into_iter().filter(|landed| !held.contains(&landed.key)).collect();
            let table = if fresh.is_empty() {
                table
            } else {
                let rows = columns::rows(class, &fresh)?;
                let keys: Vec<&str> = fresh.iter().map(|landed| landed.key.as_str()).collect();
                table::append(table, &dir, rows, &keys).await?
            };
            // What was committed before a crash may be no more than that.
            table::make_durable(&table, &dir, mark.version + 1).await?;
            versions.insert(class.table().to_owned(), table::mark(&table, &dir)?);
        }
        Ok(versions)
    }

    /// Keys that commits behind the marks of an organization's tables name.
    ///
    /// # Errors
    /// [`LakeError`].
    pub async fn keys_behind(&self, organization: OrganizationId, known: &Versions) -> Result<Vec<String>, LakeError> {
        let mut keys = Vec::new();
        for class in Class::ALL {
            let dir = self.table_dir(organization, class);
            let mark = mark_of(known, class);
            if let Some(table) = table::open(&dir).await? {
                keys.extend(table::keys_since(&table, &dir, mark.version).await?);
            }
        }
        Ok(keys)
    }

    /// What is wrong with an organization's tables: nothing where each holds what it is known to hold and every file is what was
    /// written. And how many files have no checksums, since an older release wrote them.
    ///
    /// # Errors
    /// Of the disk.
    pub async fn check(
        &self,
        organization: OrganizationId,
        known: &Versions,
    ) -> Result<(Vec<String>, usize), LakeError> {
        let (mut wrong, mut without) = (Vec::new(), 0);
        for class in Class::ALL {
            let dir = self.table_dir(organization, class);
            let mark = mark_of(known, class);
            let table = match table::open(&dir).await {
                Ok(table) => table,
                Err(err) => {
                    wrong.push(said(&err));
                    continue;
                }
            };
            if let Err(err) = table::check(table.as_ref(), &dir, mark) {
                wrong.push(said(&err));
            }
            if let Some(table) = table {
                let (damaged, unsummed) = table::verify(&table, &dir).await?;
                wrong.extend(damaged);
                without += unsummed;
            }
        }
        Ok((wrong, without))
    }

    /// Merge the small files of an organization's tables.
    ///
    /// # Errors
    /// [`LakeError`].
    pub async fn compact(&self, organization: OrganizationId) -> Result<(), LakeError> {
        for class in Class::ALL {
            let dir = self.table_dir(organization, class);
            if let Some(table) = table::open(&dir).await? {
                table::compact(table, &dir).await?;
            }
        }
        Ok(())
    }
}

/// What a table is known to hold.
pub(crate) fn mark_of(known: &Versions, class: Class) -> Mark {
    known.get(class.table()).copied().unwrap_or_default()
}

/// An error with its causes, on a line.
fn said(error: &LakeError) -> String {
    let mut said = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        said = format!("{said}: {error}");
        cause = error.source();
    }
    said
}

/// Whether a directory is a Delta table.
pub(crate) fn is_table(dir: &Path) -> bool {
    dir.join("_delta_log").is_dir()
}

#[cfg(test)]
mod tests;
