//! `syslog`: the system's log files as whole lines, with recognised fields.

pub(crate) mod parse;

use crate::{
    BuildError, CollectError, CollectorClass, CollectorContext, Outlet, Permission, Right,
    root::glob::patterns,
    spec::{Collector, Plan, Skip, Spec, Watch, collector_settings},
    tail::{ChunkBuilder, Line, LineParser, Start, Tailer},
};
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of `[collectors.syslog]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether the collector runs.
    enabled: bool,
    /// Globs of files. Default: where the distributions' rsyslog and syslog-ng write.
    paths: Vec<String>,
    /// Where to start in files that exist at the first scan of their glob: `end` or `beginning`.
    start: Start,
    /// Read the default files even if the journal collector reads the same entries.
    beside_journal: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let names = [
            "syslog",
            "messages",
            "auth.log",
            "secure",
            "kern.log",
            "cron",
            "cron.log",
            "daemon.log",
            "maillog",
            "mail.log",
            "user.log",
        ];
        Self {
            enabled: true,
            paths: names.iter().map(|name| format!("/var/log/{name}")).collect(),
            start: Start::End,
            beside_journal: false,
        }
    }
}

collector_settings!(Settings);

/// The collector.
enum Definition {}

impl Collector for Definition {
    type Settings = Settings;
    const ID: &'static str = "syslog";
    const CLASS: CollectorClass = CollectorClass::Event;
    const KIND: &'static str = "syslog";
    const SUMMARY: &'static str = "lines of the system's log files";
    const READS: &'static str = "the files of `paths`";
    const PERMISSIONS: &'static [Permission] = &[Permission {
        any_of: &[Right::Group("adm"), Right::Capability("CAP_DAC_READ_SEARCH")],
        lost: "the log files that Debian and Ubuntu give to that group, and on others all of them",
    }];
    const DEFERS_TO: &'static [&'static str] = &["journal"];
    const SKIP: Option<Skip<Settings>> = Some(skip);

    fn build(settings: &Settings, context: &CollectorContext) -> Result<Plan, BuildError> {
        patterns(SPEC.id, &settings.paths)?;
        // rsyslog takes the content of the default files from the journal, which holds more.
        let default_files = settings.paths == Settings::default().paths;
        if default_files
            && !settings.beside_journal
            && context.enabled.contains("journal")
            && crate::journal::is_readable(context)
        {
            let why = "the journal collector reads the same entries with more fields; set beside_journal = true, or paths, to \
                       read files as well";
            return Ok(Plan::Absent(why.to_owned()));
        }
        Ok(Plan::Watch(Box::new(Syslog { settings: settings.clone() })))
    }
}

pub(crate) const SPEC: Spec = Spec::of::<Definition>();

fn skip(settings: &Settings, context: &CollectorContext, outlet: &Outlet) -> Result<(), CollectError> {
    let parser = Lines { zone: TimeZone::UTC };
    Tailer::new(SPEC.id, &settings.paths, settings.start, parser).skip(context, outlet)
}

struct Syslog {
    settings: Settings,
}

impl Watch for Syslog {
    fn watch(&mut self, context: &CollectorContext, outlet: &mut Outlet) -> Result<(), CollectError> {
        let parser = Lines { zone: crate::host::time_zone(context).1 };
        let Settings { paths, start, .. } = &self.settings;
        // Each distribution has some of the default files.
        let is_own = *paths != Settings::default().paths;
        Tailer::new(SPEC.id, paths, *start, parser).expecting_each(is_own).run(context, outlet)
    }
}

struct Lines {
    zone: TimeZone,
}

impl LineParser for Lines {
    fn parse(&mut self, line: &Line<'_>, chunks: &mut ChunkBuilder) {
        let mut found = parse::recognise(line.bytes, parse::Origin::Any, chunks.observed(), &self.zone);
        (found.part, found.unfinished) = (line.part, line.unfinished);
        chunks.syslog(line, found);
    }
}
/// Parses a line, and checks that its fields lie inside.
#[cfg(fuzzing)]
pub(crate) fn fuzz(raw: &[u8], now: i64) {
    use vedette_wire::body::Span;
    for origin in [parse::Origin::Any, parse::Origin::LocalSocket] {
        let parsed = parse::line(raw, origin, now, &TimeZone::UTC);
        let fields = [parsed.host, parsed.app, parsed.pid, parsed.message_id, parsed.structured_data, parsed.message];
        for Span(from, to) in fields.into_iter().flatten() {
            assert!(from <= to && to as usize <= raw.len(), "a field lies outside of the line");
        }
    }
}
