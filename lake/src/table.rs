//! Delta tables on disk: opens and appends, with landing keys in the commit, and reads these keys.

use crate::{
    LakeError, Mark,
    checksum::{self, Verified},
    columns::{self, DAY},
    is_table,
};
use datafusion::{
    arrow::record_batch::RecordBatch,
    parquet::{
        basic::{Compression, ZstdLevel},
        file::properties::WriterProperties,
    },
};
use deltalake_core::{
    DeltaTable, DeltaTableBuilder, DeltaTableError, ObjectStore, TableProperty,
    kernel::{Action, StructType, engine::arrow_conversion::TryIntoKernel, transaction::CommitProperties},
    operations::{create::CreateBuilder, write::SchemaMode},
    protocol::SaveMode,
};
use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};
use url::Url;
use vedette_wire::ocsf::OcsfClass;

/// Name of the list of landing keys in a commit's `commitInfo`.
const KEYS: &str = "vedetteKeys";

fn failed(dir: &Path) -> impl Fn(DeltaTableError) -> LakeError + '_ {
    |source| LakeError::Table { table: dir.to_owned(), source: Box::new(source) }
}

/// Opens a table at its newest version; absent if there is none.
pub(crate) async fn open(dir: &Path) -> Result<Option<DeltaTable>, LakeError> {
    if !is_table(dir) {
        return Ok(None);
    }
    let url = Url::from_directory_path(dir)
        .map_err(|()| LakeError::Rows(format!("{} is not an absolute path", dir.display())))?;
    let root = Url::parse("file:///").expect("it is one");
    let opened = DeltaTableBuilder::from_url(url).map_err(failed(dir))?.with_storage_backend(store(), root);
    opened.load().await.map(Some).map_err(failed(dir))
}

/// The file system of tables.
pub(crate) fn store() -> Arc<dyn ObjectStore> {
    Arc::new(Verified::default())
}

/// Version and rows of a table.
pub(crate) fn mark(table: &DeltaTable, dir: &Path) -> Result<Mark, LakeError> {
    let snapshot = table.snapshot().map_err(failed(dir))?.snapshot().clone();
    let rows = snapshot.log_data().iter().map(|file| file.num_records().unwrap_or(0) as u64).sum();
    Ok(Mark { version: table.version().unwrap_or(0), rows })
}

/// Refuses a table with less than its mark: its log is damaged, or files are missing.
pub(crate) fn check(table: Option<&DeltaTable>, dir: &Path, known: Mark) -> Result<(), LakeError> {
    let has = table.map(|table| mark(table, dir)).transpose()?.unwrap_or_default();
    if has.version < known.version || has.rows < known.rows {
        let (table, version, rows) = (dir.to_owned(), has.version, has.rows);
        return Err(LakeError::Damaged { table, version, rows, mark: known });
    }
    Ok(())
}

/// Checks the files of a table; returns problems, and the number of files without checksums.
pub(crate) async fn verify(table: &DeltaTable, dir: &Path) -> Result<(Vec<String>, usize), LakeError> {
    let snapshot = table.snapshot().map_err(failed(dir))?.snapshot().clone();
    let mut files: Vec<PathBuf> =
        snapshot.log_data().iter().map(|file| dir.join(percent_decode(&file.path()))).collect();
    let log = dir.join("_delta_log");
    let entries = std::fs::read_dir(&log).map_err(|source| LakeError::Disk { path: log, source })?;
    let is_plain = |path: &PathBuf| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_plain));
    let verify = move || {
        let (mut wrong, mut without) = (Vec::new(), 0);
        for path in files {
            match checksum::verify(&path) {
                Ok(has_sums) => without += usize::from(!has_sums),
                Err(err) => wrong.push(format!("{}: {err}", path.display())),
            }
        }
        (wrong, without)
    };
    Ok(tokio::task::spawn_blocking(verify).await.expect("reading does not panic"))
}

/// Creates a table.
pub(crate) async fn create(dir: &Path, class: OcsfClass) -> Result<DeltaTable, LakeError> {
    std::fs::create_dir_all(dir).map_err(|source| LakeError::Disk { path: dir.to_owned(), source })?;
    let schema: StructType = columns::schema(class)
        .as_ref()
        .try_into_kernel()
        .map_err(|err| LakeError::Rows(format!("the schema of {} is not a Delta schema: {err}", class.table())))?;
    let table = CreateBuilder::new()
        .with_location(dir.to_string_lossy())
        .with_save_mode(SaveMode::Ignore)
        .with_columns(schema.fields().cloned())
        .with_partition_columns([DAY])
        // Landing keys are read from old commits.
        .with_configuration_property(TableProperty::EnableExpiredLogCleanup, Some("false"))
        .await
        .map_err(failed(dir))?;
    make_durable(&table, dir, table.version().unwrap_or(0)).await?;
    Ok(table)
}

/// Appends rows in one commit with their landing keys; the caller calls [`make_durable`].
pub(crate) async fn append(
    table: DeltaTable,
    dir: &Path,
    rows: Vec<RecordBatch>,
    keys: &[&str],
) -> Result<DeltaTable, LakeError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).expect("3 is a level")))
        .build();
    table
        .write(rows)
        .with_schema_mode(SchemaMode::Merge)
        .with_writer_properties(properties)
        .with_commit_properties(
            CommitProperties::default()
                .with_metadata([(KEYS.to_owned(), serde_json::json!(keys))])
                .with_cleanup_expired_logs(Some(false)),
        )
        .await
        .map_err(failed(dir))
}

/// Landing keys in the commits after version `from`.
pub(crate) async fn keys_since(table: &DeltaTable, dir: &Path, from: u64) -> Result<Vec<String>, LakeError> {
    let mut keys = Vec::new();
    for version in from + 1..=table.version().unwrap_or(0) {
        for action in actions(table, dir, version).await? {
            if let Action::CommitInfo(info) = action
                && let Some(named) = info.info.get(KEYS)
            {
                let named: Vec<String> = serde_json::from_value(named.clone())
                    .map_err(|err| LakeError::Rows(format!("version {version} names no keys: {err}")))?;
                keys.extend(named);
            }
        }
    }
    Ok(keys)
}

async fn actions(table: &DeltaTable, dir: &Path, version: u64) -> Result<Vec<Action>, LakeError> {
    let Some(bytes) = table.log_store().read_commit_entry(version).await.map_err(failed(dir))? else {
        return Ok(Vec::new());
    };
    deltalake_core::logstore::get_actions(version, &bytes).map_err(failed(dir))
}

/// Makes versions from one on durable, with checksums: object_store 0.13, through which Delta Lake writes, never calls
/// fsync(2).
pub(crate) async fn make_durable(table: &DeltaTable, dir: &Path, from: u64) -> Result<(), LakeError> {
    let Some(newest) = table.version() else { return Ok(()) };
    let log = dir.join("_delta_log");
    let (mut files, mut added) = (Vec::new(), Vec::new());
    for version in from..=newest {
        let checkpoint = log.join(format!("{version:020}.checkpoint.parquet"));
        files.push(log.join(format!("{version:020}.json")));
        files.extend(checkpoint.exists().then_some(checkpoint));
        added.extend(actions(table, dir, version).await?);
    }
    let mut dirs = BTreeSet::from([log, dir.to_owned()]);
    // The organization's directory and its parent may be new as well.
    dirs.extend(dir.ancestors().skip(1).take(2).map(Path::to_owned));
    for action in added {
        if let Action::Add(add) = action {
            let path = dir.join(percent_decode(&add.path));
            dirs.extend(path.parent().map(Path::to_owned));
            files.push(path);
        }
    }
    let sync = move || -> Result<(), LakeError> {
        for path in files {
            checksum::write(&path).map_err(|source| LakeError::Disk { path, source })?;
        }
        for path in dirs {
            File::open(&path).and_then(|dir| dir.sync_all()).map_err(|source| LakeError::Disk { path, source })?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(sync).await.expect("fsync does not panic")
}

/// Paths in a commit are percent-encoded (Delta protocol, "Add File").
fn percent_decode(path: &str) -> PathBuf {
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code =
            bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%').and_then(|two| std::str::from_utf8(two).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(String::from_utf8_lossy(&out).into_owned())
}

pub(crate) async fn compact(table: DeltaTable, dir: &Path) -> Result<(), LakeError> {
    let (table, _) = table.optimize().with_max_concurrent_tasks(1).await.map_err(failed(dir))?;
    make_durable(&table, dir, table.version().unwrap_or(0)).await
}
