//! A record of a kind unknown to this build, kept whole: OCSF 0 Base Event.

use super::{Kind, Observation, RowContext};
use crate::{
    column::{Column, Value, text},
    ocsf::{Event, OcsfClass},
};
use serde::{Deserialize, Serialize};

/// The record as received.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unknown {
    /// MessagePack of the record.
    #[serde(with = "serde_bytes")]
    pub raw: Vec<u8>,
}

const COLUMNS: &[Column] = &[text("raw", "MessagePack of the record, hex")];

impl Observation for Unknown {
    const KIND: Kind = Kind {
        name: "unknown",
        view: "unknown",
        help: "records of a newer agent, of a kind that this workspace does not know",
        classes: &[OcsfClass::BaseEvent],
        columns: COLUMNS,
    };

    fn activity(&self) -> u8 {
        0
    }

    fn render(&self, event: &mut Event) {
        event.set("raw_data", hex::encode(&self.raw));
    }

    fn row<'a>(&'a self, _: &RowContext<'a>) -> Vec<Value<'a>> {
        vec![hex::encode(&self.raw).into()]
    }
}
