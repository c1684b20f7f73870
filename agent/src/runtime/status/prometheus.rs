//! The report as OpenMetrics text, which Prometheus reads (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).

use super::Report;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};
use std::sync::atomic::AtomicU64;
use vedette_wire::text::metric_label;

/// Content type of the text.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type FloatGauge = Gauge<f64, AtomicU64>;

/// Renders a report.
pub(crate) fn render(report: &Report) -> String {
    let mut registry = Registry::with_prefix("vedette");
    let facts = vec![
        ("version", metric_label(&report.version)),
        ("agent", metric_label(&report.agent)),
        ("organization", metric_label(&report.organization)),
        ("endpoint", metric_label(&report.endpoint)),
    ];
    registry.register("agent", "The agent and its endpoint", Info::new(facts));
    collectors(&mut registry, report);
    delivery(&mut registry, report);
    let gauge = |registry: &mut Registry, name: &str, help: &str, value: i64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    gauge(
        &mut registry,
        "policy_revision",
        "Policy revision that the collectors follow",
        to_i64(report.policy.revision),
    );
    gauge(&mut registry, "policy_collect", "1 if the policy lets collectors run", i64::from(report.policy.collect));
    let problem = i64::from(report.policy.problem.is_some());
    gauge(&mut registry, "policy_problem", "1 if the last received or the stored policy cannot be used", problem);
    if let Some(bytes) = report.rss_bytes {
        let resident: Gauge = Gauge::default();
        resident.set(to_i64(bytes));
        registry.register_with_unit("resident_memory", "Resident memory of the agent", Unit::Bytes, resident);
    }
    let mut text = String::new();
    encode(&mut text, &registry).expect("writing to a String does not fail");
    text
}

fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn collectors(registry: &mut Registry, report: &Report) {
    let (emitted, dropped) = (Family::<Labels, Counter>::default(), Family::<Labels, Counter>::default());
    let (states, problems) = (Family::<Labels, Gauge>::default(), Family::<Labels, Gauge>::default());
    for collector in &report.collectors {
        let label = || ("collector", metric_label(&collector.id));
        emitted.get_or_create(&vec![label()]).inc_by(collector.emitted);
        for (reason, count) in &collector.dropped_by_reason {
            dropped.get_or_create(&vec![label(), ("reason", reason.name().to_owned())]).inc_by(*count);
        }
        states.get_or_create(&vec![label(), ("state", metric_label(&collector.state))]).set(1);
        problems.get_or_create(&vec![label()]).set(i64::from(collector.problem.is_some()));
    }
    registry.register("emitted_records", "Records that collectors emitted since the epoch began", emitted);
    registry.register("dropped_records", "Records that were dropped, by reason", dropped);
    registry.register("collector_state", "1 for the current state of each collector", states);
    registry.register(
        "collector_problem",
        "1 if a running collector reports a source that it cannot read, watch or bind",
        problems,
    );
}

fn delivery(registry: &mut Registry, report: &Report) {
    let (queue, delivery) = (&report.queue, &report.delivery);
    let number = |registry: &mut Registry, name: &str, help: &str, unit: Option<Unit>, value: u64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(to_i64(value));
        match unit {
            Some(unit) => registry.register_with_unit(name, help, unit, gauge),
            None => registry.register(name, help, gauge),
        }
    };
    number(registry, "queue_batches", "Batches that wait in the queue", None, queue.batches);
    number(registry, "queue", "Size of the queue's file", Some(Unit::Bytes), queue.bytes);
    number(registry, "queue_waiting", "1 if sources wait for room in the queue", None, queue.waiting.is_some().into());
    number(
        registry,
        "quarantine_batches",
        "Batches that cannot be delivered, and are kept",
        None,
        queue.quarantine.batches,
    );
    number(registry, "quarantine", "Size of the batches in quarantine", Some(Unit::Bytes), queue.quarantine.bytes);
    let seconds = |registry: &mut Registry, name: &str, help: &str, value: f64| {
        let gauge = FloatGauge::default();
        gauge.set(value);
        registry.register_with_unit(name, help, Unit::Seconds, gauge);
    };
    let lag = queue.oldest_unsent_seconds.unwrap_or(0.0);
    seconds(registry, "delivery_lag", "Age of the oldest batch that has not landed; 0 if there is none", lag);
    seconds(registry, "delivery_idle", "Time since a batch landed, or since the tasks started", delivery.idle_seconds);
    let count = |registry: &mut Registry, name: &str, help: &str, value: u64| {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    };
    count(registry, "delivered_batches", "Batches that landed since the tasks started", delivery.delivered);
    count(
        registry,
        "purged_batches",
        "Batches deleted because the workspace refuses them under the policy",
        delivery.purged,
    );
    number(
        registry,
        "delivery_failing",
        "1 if the last attempt to deliver failed",
        None,
        delivery.last_error.is_some().into(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_is_text_that_no_label_can_break() {
        let collector = json!({"id": "syslog", "class": "event", "state": "running", "emitted": 7, "dropped": 3,
            "dropped_by_reason": {"source_overrun": 2, "oversize": 1}, "last_error": null, "problem": "x", "missing_permissions": []});
        let report = json!({"version": "0\"\n evil 1", "agent": "a", "organization": "o", "organization_name": "acme",
            "workspace": "w", "endpoint": "https://w:1", "policy_revision": 1, "rss_bytes": 4096, "collectors": [collector],
            "policy": {"revision": 5, "tier": "free", "collect": true, "problem": null},
            "queue": {"bytes": 65536, "batches": 2, "oldest_unsent_seconds": 1.5,
                "quarantine": {"batches": 0, "bytes": 0, "dropped": 0}},
            "delivery": {"delivered": 9, "purged": 0, "last_error": "refused"}});
        let text = render(&serde_json::from_value(report).expect("a report"));
        for line in [
            "vedette_emitted_records_total{collector=\"syslog\"} 7",
            "vedette_dropped_records_total{collector=\"syslog\",reason=\"oversize\"} 1",
            "vedette_collector_state{collector=\"syslog\",state=\"running\"} 1",
            "vedette_collector_problem{collector=\"syslog\"} 1",
            "vedette_policy_revision 5",
            "vedette_queue_bytes 65536",
            "vedette_queue_batches 2",
            "vedette_delivery_lag_seconds 1.5",
            "vedette_delivered_batches_total 9",
            "vedette_delivery_failing 1",
            "vedette_resident_memory_bytes 4096",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let is_sound = |line: &str| line.starts_with("# ") || line.starts_with("vedette_");
        assert!(text.lines().all(is_sound), "{text}");
    }
}
