//! Classes and attributes of OCSF 1.8.0 (<https://schema.ocsf.io/1.8.0>). Times are milliseconds since the epoch.

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

impl From<Event> for Value {
    fn from(event: Event) -> Self {
        Value::Object(event.0)
    }
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
