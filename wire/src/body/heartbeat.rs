//! The agent is alive: OCSF 5001 Device Inventory Info, activity 1 Log.

use super::{Kind, Observation, RowContext};
use crate::{
    column::{Column, Value, at, integer, list, text, time},
    ocsf::{Event, OcsfClass, milliseconds},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// State of the agent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heartbeat {
    /// Version of the agent.
    pub version: String,
    /// Policy revision in force.
    pub policy_revision: u64,
    /// Endpoint in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Start of its use, nanoseconds UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_since: Option<i64>,
    /// Why it is in use: `preferred`, or which other endpoint failed, how long and how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_why: Option<String>,
    /// Size of the queue's file in bytes.
    pub queue_bytes: u64,
    /// Undelivered batches.
    pub queue_batches: u64,
    /// When the oldest undelivered batch was sealed, nanoseconds UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_unsent: Option<i64>,
    /// Resident memory in bytes (`VmRSS`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    /// Why sources wait for room in the queue; absent while the queue has room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// Batches in quarantine.
    pub quarantined: u64,
    /// State of each collector.
    pub collectors: Vec<CollectorHealth>,
}

/// State of a collector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectorHealth {
    /// Id of the collector.
    pub id: String,
    /// `starting`, `waiting`, `running`, `absent`, `failing`, `stuck`, `disabled`.
    pub state: String,
    /// Records emitted since the epoch began.
    pub emitted: u64,
    /// Records dropped since the epoch began.
    pub dropped: u64,
    /// Why it is not running, or its last error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

const COLUMNS: &[Column] = &[
    text("version", "version of the agent"),
    integer("policy_revision", "policy revision in force"),
    text("endpoint", "endpoint in use"),
    integer("queue_bytes", "size of the queue's file in bytes"),
    integer("queue_batches", "batches not yet delivered"),
    time("oldest_unsent", "when the oldest batch not yet delivered was sealed"),
    integer("rss_bytes", "resident memory in bytes"),
    text("waiting", "why sources wait for room in the queue; null while it takes batches"),
    integer("quarantined", "batches in quarantine"),
    text("collectors", "state of each collector, JSON list"),
    time("endpoint_since", "since when the endpoint is in use"),
    text("endpoint_why", "why it is: `preferred`, or how long which other one has failed, and with what"),
];

impl Observation for Heartbeat {
    const KIND: Kind = Kind {
        name: "heartbeat",
        view: "heartbeats",
        help: "the agent is alive, at start and each minute",
        classes: &[OcsfClass::DeviceInventoryInfo],
        columns: COLUMNS,
    };

    fn activity(&self) -> u8 {
        1
    }

    fn render(&self, event: &mut Event) {
        event.set_in(
            "device",
            "agent_list",
            json!([{"name": "Vedette", "vendor_name": "Vedette", "version": self.version, "type_id": 6,
                    "policies": [{"name": "collection", "version": self.policy_revision.to_string()}]}]),
        );
        for (name, value) in [
            ("endpoint", json!(self.endpoint)),
            ("queue_bytes", json!(self.queue_bytes)),
            ("queue_batches", json!(self.queue_batches)),
            ("oldest_unsent", json!(self.oldest_unsent.map(milliseconds))),
            ("rss_bytes", json!(self.rss_bytes)),
            ("waiting", json!(self.waiting)),
            ("quarantined", json!(self.quarantined)),
            ("collectors", json!(self.collectors)),
            ("endpoint_since", json!(self.endpoint_since.map(milliseconds))),
            ("endpoint_why", json!(self.endpoint_why)),
        ] {
            event.set_in("unmapped", name, value);
        }
    }

    fn row<'a>(&'a self, _: &RowContext<'a>) -> Vec<Value<'a>> {
        vec![
            self.version.as_str().into(),
            self.policy_revision.into(),
            self.endpoint.as_ref().into(),
            self.queue_bytes.into(),
            self.queue_batches.into(),
            at(self.oldest_unsent),
            self.rss_bytes.into(),
            self.waiting.as_ref().into(),
            self.quarantined.into(),
            list(&self.collectors),
            at(self.endpoint_since),
            self.endpoint_why.as_ref().into(),
        ]
    }
}
