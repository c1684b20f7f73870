//! A piece of a requested file, or the reason for a refusal: OCSF 0 Base Event. The bytes stay in the landed batch; tables hold
//! the rest.

use super::{Kind, Observation, RowContext};
use crate::{
    column::{Column, Value, at, integer, text, time},
    ocsf::{Event, OcsfClass, object},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::borrow::Cow;

/// A piece of an artifact.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Artifact {
    /// Id of the request.
    pub request: String,
    /// Requested path, on the host.
    pub path: String,
    /// Offset of the piece in the file.
    pub offset: u64,
    /// Bytes of the piece.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
    /// Why the host refuses the request; absent with data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Facts of the whole file, in its last piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whole: Option<WholeFile>,
}

/// A file that was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WholeFile {
    /// Bytes sent.
    pub size: u64,
    /// SHA-256 of the bytes sent, hex.
    pub sha256: String,
    /// Path with symbolic links resolved.
    pub real_path: String,
    /// `st_mode` with the file type (inode(7)).
    pub mode: u32,
    /// Owner.
    pub user_id: u32,
    /// Owner's name, where the host has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Group.
    pub group_id: u32,
    /// Group's name, where the host has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Last read, nanoseconds UTC.
    pub accessed: i64,
    /// Last written, nanoseconds UTC.
    pub modified: i64,
    /// Last change of content or attributes, nanoseconds UTC.
    pub changed: i64,
    /// The file changed while it was read, so its bytes are of different times.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub torn: bool,
}

const COLUMNS: &[Column] = &[
    text("request", "id of the request"),
    text("path", "requested path"),
    integer("offset", "where the piece begins in the file"),
    integer("length", "bytes of the piece"),
    text("refused", "why the host does not send it"),
    integer("size", "bytes of the file; with the last piece"),
    text("sha256", "SHA-256 of the file, hex; with the last piece"),
    text("real_path", "path behind symbolic links; with the last piece"),
    text("mode", "type and permissions, octal; with the last piece"),
    text("owner", "owner; with the last piece"),
    text("owner_group", "group; with the last piece"),
    time("accessed", "last read; with the last piece"),
    time("modified", "last written; with the last piece"),
    time("changed", "last change of content or attributes; with the last piece"),
];

impl Observation for Artifact {
    const KIND: Kind = Kind {
        name: "artifact",
        view: "artifacts",
        help: "pieces of files that were asked for; `artifact get` puts them together",
        classes: &[OcsfClass::BaseEvent],
        columns: COLUMNS,
    };

    fn activity(&self) -> u8 {
        99
    }

    fn message(&self) -> Option<Cow<'_, str>> {
        let what = match (&self.refused, &self.whole) {
            (Some(why), _) => format!("refused: {why}"),
            (None, Some(whole)) => format!("all {} bytes sent", whole.size),
            (None, None) => format!("{} bytes at {}", self.data.len(), self.offset),
        };
        Some(Cow::Owned(format!("{}: {what}", self.path)))
    }

    fn render(&self, event: &mut Event) {
        let whole = self.whole.as_ref();
        event.set_in(
            "unmapped",
            "artifact",
            object([
                ("request", json!(self.request)),
                ("path", json!(self.path)),
                ("offset", json!(self.offset)),
                ("length", json!(self.data.len())),
                ("refused", json!(self.refused)),
                ("size", json!(whole.map(|whole| whole.size))),
                ("sha256", json!(whole.map(|whole| &whole.sha256))),
            ]),
        );
    }

    fn row<'a>(&'a self, _: &RowContext<'a>) -> Vec<Value<'a>> {
        let whole = self.whole.as_ref();
        let named = |name: Option<&Option<String>>, id: Option<u32>| {
            name.cloned().flatten().or_else(|| id.map(|id| id.to_string()))
        };
        let owner = named(whole.map(|whole| &whole.user), whole.map(|whole| whole.user_id));
        let group = named(whole.map(|whole| &whole.group), whole.map(|whole| whole.group_id));
        vec![
            self.request.as_str().into(),
            self.path.as_str().into(),
            self.offset.into(),
            (self.data.len() as u64).into(),
            self.refused.as_ref().into(),
            whole.map(|whole| whole.size).into(),
            whole.map(|whole| whole.sha256.as_str()).into(),
            whole.map(|whole| whole.real_path.as_str()).into(),
            whole.map(|whole| format!("{:o}", whole.mode)).into(),
            owner.into(),
            group.into(),
            at(whole.map(|whole| whole.accessed)),
            at(whole.map(|whole| whole.modified)),
            at(whole.map(|whole| whole.changed)),
        ]
    }
}
