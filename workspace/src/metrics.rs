//! Metrics of `serve`, as OpenMetrics text for Prometheus (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use std::{sync::atomic::AtomicU64, time::Duration};
use vedette_wire::{OrganizationId, text::metric_label};

/// Content type of the text.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An organization.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOrganization {
    organization: String,
}

/// Batches of an organization, by what became of them: `landed`, `duplicate`, or the code of the refusal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfBatch {
    organization: String,
    outcome: String,
}

/// Requests of a route.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRequest {
    route: String,
    status: u16,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRoute {
    route: String,
}

/// What an organization has of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    organization: String,
    kind: String,
}

type PerOrganization<M> = Family<OfOrganization, M>;
type Seconds = Gauge<f64, AtomicU64>;

/// Counters since the start of the process.
pub(crate) struct Metrics {
    registry: Registry,
    batches: Family<OfBatch, Counter>,
    records: PerOrganization<Counter>,
    bytes: PerOrganization<Counter>,
    materialised: PerOrganization<Counter>,
    requests: Family<OfRequest, Counter>,
    request_seconds: Family<OfRoute, Histogram, fn() -> Histogram>,
}

/// State of an organization in the control store.
#[derive(Debug, Clone, Default)]
pub(crate) struct OrganizationState {
    pub(crate) organization: String,
    /// Agents that are not revoked, and those of them without contact for ten minutes.
    pub(crate) agents: u64,
    pub(crate) silent_agents: u64,
    /// Landed batches that are not in the tables, their sealed bytes, and the age of the oldest.
    pub(crate) pending_batches: u64,
    pub(crate) pending_bytes: u64,
    pub(crate) pending_seconds: f64,
    /// Batches that cannot be written to the tables.
    pub(crate) unreadable_batches: u64,
    /// Answered queries and the time that they took.
    pub(crate) queries: u64,
    pub(crate) query_seconds: f64,
    /// Number of alerts by kind; `gap` is for gaps in the ledger.
    pub(crate) alerts: Vec<(String, u64)>,
}

fn of(organization: OrganizationId) -> OfOrganization {
    OfOrganization { organization: organization.to_string() }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("vedette_workspace");
        let (batches, requests) = (Family::default(), Family::default());
        let (records, bytes, materialised) = (Family::default(), Family::default(), Family::default());
        let buckets: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 4.0, 9));
        let request_seconds = Family::new_with_constructor(buckets);
        registry.register("batches", "Received batches, by outcome", Family::clone(&batches));
        registry.register("records", "Records of landed batches", Family::clone(&records));
        registry.register_with_unit("received", "Sealed bytes of landed batches", Unit::Bytes, Family::clone(&bytes));
        registry.register("materialised_batches", "Batches written to tables", Family::clone(&materialised));
        registry.register("requests", "Answered requests", Family::clone(&requests));
        let help = "Time from the head of a request to its answer; polls are held for up to 40 s";
        registry.register_with_unit("request_duration", help, Unit::Seconds, Family::clone(&request_seconds));
        Self { registry, batches, records, bytes, materialised, requests, request_seconds }
    }

    /// Counts a landed batch.
    pub(crate) fn landed(&self, organization: OrganizationId, records: u64, bytes: u64, is_duplicate: bool) {
        self.outcome(organization, if is_duplicate { "duplicate" } else { "landed" });
        if !is_duplicate {
            self.records.get_or_create(&of(organization)).inc_by(records);
            self.bytes.get_or_create(&of(organization)).inc_by(bytes);
        }
    }

    /// Counts a batch that was refused with a code.
    pub(crate) fn outcome(&self, organization: OrganizationId, outcome: &str) {
        let labels = OfBatch { organization: organization.to_string(), outcome: metric_label(outcome) };
        self.batches.get_or_create(&labels).inc();
    }

    /// Counts batches that were written to tables.
    pub(crate) fn materialised(&self, organization: OrganizationId, batches: u64) {
        self.materialised.get_or_create(&of(organization)).inc_by(batches);
    }

    /// Counts an answered request of a route.
    pub(crate) fn answered(&self, route: &str, status: u16, took: Duration) {
        self.requests.get_or_create(&OfRequest { route: metric_label(route), status }).inc();
        self.request_seconds.get_or_create(&OfRoute { route: metric_label(route) }).observe(took.as_secs_f64());
    }

    /// The counters and the state of the stores as text.
    pub(crate) fn render(&self, organizations: &[OrganizationState], resident_bytes: Option<u64>) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String does not fail");
        // One text has one end.
        text.truncate(text.len() - "# EOF\n".len());
        let mut registry = Registry::with_prefix("vedette_workspace");
        state(&mut registry, organizations);
        if let Some(bytes) = resident_bytes {
            let resident: Gauge = Gauge::default();
            resident.set(signed(bytes));
            registry.register_with_unit("resident_memory", "Resident memory of `serve`", Unit::Bytes, resident);
        }
        encode(&mut text, &registry).expect("writing to a String does not fail");
        text
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn state(registry: &mut Registry, organizations: &[OrganizationState]) {
    let gauge = |registry: &mut Registry, name: &str, help: &str, value: fn(&OrganizationState) -> u64| {
        let family = PerOrganization::<Gauge>::default();
        for one in organizations {
            let labels = OfOrganization { organization: metric_label(&one.organization) };
            family.get_or_create(&labels).set(signed(value(one)));
        }
        registry.register(name, help, family);
    };
    gauge(registry, "agents", "Agents that are not revoked", |one| one.agents);
    gauge(registry, "silent_agents", "Agents without contact for ten minutes", |one| one.silent_agents);
    gauge(registry, "pending_batches", "Landed batches that are not in the tables", |one| one.pending_batches);
    gauge(registry, "pending_sealed_bytes", "Sealed bytes of these batches", |one| one.pending_bytes);
    gauge(registry, "unreadable_batches", "Batches that cannot be written to tables", |one| one.unreadable_batches);
    let (ages, query_seconds) =
        (PerOrganization::<Seconds>::default(), PerOrganization::<Counter<f64, AtomicU64>>::default());
    let (queries, alerts) = (PerOrganization::<Counter>::default(), Family::<OfKind, Gauge>::default());
    for one in organizations {
        let labels = OfOrganization { organization: metric_label(&one.organization) };
        ages.get_or_create(&labels).set(one.pending_seconds);
        queries.get_or_create(&labels).inc_by(one.queries);
        query_seconds.get_or_create(&labels).inc_by(one.query_seconds);
        for (kind, count) in &one.alerts {
            let labels = OfKind { organization: metric_label(&one.organization), kind: metric_label(kind) };
            alerts.get_or_create(&labels).set(signed(*count));
        }
    }
    registry.register_with_unit(
        "pending_age",
        "Age of the oldest batch that is not in the tables",
        Unit::Seconds,
        ages,
    );
    registry.register("queries", "Answered queries", queries);
    registry.register_with_unit("query_duration", "Time that answered queries took", Unit::Seconds, query_seconds);
    registry.register("alerts", "Alerts by kind; gap is for gaps in the ledger", alerts);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_state_are_one_text_with_one_end() {
        let (metrics, organization) = (Metrics::new(), OrganizationId::from_uuid(uuid::Uuid::from_bytes([1; 16])));
        metrics.landed(organization, 5, 100, false);
        metrics.landed(organization, 5, 100, true);
        metrics.outcome(organization, "shape");
        metrics.answered("/v1/policy", 200, Duration::from_millis(3));
        let state = OrganizationState {
            organization: "a\"b\n".to_owned(),
            agents: 3,
            pending_seconds: 1.5,
            query_seconds: 0.25,
            queries: 1,
            alerts: vec![("gap".to_owned(), 2)],
            ..OrganizationState::default()
        };
        let text = metrics.render(&[state], Some(4096));
        for line in [
            "vedette_workspace_batches_total{organization=\"01010101-0101-0101-0101-010101010101\",outcome=\"landed\"} 1",
            "vedette_workspace_batches_total{organization=\"01010101-0101-0101-0101-010101010101\",outcome=\"duplicate\"} 1",
            "vedette_workspace_batches_total{organization=\"01010101-0101-0101-0101-010101010101\",outcome=\"shape\"} 1",
            "vedette_workspace_records_total{organization=\"01010101-0101-0101-0101-010101010101\"} 5",
            "vedette_workspace_requests_total{route=\"/v1/policy\",status=\"200\"} 1",
            "vedette_workspace_agents{organization=\"a\\\"b\\n\"} 3",
            "vedette_workspace_pending_age_seconds{organization=\"a\\\"b\\n\"} 1.5",
            "vedette_workspace_query_duration_seconds_total{organization=\"a\\\"b\\n\"} 0.25",
            "vedette_workspace_alerts{organization=\"a\\\"b\\n\",kind=\"gap\"} 2",
            "vedette_workspace_resident_memory_bytes 4096",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert_eq!(text.matches("# EOF").count(), 1);
        assert!(text.ends_with("# EOF\n"));
    }
}
