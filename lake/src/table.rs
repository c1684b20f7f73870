//! Delta tables on disk: open, append with the keys' names in the commit, read those names.

use crate::{
    LakeError,
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
    DeltaTable, DeltaTableError, TableProperty,
    kernel::{Action, StructType, engine::arrow_conversion::TryIntoKernel, transaction::CommitProperties},
    operations::{create::CreateBuilder, write::SchemaMode},
    protocol::SaveMode,
};
use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
};
use url::Url;
use vedette_wire::ocsf::Class;

/// Name of the list of landed keys in a commit's `commitInfo`.
const KEYS: &str = "vedetteKeys";

fn failed(dir: &Path) -> impl Fn(DeltaTableError) -> LakeError + '_ {
    |source| LakeError::Table { table: dir.to_owned(), source: Box::new(source) }
}

/// Open a table at its newest version; absent where there is none.
pub(crate) async fn open(dir: &Path) -> Result<Option<DeltaTable>, LakeError> {
    if !is_table(dir) {
        return Ok(None);
    }
    let url = Url::from_directory_path(dir)
        .map_err(|()| LakeError::Rows(format!("{} is not an absolute path", dir.display())))?;
    deltalake_core::open_table(url).await.map(Some).map_err(failed(dir))
}

pub(crate) async fn open_or_create(dir: &Path, class: Class) -> Result<DeltaTable, LakeError> {
    if let Some(table) = open(dir).await? {
        return Ok(table);
    }
    std::fs::create_dir_all(dir).map_err(|source| LakeError::Disk { path: dir.to_owned(), source })?;
    let schema: StructType = columns::schema(class)
        .as_ref()
        .try_into_kernel()
        .map_err(|err| LakeError::Rows(format!("the schema of {} is no Delta schema: {err}", class.table())))?;
    let table = CreateBuilder::new()
        .with_location(dir.to_string_lossy())
        .with_save_mode(SaveMode::Ignore)
        .with_columns(schema.fields().cloned())
        .with_partition_columns([DAY])
        // Commits are read back for their keys' names.
        .with_configuration_property(TableProperty::EnableExpiredLogCleanup, Some("false"))
        .await
        .map_err(failed(dir))?;
    make_durable(&table, dir).await?;
    Ok(table)
}

/// Append rows in one commit that names the keys they come from, and have it durable.
pub(crate) async fn append(
    table: DeltaTable,
    dir: &Path,
    rows: Vec<RecordBatch>,
    keys: &[&str],
) -> Result<DeltaTable, LakeError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).expect("3 is a level")))
        .build();
    let table = table
        .write(rows)
        .with_schema_mode(SchemaMode::Merge)
        .with_writer_properties(properties)
        .with_commit_properties(
            CommitProperties::default()
                .with_metadata([(KEYS.to_owned(), serde_json::json!(keys))])
                .with_cleanup_expired_logs(Some(false)),
        )
        .await
        .map_err(failed(dir))?;
    make_durable(&table, dir).await?;
    Ok(table)
}

/// The keys named in the commits behind version `from`.
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

/// object_store 0.13, which Delta Lake writes through, never calls fsync(2).
async fn make_durable(table: &DeltaTable, dir: &Path) -> Result<(), LakeError> {
    let Some(version) = table.version() else { return Ok(()) };
    let log = dir.join("_delta_log");
    let mut files = vec![log.join(format!("{version:020}.json"))];
    let mut dirs = BTreeSet::from([log, dir.to_owned()]);
    // The organization's directory and the one that holds it may be new as well.
    dirs.extend(dir.ancestors().skip(1).take(2).map(Path::to_owned));
    for action in actions(table, dir, version).await? {
        if let Action::Add(add) = action {
            let path = dir.join(percent_decode(&add.path));
            dirs.extend(path.parent().map(Path::to_owned));
            files.push(path);
        }
    }
    let sync = move || -> Result<(), LakeError> {
        for path in files.into_iter().chain(dirs) {
            File::open(&path).and_then(|file| file.sync_all()).map_err(|source| LakeError::Disk { path, source })?;
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
    make_durable(&table, dir).await
}
