//! `container_logs`: container logs in the formats of CRI runtimes and Docker, each line with its container.
//!
//! ```text
//! /var/log/pods/NAMESPACE_POD_UID/CONTAINER/RESTARTS.log     CRI log format
//! /var/lib/docker/containers/ID/ID-json.log                  Docker's json-file
//! ```
//!
//! Runtimes cut long lines into pieces; [`lines`] joins them. The tailer follows files through the rotation of kubelet and Docker.

mod lines;
mod origin;

use crate::{
    BuildError, CollectError, CollectorClass, CollectorContext, Outlet, Permission, Right,
    root::glob::patterns,
    spec::{Collector, Plan, Skip, Spec, Watch, collector_settings},
    tail::{ChunkBuilder, Line, LineParser, Start, Tailer},
};
use lines::Pieces;
use origin::Origins;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vedette_wire::{Body, body::ContainerLog};

/// Settings of `[collectors.container_logs]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether the collector runs.
    enabled: bool,
    /// Globs of files. Default: the log directories of CRI runtimes and Docker.
    paths: Vec<String>,
    /// Where to start in files that exist at the first scan of their glob: `end` or `beginning`.
    start: Start,
}

impl Default for Settings {
    fn default() -> Self {
        // The pods' paths come first and name the file: with cri-dockerd both globs match the same file.
        let paths = ["/var/log/pods/*/*/*.log", "/var/lib/docker/containers/*/*-json.log"];
        Self { enabled: false, paths: paths.map(str::to_owned).to_vec(), start: Start::End }
    }
}

collector_settings!(Settings);

/// The collector.
enum Definition {}

impl Collector for Definition {
    type Settings = Settings;
    const ID: &'static str = "container_logs";
    const CLASS: CollectorClass = CollectorClass::Event;
    const KIND: &'static str = "container_log";
    const SUMMARY: &'static str = "container log lines with pod, container and image; off by default";
    const READS: &'static str = "the files of `paths`; for names and images /var/log/containers, Docker's config.v2.json, and the \
                                 config.json of containerd and CRI-O";
    const PERMISSIONS: &'static [Permission] = &[Permission {
        any_of: &[Right::Capability("CAP_DAC_READ_SEARCH")],
        lost: "all container logs: only root can read these directories",
    }];
    const SKIP: Option<Skip<Settings>> = Some(skip);

    fn build(settings: &Settings, _: &CollectorContext) -> Result<Plan, BuildError> {
        patterns(SPEC.id, &settings.paths)?;
        Ok(Plan::Watch(Box::new(ContainerLogs { settings: settings.clone() })))
    }
}

pub(crate) const SPEC: Spec = Spec::of::<Definition>();

fn skip(settings: &Settings, context: &CollectorContext, outlet: &Outlet) -> Result<(), CollectError> {
    tailer(settings, context).skip(context, outlet)
}

fn tailer(settings: &Settings, context: &CollectorContext) -> Tailer<Lines> {
    let parser = Lines { pieces: Pieces::default(), origins: Origins::new(context) };
    Tailer::new(SPEC.id, &settings.paths, settings.start, parser)
}

struct ContainerLogs {
    settings: Settings,
}

impl Watch for ContainerLogs {
    fn watch(&mut self, context: &CollectorContext, outlet: &mut Outlet) -> Result<(), CollectError> {
        let has_custom_paths = self.settings.paths != Settings::default().paths;
        tailer(&self.settings, context).expecting_each(has_custom_paths).run(context, outlet)
    }
}

struct Lines {
    pieces: Pieces,
    origins: Origins,
}

impl LineParser for Lines {
    const JOINS: bool = true;
    const JOIN_NS: i64 = lines::JOIN_NS;

    fn parse(&mut self, line: &Line<'_>, chunks: &mut ChunkBuilder) {
        let container = self.origins.of(chunks.source_name());
        for (position, record) in lines::records(line) {
            // Moves the container into each record and back, since a clone would allocate each of its strings.
            let body = Body::ContainerLog(ContainerLog { container: std::mem::take(container), ..record });
            chunks.push(&Line { position, ..*line }, &body);
            if let Body::ContainerLog(record) = body {
                *container = record.container;
            }
        }
    }

    fn ends_record(&mut self, line: &[u8], is_first: bool) -> bool {
        self.pieces.ends_record(line, is_first)
    }
}

/// Parses lines, and checks that the positions of their records tile them.
#[cfg(fuzzing)]
pub(crate) fn fuzz(raw: &[u8]) {
    let position = vedette_wire::Position(0, raw.len() as u64);
    let line = Line { bytes: raw, whole: raw, position, part: None, unfinished: false };
    let records = lines::records(&line);
    let mut at = 0;
    for (position, _) in &records {
        assert!(position.0 == at && position.1 > at, "the positions tile");
        at = position.1;
    }
    assert!(raw.is_empty() || at == raw.len() as u64, "nothing is left over");
    let mut pieces = Pieces::default();
    let mut is_first = true;
    for line in raw.split_inclusive(|byte| *byte == b'\n') {
        is_first = pieces.ends_record(line, is_first);
    }
}

#[cfg(test)]
mod tests;
