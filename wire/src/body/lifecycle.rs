//! The agent's own lifecycle: OCSF 6002 Application Lifecycle, and 6008 Application Error for a failed collector.

use super::{Kind, Observation, RowContext};
use crate::{
    column::{Column, Value, text},
    ocsf::{Event, OcsfClass},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::borrow::Cow;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LifecycleEvent {
    /// The agent started.
    Start,
    /// The agent is stopping.
    Stop,
    /// The configuration in force, at each start.
    Configuration,
    /// A collector failed, or is missing permissions.
    CollectorError,
    /// A collector recovered.
    CollectorRecovered,
    /// Batches were salvaged from a damaged queue.
    QueueSalvaged,
    /// A policy took effect or was refused, or the configuration switches off a collector that the
    /// policy requires.
    Policy,
    /// The workspace lost acknowledged batches; their sources are read again.
    ReadAgain,
}

/// An event in the life of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// What happened.
    pub event: LifecycleEvent,
    /// Message for people.
    pub message: String,
    /// Version of the agent.
    pub version: String,
    /// The collector concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collector: Option<String>,
    /// SHA-256 of the effective configuration, hex, in a configuration record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<String>,
}

const COLUMNS: &[Column] = &[
    text(
        "event",
        "`start`, `stop`, `configuration`, `collector_error`, `collector_recovered`, `queue_salvaged`, `policy` or `read_again`",
    ),
    text("message", "a line for people"),
    text("version", "version of the agent"),
    text("about", "the collector that it is about"),
    text("configuration", "SHA-256 of the effective configuration"),
];

impl Lifecycle {
    fn event_name(&self) -> &'static str {
        match self.event {
            LifecycleEvent::Start => "start",
            LifecycleEvent::Stop => "stop",
            LifecycleEvent::Configuration => "configuration",
            LifecycleEvent::CollectorError => "collector_error",
            LifecycleEvent::CollectorRecovered => "collector_recovered",
            LifecycleEvent::QueueSalvaged => "queue_salvaged",
            LifecycleEvent::Policy => "policy",
            LifecycleEvent::ReadAgain => "read_again",
        }
    }
}

impl Observation for Lifecycle {
    const KIND: Kind = Kind {
        name: "lifecycle",
        view: "lifecycle",
        help: "start, stop and configuration of the agent, and errors of its collectors",
        classes: &[OcsfClass::ApplicationLifecycle, OcsfClass::ApplicationError],
        columns: COLUMNS,
    };

    fn class(&self) -> OcsfClass {
        match self.event {
            LifecycleEvent::CollectorError => OcsfClass::ApplicationError,
            _ => OcsfClass::ApplicationLifecycle,
        }
    }

    fn activity(&self) -> u8 {
        match self.event {
            LifecycleEvent::Start => 3,
            LifecycleEvent::Stop => 4,
            LifecycleEvent::CollectorError => 1,
            LifecycleEvent::Configuration
            | LifecycleEvent::CollectorRecovered
            | LifecycleEvent::QueueSalvaged
            | LifecycleEvent::Policy
            | LifecycleEvent::ReadAgain => 99,
        }
    }

    fn severity(&self) -> u8 {
        if self.event == LifecycleEvent::CollectorError { 3 } else { 1 }
    }

    fn message(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.message))
    }

    fn render(&self, event: &mut Event) {
        if self.class() == OcsfClass::ApplicationLifecycle {
            event.set("app", json!({"name": "Vedette", "vendor_name": "Vedette", "version": self.version}));
        }
        event.set_in("unmapped", "event", self.event_name());
        event.set_in("unmapped", "about", self.collector.clone());
        event.set_in("unmapped", "configuration", self.configuration.clone());
    }

    fn row<'a>(&'a self, _: &RowContext<'a>) -> Vec<Value<'a>> {
        vec![
            self.event_name().into(),
            self.message.as_str().into(),
            self.version.as_str().into(),
            self.collector.as_ref().into(),
            self.configuration.as_ref().into(),
        ]
    }
}
