//! `vedette health`: a probe that fails while a part of the agent does not work, though the process lives.

use super::status;
use crate::{config::Resolved, exit::Exit, runtime::status::Report};
use anyhow::anyhow;
use std::time::Duration;

pub(super) fn health(config: &Resolved, stalled_after: Duration) -> Result<(), Exit> {
    let report = status::ask(config)?;
    let reasons = reasons(&report, stalled_after);
    let shown: Vec<_> = reasons.iter().map(|reason| vedette_wire::text::printable(reason)).collect();
    if shown.is_empty() { super::print(b"healthy\n") } else { Err(anyhow!("{}", shown.join("\nvedette: ")).into()) }
}

fn reasons(report: &Report, stalled_after: Duration) -> Vec<String> {
    let mut out = Vec::new();
    for collector in &report.collectors {
        if matches!(collector.state.as_str(), "failing" | "stuck") {
            let why = collector.last_error.as_deref().unwrap_or("unknown reason");
            out.push(format!("collector {} is {}: {why}", collector.id, collector.state));
        } else if let Some(problem) = &collector.problem {
            out.push(format!("collector {}: {problem}", collector.id));
        }
    }
    if !report.collectors.iter().any(|collector| collector.state == "running") {
        out.push("no collector runs; see `vedette status`".to_owned());
    }
    if let Some(why) = &report.queue.waiting {
        out.push(format!("sources wait: {why}"));
    }
    let error = report.delivery.last_error.as_deref();
    if let Some(refused) = error.filter(|error| error.starts_with("401") || error.starts_with("403")) {
        out.push(format!("delivery: {refused}"));
    }
    let quarantine = &report.queue.quarantine;
    if quarantine.batches > 0 {
        out.push(format!(
            "delivery: {} batches are in quarantine and will not be delivered; see `vedette queue quarantine list`",
            quarantine.batches
        ));
    }
    if report.delivery.purged > 0 {
        let purged = report.delivery.purged;
        out.push(format!(
            "policy: the workspace refused {purged} batches and they were purged; see `vedette-workspace alerts` there"
        ));
    }
    let is_failing = error.is_some() && report.delivery.idle_seconds >= status::FAILING_AFTER_SECONDS;
    if report.queue.batches > 0 && (is_failing || report.delivery.idle_seconds > stalled_after.as_secs_f64()) {
        let why = report.delivery.last_error.as_deref().unwrap_or("no answer");
        let (batches, idle) = (report.queue.batches, report.delivery.idle_seconds);
        out.push(format!("delivery: {batches} batches wait and none landed for {idle:.0} s: {why}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn batches_that_the_workspace_refuses_are_no_health() {
        let collector = json!({"id": "syslog", "class": "event", "state": "running", "emitted": 7, "dropped": 0,
            "dropped_by_reason": {}, "last_error": null});
        let mut report = json!({"version": "0", "agent": "a", "organization": "o", "organization_name": "acme",
            "workspace": "w", "endpoint": "w", "policy_revision": 1, "collectors": [collector],
            "queue": {"bytes": 0, "batches": 0, "quarantine": {"batches": 0, "bytes": 0, "dropped": 0}},
            "delivery": {"delivered": 0, "purged": 0}});
        let of = |report: &serde_json::Value| {
            reasons(&serde_json::from_value(report.clone()).expect("a report"), Duration::from_secs(600))
        };
        assert_eq!(of(&report), Vec::<String>::new());
        report["queue"]["quarantine"]["batches"] = json!(3);
        assert!(of(&report).concat().contains("3 batches are in quarantine"));
    }
}
