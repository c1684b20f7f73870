//! Landed data as tables: one Delta table per organization and OCSF class, partitioned by day, and SQL over the tables and over
//! batches that are not materialised yet.
//!
//! A commit names the landing keys of its batches. The control store states for each table the version up to which it is
//! complete; the names in later commits are read as well. So after a crash no batch is written twice, and none is omitted.
//!
//! ```no_run
//! use vedette_lake::{LandedBatch, Lake, Versions};
//!
//! # async fn example(landed: Vec<LandedBatch>) -> Result<(), vedette_lake::LakeError> {
//! let organization = landed[0].batch.header.organization;
//! let lake = Lake::new("/srv/vedette/tables");
//! // The control store keeps the marks; there are none before the first commit.
//! let marks: Versions = lake.materialise(organization, &landed, &Versions::new()).await?;
//! println!("{marks:?}");
//! # Ok(())
//! # }
//! ```

mod checksum;
mod columns;
mod minutes;
mod pending;
mod query;
mod render;
mod table;

pub use columns::{TableColumns, tables};
pub use pending::{LandedBatches, PendingBatch, ReadFailure};
pub use query::{Output, QueryError, QueryLimits};
pub use render::{Format, reference, render};

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};
use vedette_wire::{Batch, OrganizationId, Record, ocsf::OcsfClass, policy::StoreLevel};

/// A landed batch.
#[derive(Debug, Clone)]
pub struct LandedBatch {
    /// Landing key.
    pub key: String,
    /// Day of the partition: the day of sealing, `YYYY-MM-DD`.
    pub day: String,
    /// Time of landing, nanoseconds UTC.
    pub landed: i64,
    /// Store level of the batch's policy, which decides on security events.
    pub store: StoreLevel,
    /// Content.
    pub batch: Batch,
}

impl LandedBatch {
    /// Records that the store level keeps, with their index in the batch.
    fn stored_records(&self) -> impl Iterator<Item = (usize, &Record)> {
        self.batch.records.iter().enumerate().filter(|(_, record)| self.store.keeps(&record.body))
    }
}

/// What the control store vouches for: a table holds every batch that is marked as materialised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mark {
    /// Minimum version.
    pub version: u64,
    /// Minimum number of rows; 0 if an older release did not record it.
    pub rows: u64,
}

/// Marks by table name.
pub type Versions = BTreeMap<String, Mark>;

/// Errors of tables.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// Delta Lake failed.
    #[error("table {table} cannot be used")]
    Table {
        /// Directory of the table.
        table: PathBuf,
        /// Cause.
        #[source]
        source: Box<deltalake_core::DeltaTableError>,
    },
    /// The disk failed.
    #[error("cannot access {path}")]
    Disk {
        /// Path.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// A table has less than its mark.
    #[error(
        "table {table} is damaged: it has version {version} with {rows} rows, and had version {} with {}; \
         `vedette-workspace doctor --rebuild` rebuilds the tables from landed batches",
        mark.version,
        mark.rows
    )]
    Damaged {
        /// Directory of the table.
        table: PathBuf,
        /// Actual version; 0 if the table is gone.
        version: u64,
        /// Actual number of rows.
        rows: u64,
        /// The mark.
        mark: Mark,
    },
    /// Rows could not be built.
    #[error("rows cannot be built: {0}")]
    Rows(String),
}

/// The tables of all organizations, in one directory.
#[derive(Debug, Clone)]
pub struct Lake {
    root: PathBuf,
}

impl Lake {
    /// Tables below `root`, an absolute path.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn table_dir(&self, organization: OrganizationId, class: OcsfClass) -> PathBuf {
        self.root.join(organization.to_string()).join(class.table())
    }

    /// Directory of an organization's tables.
    pub fn organization_dir(&self, organization: OrganizationId) -> PathBuf {
        self.root.join(organization.to_string())
    }

    /// Writes batches of an organization to its tables; the caller holds the organization's lease.
    ///
    /// # Errors
    /// [`LakeError`]; written tables stay, and are recognised when the same batches are written again.
    pub async fn materialise(
        &self,
        organization: OrganizationId,
        batches: &[LandedBatch],
        known: &Versions,
    ) -> Result<Versions, LakeError> {
        let mut versions = known.clone();
        for class in OcsfClass::ALL {
            let holds = |landed: &&LandedBatch| landed.stored_records().any(|(_, record)| record.body.class() == class);
            let selected: Vec<&LandedBatch> = batches.iter().filter(holds).collect();
            if selected.is_empty() {
                continue;
            }
            let dir = self.table_dir(organization, class);
            let mark = mark_of(known, class);
            let existing = table::open(&dir).await?;
            table::check(existing.as_ref(), &dir, mark)?;
            let table = match existing {
                Some(table) => table,
                None => table::create(&dir, class).await?,
            };
            let held: BTreeSet<String> = table::keys_since(&table, &dir, mark.version).await?.into_iter().collect();
            let pending: Vec<&LandedBatch> =
                selected.into_iter().filter(|landed| !held.contains(&landed.key)).collect();
            let table = if pending.is_empty() {
                table
            } else {
                let mut rows = Vec::new();
                columns::rows(class, &pending, |batch| {
                    rows.push(batch);
                    true
                })?;
                let keys: Vec<&str> = pending.iter().map(|landed| landed.key.as_str()).collect();
                table::append(table, &dir, rows, &keys).await?
            };
            // A commit from before a crash may not be durable.
            table::make_durable(&table, &dir, mark.version + 1).await?;
            versions.insert(class.table().to_owned(), table::mark(&table, &dir)?);
        }
        Ok(versions)
    }

    /// Landing keys in commits after the marks of an organization's tables.
    ///
    /// # Errors
    /// [`LakeError`].
    pub async fn keys_after_marks(
        &self,
        organization: OrganizationId,
        known: &Versions,
    ) -> Result<Vec<String>, LakeError> {
        let mut keys = Vec::new();
        for class in OcsfClass::ALL {
            let dir = self.table_dir(organization, class);
            let mark = mark_of(known, class);
            if let Some(table) = table::open(&dir).await? {
                keys.extend(table::keys_since(&table, &dir, mark.version).await?);
            }
        }
        Ok(keys)
    }

    /// Checks an organization's tables against their marks, and all files against their checksums; returns problems, and the
    /// number of files of older releases without checksums.
    ///
    /// # Errors
    /// I/O errors.
    pub async fn check(
        &self,
        organization: OrganizationId,
        known: &Versions,
    ) -> Result<(Vec<String>, usize), LakeError> {
        let (mut wrong, mut without) = (Vec::new(), 0);
        for class in OcsfClass::ALL {
            let dir = self.table_dir(organization, class);
            let mark = mark_of(known, class);
            let table = match table::open(&dir).await {
                Ok(table) => table,
                Err(err) => {
                    wrong.push(with_causes(&err));
                    continue;
                }
            };
            if let Err(err) = table::check(table.as_ref(), &dir, mark) {
                wrong.push(with_causes(&err));
            }
            if let Some(table) = table {
                let (damaged, unsummed) = table::verify(&table, &dir).await?;
                wrong.extend(damaged);
                without += unsummed;
            }
        }
        Ok((wrong, without))
    }

    /// Merges the small files of an organization's tables.
    ///
    /// # Errors
    /// [`LakeError`].
    pub async fn compact(&self, organization: OrganizationId) -> Result<(), LakeError> {
        for class in OcsfClass::ALL {
            let dir = self.table_dir(organization, class);
            if let Some(table) = table::open(&dir).await? {
                table::compact(table, &dir).await?;
            }
        }
        Ok(())
    }
}

/// The mark of a table.
pub(crate) fn mark_of(known: &Versions, class: OcsfClass) -> Mark {
    known.get(class.table()).copied().unwrap_or_default()
}

/// An error with its causes, on one line.
fn with_causes(error: &LakeError) -> String {
    let mut with_causes = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        with_causes = format!("{with_causes}: {error}");
        cause = error.source();
    }
    with_causes
}

/// Whether a directory is a Delta table.
pub(crate) fn is_table(dir: &Path) -> bool {
    dir.join("_delta_log").is_dir()
}

#[cfg(test)]
mod tests;
