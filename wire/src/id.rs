//! Identifiers on the wire: organization, agent, lane, epoch, and the batch key made of them.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
pub use uuid::Uuid;

/// An identifier in the wrong form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {expected}")]
pub struct ParseIdError {
    value: String,
    expected: &'static str,
}

fn refuse<T>(value: &str, expected: &'static str) -> Result<T, ParseIdError> {
    Err(ParseIdError { value: value.to_owned(), expected })
}

/// Organization (tenant), a UUIDv7 given by the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OrganizationId(pub Uuid);

impl OrganizationId {
    /// Wraps a UUID; the caller creates it with [`Uuid::now_v7`].
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl fmt::Display for OrganizationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for OrganizationId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        Uuid::try_parse(text).map(Self).or_else(|_| refuse(text, "an organization id (UUID)"))
    }
}

/// Agent: the first 16 bytes of SHA-256 over the public key (DER SubjectPublicKeyInfo, RFC 5280), as hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentId(pub [u8; 16]);

impl AgentId {
    /// Id of a public key, given as DER SubjectPublicKeyInfo.
    pub fn of_public_key(spki_der: &[u8]) -> Self {
        let digest = crate::digest::sha256(spki_der);
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self(id)
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for AgentId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id)
            .map(|()| Self(id))
            .or_else(|_| refuse(text, "an agent id (32 hexadecimal digits)"))
    }
}

/// One run of sequences from 1 on: a random number, written as 16 hexadecimal digits. A new queue file, a conflict, another agent
/// or a re-read begins another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Epoch {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if text.len() != 16 {
            return refuse(text, "an epoch (16 hexadecimal digits)");
        }
        u64::from_str_radix(text, 16).map(Self).or_else(|_| refuse(text, "an epoch (16 hexadecimal digits)"))
    }
}

/// A queue with its own sender, so that records never wait for an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LaneName {
    /// Batches of records.
    Records,
    /// Pieces of artifacts.
    Blobs,
}

impl LaneName {
    /// Name in paths, keys and file names.
    pub fn name(self) -> &'static str {
        match self {
            LaneName::Records => "records",
            LaneName::Blobs => "blobs",
        }
    }

    pub(crate) fn number(self) -> u8 {
        match self {
            LaneName::Records => 0,
            LaneName::Blobs => 1,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [LaneName::Records, LaneName::Blobs].into_iter().find(|lane| lane.number() == number)
    }
}

impl fmt::Display for LaneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LaneName {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        match text {
            "records" => Ok(LaneName::Records),
            "blobs" => Ok(LaneName::Blobs),
            _ => refuse(text, "a lane (records or blobs)"),
        }
    }
}

/// The permanent name of a batch. A retry has the same key and the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BatchKey {
    /// Organization the batch belongs to.
    pub organization: OrganizationId,
    /// Agent that sealed it.
    pub agent: AgentId,
    /// Lane that it travels on.
    pub lane: LaneName,
    /// Epoch that it was committed in.
    pub epoch: Epoch,
    /// Sequence in (lane, epoch), from 1, without gaps.
    pub seq: u64,
}

impl fmt::Display for BatchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}/{}", self.organization, self.agent, self.lane, self.epoch, self.seq)
    }
}

macro_rules! as_string {
    ($($id:ty),*) => {$(
        impl TryFrom<String> for $id {
            type Error = ParseIdError;
            fn try_from(text: String) -> Result<Self, ParseIdError> {
                text.parse()
            }
        }
        impl From<$id> for String {
            fn from(id: $id) -> String {
                id.to_string()
            }
        }
    )*};
}
as_string!(OrganizationId, AgentId, Epoch);
