//! `vedette status`.

use super::print;
use crate::{
    cli::StatusFormat,
    config::Resolved,
    exit::Exit,
    runtime::status::{self, Collector, Report},
};
use anyhow::anyhow;
use std::{fmt::Write as _, io::ErrorKind};
use vedette_wire::text::printable;

/// Queries the running agent.
pub(super) fn ask(config: &Resolved) -> Result<Report, Exit> {
    let report = status::ask(&config.socket_dir).map_err(|err| {
        let dir = config.socket_dir.display();
        match err.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                anyhow!("the agent does not answer within 5 s through its socket in {dir}")
            }
            ErrorKind::PermissionDenied => {
                anyhow!("cannot query the agent through its socket in {dir}; run this as its user or as root: {err}")
            }
            _ => anyhow!("cannot query the agent through its socket in {dir}: {err}"),
        }
    })?;
    let not_running = || format!("no agent runs with its socket in {}", config.socket_dir.display());
    report.ok_or_else(|| Exit::NotRunning(not_running()))
}

/// Time since a batch landed after which an error of delivery counts as a failure, here and in `vedette health`.
pub(super) const FAILING_AFTER_SECONDS: f64 = 60.0;

pub(super) fn status(config: &Resolved, format: StatusFormat) -> Result<(), Exit> {
    let report = ask(config)?;
    let text = match format {
        StatusFormat::Table => table(&report),
        StatusFormat::Json => vedette_wire::text::json_printable(serde_json::to_string(&report)? + "\n"),
        StatusFormat::Prometheus => status::prometheus(&report),
    };
    print(text.as_bytes())
}

fn table(report: &Report) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<14} {}", printable(value));
    };
    line("agent", &report.agent);
    line("organization", &format!("{} ({})", report.organization_name, report.organization));
    line("endpoint", &format!("{} since {}: {}", report.endpoint, report.endpoint_since, report.endpoint_why));
    let policy = &report.policy;
    let collect = if policy.collect { "on" } else { "off" };
    line("policy", &format!("revision {}, tier {}, collection {collect}", policy.revision, policy.tier));
    if let Some(problem) = &policy.problem {
        line("", problem);
    }
    let oldest = report.queue.oldest_unsent_seconds;
    let oldest = oldest.map_or_else(String::new, |seconds| format!(", the oldest for {seconds:.0} s"));
    line(
        "queue",
        &format!(
            "{} batches wait{oldest}; the queue's file has {} KiB",
            report.queue.batches,
            report.queue.bytes >> 10
        ),
    );
    if let Some(why) = &report.queue.waiting {
        line("", &format!("sources wait: {why}"));
    }
    let quarantine = &report.queue.quarantine;
    if quarantine.batches + quarantine.dropped > 0 {
        line(
            "quarantine",
            &format!(
                "{} batches in {} KiB, {} deleted",
                quarantine.batches,
                quarantine.bytes >> 10,
                quarantine.dropped
            ),
        );
    }
    let delivery = match &report.delivery.last_error {
        None => format!("{} batches since the start", report.delivery.delivered),
        Some(error) if report.delivery.idle_seconds < FAILING_AFTER_SECONDS => {
            format!("retrying after an error: {error}")
        }
        Some(error) => format!("failing: {error}"),
    };
    line("delivery", &delivery);
    if report.delivery.purged > 0 {
        line("", &format!("{} batches purged: the policy forbids them", report.delivery.purged));
    }
    line("memory", &report.rss_bytes.map_or_else(|| "unknown".to_owned(), |bytes| format!("{} KiB", bytes >> 10)));
    append_collectors(&mut out, &report.collectors);
    out
}

fn append_collectors(out: &mut String, collectors: &[Collector]) {
    let _ =
        writeln!(out, "\n{:<14} {:<10} {:<9} {:>10} {:>8}  why", "collector", "class", "state", "emitted", "dropped");
    for collector in collectors {
        let dropped = collector.dropped_by_reason.iter();
        let dropped = dropped.map(|(reason, count)| format!("dropped {count}: {}", reason.name()));
        let is_on = collector.state != "disabled";
        let missing = collector.missing_permissions.iter().filter(|_| is_on).map(|missing| format!("lacks {missing}"));
        let why: Vec<String> = dropped.chain(collector.last_error.clone()).chain(missing).collect();
        let _ = writeln!(
            out,
            "{:<14} {:<10} {:<9} {:>10} {:>8}  {}",
            collector.id,
            collector.class,
            collector.state,
            collector.emitted,
            collector.dropped,
            printable(&why.join("; "))
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_dropped_is_shown_with_its_reason() {
        let collector = json!({"id": "syslog", "class": "event", "state": "running", "emitted": 7, "dropped": 3,
            "dropped_by_reason": {"source_overrun": 2, "oversize": 1}, "last_error": "a file cannot be read"});
        let report = json!({"version": "0", "agent": "a", "organization": "o", "organization_name": "acme",
            "workspace": "w", "endpoint": "w", "policy_revision": 1, "collectors": [collector],
            "queue": {"bytes": 0, "batches": 0, "quarantine": {"batches": 0, "bytes": 0, "dropped": 0}},
            "delivery": {"delivered": 0, "purged": 0}});
        let table = table(&serde_json::from_value(report).expect("a report"));
        let line = table.lines().find(|line| line.starts_with("syslog")).expect("a line");
        assert!(line.ends_with("dropped 2: source_overrun; dropped 1: oversize; a file cannot be read"), "{line}");
    }
}
