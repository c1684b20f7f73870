//! Rendering to OCSF 1.8.0 events (<https://schema.ocsf.io/1.8.0>): a pure function of envelope and record.
//!
//! Times are milliseconds since the epoch. Data without an OCSF attribute goes to `unmapped`.

use crate::{AgentId, BatchKey, Header, OrganizationId, Record, record::HostLabel};
use serde_json::{Map, Value, json};

/// An event class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OcsfClass {
    /// 0, for everything without a class of its own.
    BaseEvent,
    /// 1007.
    ProcessActivity,
    /// 3002.
    Authentication,
    /// 5001.
    DeviceInventoryInfo,
    /// 5040.
    LiveEvidenceInfo,
    /// 6002.
    ApplicationLifecycle,
    /// 6008.
    ApplicationError,
}

impl OcsfClass {
    /// All classes that Vedette emits.
    pub const ALL: [OcsfClass; 7] = [
        OcsfClass::BaseEvent,
        OcsfClass::ProcessActivity,
        OcsfClass::Authentication,
        OcsfClass::DeviceInventoryInfo,
        OcsfClass::LiveEvidenceInfo,
        OcsfClass::ApplicationLifecycle,
        OcsfClass::ApplicationError,
    ];

    /// `class_uid`.
    pub fn uid(self) -> u32 {
        match self {
            OcsfClass::BaseEvent => 0,
            OcsfClass::ProcessActivity => 1007,
            OcsfClass::Authentication => 3002,
            OcsfClass::DeviceInventoryInfo => 5001,
            OcsfClass::LiveEvidenceInfo => 5040,
            OcsfClass::ApplicationLifecycle => 6002,
            OcsfClass::ApplicationError => 6008,
        }
    }

    /// `category_uid`: the thousands of the class.
    pub fn category(self) -> u32 {
        self.uid() / 1000
    }

    /// Table name: the caption in snake case.
    pub fn table(self) -> &'static str {
        match self {
            OcsfClass::BaseEvent => "base_event",
            OcsfClass::ProcessActivity => "process_activity",
            OcsfClass::Authentication => "authentication",
            OcsfClass::DeviceInventoryInfo => "device_inventory_info",
            OcsfClass::LiveEvidenceInfo => "live_evidence_info",
            OcsfClass::ApplicationLifecycle => "application_lifecycle",
            OcsfClass::ApplicationError => "application_error",
        }
    }
}

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

/// Attributes of an event under construction.
#[derive(Debug, Default)]
pub struct Event(Map<String, Value>);

impl Event {
    /// Sets an attribute; ignores an absent value.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        put(&mut self.0, name, value.into());
    }

    /// Sets an attribute of the object `parent`; creates the object if needed.
    pub fn set_in(&mut self, parent: &str, name: &str, value: impl Into<Value>) {
        let value = value.into();
        if is_absent(&value) {
            return;
        }
        let object = self.0.entry(parent).or_insert_with(|| json!({}));
        if let Value::Object(object) = object {
            object.insert(name.to_owned(), value);
        }
    }
}

fn is_absent(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(object) => object.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn put(object: &mut Map<String, Value>, name: &str, value: Value) {
    if !is_absent(&value) {
        object.insert(name.to_owned(), value);
    }
}

/// An object of these attributes, without absent ones.
pub fn object<const N: usize>(attributes: [(&str, Value); N]) -> Value {
    let mut out = Map::new();
    for (name, value) in attributes {
        put(&mut out, name, value);
    }
    Value::Object(out)
}

/// Converts nanoseconds to milliseconds.
pub fn milliseconds(nanoseconds: i64) -> i64 {
    nanoseconds.div_euclid(1_000_000)
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
    Value::Object(event.0)
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
    object([
        ("type_id", json!(0)),
        ("uid", origin.agent.map(|id| id.to_string()).into()),
        ("hostname", json!(origin.host.hostname)),
        (
            "os",
            object([
                ("name", json!(origin.host.os_name)),
                ("type_id", json!(200)),
                ("type", json!("Linux")),
                ("version", origin.host.os_version.clone().into()),
            ]),
        ),
    ])
}

/// OCSF severity for a syslog severity (RFC 5424 §6.2.1).
pub fn severity_of_syslog(severity: Option<u8>) -> u8 {
    match severity {
        Some(0) => 6,
        Some(1 | 2) => 5,
        Some(3) => 4,
        Some(4) => 3,
        Some(5) => 2,
        Some(_) => 1,
        None => 0,
    }
}
