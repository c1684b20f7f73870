//! A line of a container's log: OCSF 0 Base Event.

use super::{Kind, Observation, RowContext};
use crate::{
    column::{Column, Value, boolean, integer, text},
    ocsf::{Event, OcsfClass, object},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::borrow::Cow;

/// A standard stream of a container's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// As runtimes write it.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }

    /// Parses what runtimes write.
    pub fn from_name(name: &str) -> Option<Self> {
        [Stream::Stdout, Stream::Stderr].into_iter().find(|stream| stream.name() == name)
    }
}

/// A container, as far as the host tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Id that the runtime gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Name: in its pod, or on the host for Docker's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Image reference that it was created with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Kubernetes namespace.
    #[serde(rename = "ns", skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// UID of the pod.
    #[serde(rename = "uid", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Number of times that kubelet restarted it.
    #[serde(rename = "rst", skip_serializing_if = "Option::is_none")]
    pub restarts: Option<u32>,
}

/// A line of a container's log. Field names are short: a batch holds thousands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerLog {
    /// What the container wrote, without its line end. Pieces that the runtime wrote are joined.
    #[serde(rename = "msg", with = "serde_bytes")]
    pub message: Vec<u8>,
    /// Time at which the runtime read it, nanoseconds UTC; absent where the line is in no known format.
    #[serde(rename = "ts", skip_serializing_if = "Option::is_none")]
    pub time: Option<i64>,
    /// Stream.
    #[serde(rename = "str", skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// Number of this part, from 1, of a line of the file longer than a record may be; absent for a whole line.
    #[serde(rename = "pt", skip_serializing_if = "Option::is_none")]
    pub part: Option<u32>,
    /// The end of the line is in another record, or was never written.
    #[serde(rename = "unf", skip_serializing_if = "std::ops::Not::not")]
    pub unfinished: bool,
    /// Docker's `attrs`: labels, environment and tag of log options, JSON object.
    #[serde(rename = "att", skip_serializing_if = "Option::is_none")]
    pub attributes: Option<String>,
    /// The container.
    #[serde(rename = "c")]
    pub container: Container,
}

const COLUMNS: &[Column] = &[
    text("namespace", "Kubernetes namespace"),
    text("pod", "pod"),
    text("pod_uid", "UID of the pod"),
    text("container", "name of the container: in its pod, or on the host for Docker's own"),
    text("container_id", "id that the runtime gave it"),
    text("image", "image reference that it was created with"),
    integer("restarts", "number of times that kubelet restarted the container"),
    text("stream", "`stdout` or `stderr`; null where the line is in no known format"),
    text("message", "what the container wrote; pieces that the runtime wrote are joined"),
    text("attributes", "Docker's `attrs` (labels, environment and tag of log options), JSON object"),
    text("file", "path of the log file"),
    integer("file_offset", "offset of the first byte of the file that no earlier record has"),
    integer("part", "number of this part, from 1, of a line of the file longer than 1 MiB; null where it is whole"),
    boolean("unfinished", "true where the end of the line is in another record, or was never written"),
];

impl Observation for ContainerLog {
    const KIND: Kind = Kind {
        name: "container_log",
        view: "container_logs",
        help: "lines of the logs of containers, from Kubernetes and Docker",
        classes: &[OcsfClass::BaseEvent],
        columns: COLUMNS,
    };

    fn activity(&self) -> u8 {
        0
    }

    fn time(&self) -> Option<i64> {
        self.time
    }

    fn message(&self) -> Option<Cow<'_, str>> {
        Some(String::from_utf8_lossy(&self.message))
    }

    fn render(&self, event: &mut Event) {
        let container = &self.container;
        event.set_in(
            "unmapped",
            "container",
            object([
                ("uid", json!(container.id)),
                ("name", json!(container.name)),
                ("image", json!(container.image)),
                ("namespace", json!(container.namespace)),
                ("pod", json!(container.pod)),
                ("pod_uuid", json!(container.pod_uid)),
                ("restarts", json!(container.restarts)),
            ]),
        );
        event.set_in("unmapped", "stream", self.stream.map(Stream::name));
        event.set_in("unmapped", "attributes", self.attributes.clone());
        event.set_in("unmapped", "part", self.part);
        event.set_in("unmapped", "unfinished", self.unfinished.then_some(true));
    }

    fn row<'a>(&'a self, context: &RowContext<'a>) -> Vec<Value<'a>> {
        let container = &self.container;
        vec![
            container.namespace.as_ref().into(),
            container.pod.as_ref().into(),
            container.pod_uid.as_ref().into(),
            container.name.as_ref().into(),
            container.id.as_ref().into(),
            container.image.as_ref().into(),
            container.restarts.into(),
            self.stream.map(Stream::name).into(),
            String::from_utf8_lossy(&self.message).into(),
            self.attributes.as_ref().into(),
            context.source_name.into(),
            context.position.0.into(),
            self.part.into(),
            if self.unfinished { true.into() } else { Value::Null },
        ]
    }
}
