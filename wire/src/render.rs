//! Rendering of records to OCSF 1.8.0 events: a pure function of envelope and record. Data without an OCSF attribute goes to
//! `unmapped`.

use crate::{
    AgentId, BatchKey, Header, OrganizationId, Record,
    ocsf::{Event, milliseconds, object},
    record::HostLabel,
};
use serde_json::{Value, json};

/// Context of a record.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Organization; absent on a host that is not enrolled.
    pub organization: Option<OrganizationId>,
    /// Agent; absent on a host that is not enrolled.
    pub agent: Option<AgentId>,
    /// Batch of the record; absent before it is sealed.
    pub batch: Option<BatchKey>,
    /// Version of the agent.
    pub agent_version: &'a str,
    /// The host.
    pub host: &'a HostLabel,
    /// Collector that emitted the record.
    pub collector: &'a str,
    /// Display name of the source: a path.
    pub source_name: Option<&'a str>,
    /// Index of the record in its batch.
    pub index: usize,
}

impl<'a> Origin<'a> {
    /// Context of a record in a batch.
    pub fn in_batch(header: &'a Header, index: usize, record: &Record) -> Self {
        let source = header.sources.get(record.source as usize);
        Self {
            organization: Some(header.organization),
            agent: Some(header.agent),
            batch: Some(header.key()),
            agent_version: &header.agent_version,
            host: &header.host,
            collector: source.map_or("unknown", |source| &source.collector),
            source_name: source.and_then(|source| source.name.as_deref()),
            index,
        }
    }
}

/// Renders the event.
pub fn render(origin: &Origin<'_>, record: &Record) -> Value {
    let body = &record.body;
    let class = body.class();
    let activity = body.activity();
    let time = body.time().unwrap_or(record.observed);
    let mut event = Event::default();
    event.set("class_uid", class.uid());
    event.set("category_uid", class.category());
    event.set("activity_id", activity);
    event.set("type_uid", class.uid() * 100 + u32::from(activity));
    event.set("severity_id", body.severity());
    event.set("time", milliseconds(time));
    event.set("metadata", metadata(origin, record));
    event.set("device", device(origin));
    event.set("message", body.message().map(|text| text.into_owned()));
    body.render(&mut event);
    event.set_in("unmapped", "vedette_kind", body.kind().name);
    event.set_in("unmapped", "source", origin.source_name);
    event.into()
}

fn metadata(origin: &Origin<'_>, record: &Record) -> Value {
    object([
        ("version", json!("1.8.0")),
        ("profiles", json!(["host"])),
        (
            "product",
            json!({"name": "Vedette", "vendor_name": "Vedette", "version": origin.agent_version,
                   "feature": {"name": origin.collector}}),
        ),
        ("uid", origin.batch.map(|key| record_id(&key, origin.index)).into()),
        ("tenant_uid", origin.organization.map(|id| id.to_string()).into()),
        ("sequence", origin.batch.map(|key| key.seq).into()),
        ("logged_time", milliseconds(record.observed).into()),
    ])
}

/// `agent/lane/epoch/seq/index`.
pub fn record_id(key: &BatchKey, index: usize) -> String {
    format!("{}/{}/{}/{}/{index}", key.agent, key.lane, key.epoch, key.seq)
}

fn device(origin: &Origin<'_>) -> Value {
    let (type_id, os_type) = origin.host.os_family.ocsf();
    object([
        ("type_id", json!(0)),
        ("uid", origin.agent.map(|id| id.to_string()).into()),
        ("hostname", json!(origin.host.hostname)),
        (
            "os",
            object([
                ("name", json!(origin.host.os_name)),
                ("type_id", json!(type_id)),
                ("type", json!(os_type)),
                ("version", origin.host.os_version.clone().into()),
            ]),
        ),
    ])
}
