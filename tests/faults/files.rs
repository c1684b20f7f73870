//! Faults of the files that are read.

use crate::campaign::{Campaign, Row, Run, Setup};
use anyhow::Result;
use std::time::Duration;
use vedette_benches::numbered::Rotation;

/// The agent is killed meanwhile, so that it finds copies whose creation nobody observed.
pub(crate) fn copy_truncate(campaign: &Campaign) -> Result<Option<Row>> {
    let times = campaign.of(12, 3);
    let mut run = Run::new(&Setup { rate: 2000, rotation: Rotation::CopyTruncate(8000), ..Setup::default() })?;
    run.start()?;
    run.until_stored(1000)?;
    let row = run.judge(|run| {
        let before = run.written();
        while run.written() - before < times * 8000 {
            std::thread::sleep(Duration::from_millis(250));
        }
        Ok((run.written() - before) / 8000)
    });
    row.map(Some)
}
