//! Verification of an organization's tables.

use super::versions;
use crate::store::ControlStore;
use anyhow::Result;
use std::path::Path;
use vedette_lake::Lake;
use vedette_wire::OrganizationId;

/// Problems of an organization's tables, and the number of files without checksums.
pub(crate) async fn verify(
    dir: &Path,
    control: &ControlStore,
    organization: OrganizationId,
) -> Result<(Vec<String>, usize)> {
    let known = versions(control.pending(organization, 0).await?.versions);
    let (mut problems, without_checksums) = Lake::new(dir.join("tables")).check(organization, &known).await?;
    problems.extend(foreign_batches(dir, control, organization).await?);
    Ok((problems, without_checksums))
}

/// Whether the tables are newer than the control store: batches that they hold and the control store lacks would be written
/// again when they are sent again.
pub(crate) async fn foreign_batches(
    dir: &Path,
    control: &ControlStore,
    organization: OrganizationId,
) -> Result<Option<String>> {
    let lake = Lake::new(dir.join("tables"));
    let known = versions(control.pending(organization, 0).await?.versions);
    for key in lake.keys_after_marks(organization, &known).await.unwrap_or_default() {
        if !control.is_recorded(&key).await? {
            return Ok(Some(format!(
                "the tables hold batches that the control store lacks, for example {key}: they are of another backup; restore the matching tables, or run `vedette-workspace doctor --rebuild`"
            )));
        }
    }
    Ok(None)
}
