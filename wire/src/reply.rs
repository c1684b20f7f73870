//! What agent and workspace say to each other besides batches, as JSON.

use crate::{AgentId, Compression, OrganizationId, geo::WorkspaceGeo, policy::SignedPolicy};
use serde::{Deserialize, Serialize};

/// Reply to a batch that is durably landed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The batch had landed before.
    pub duplicate: bool,
    /// The organization's policy revision in force.
    pub policy_revision: u64,
    /// What the workspace accepts.
    pub limits: Limits,
    /// First and last sequence, in the epoch of the batch, of what the agent holds for delivered and the workspace has not: it
    /// was restored from a backup. The agent reads again what it still can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<(u64, u64)>,
}

/// What the workspace accepts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Largest sealed batch in bytes.
    pub batch_bytes_max: u64,
    /// Largest batch in bytes when decompressed.
    pub plain_bytes_max: u64,
    /// Codec that it asks for in later batches; absent, the agent's own setting holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

/// Problem details (RFC 9457) with a stable `code`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// Stable word for programs: `version`, `shape`, `identity`, `geo`, …
    pub code: String,
    /// One line for people.
    pub title: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A page of `GET /v1/positions`: where the agent goes on when its queue was lost, as MessagePack.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    /// Sources in the order of (collector, id).
    pub sources: Vec<StoredSource>,
    /// Whether there are more behind the last.
    pub more: bool,
}

/// What the workspace has of one source of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSource {
    /// Collector that reads it.
    pub collector: String,
    /// Its identity.
    pub id: String,
    /// The newest cursor that it was told, in the collector's own format.
    #[serde(with = "serde_bytes")]
    pub cursor: Vec<u8>,
    /// When the batch that told it was sealed, nanoseconds UTC.
    #[serde(default)]
    pub sealed: i64,
    /// Positions that it has stored: half-open, ascending, apart.
    pub stored: Vec<(u64, u64)>,
}

/// `POST /v1/enroll`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// One-time token, as `vedette-workspace token new` printed it.
    pub token: String,
    /// Certificate signing request (RFC 2986), PEM, signed by the agent's own key.
    pub csr: String,
    /// Name of the host, for the list of agents.
    pub hostname: String,
    /// `/etc/machine-id`, hashed by the agent; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Version of the agent.
    pub version: String,
}

/// `POST /v1/rekey`, over the certificate of the key that is in use on another machine too. The answer is that to an
/// enrollment: this machine is another agent from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RekeyRequest {
    /// Certificate signing request (RFC 2986), PEM, signed by the new key.
    pub csr: String,
    /// Name of the host, for the list of agents.
    pub hostname: String,
    /// As in the headers that were refused; empty where they name none.
    pub machine: String,
    /// Version of the agent.
    pub version: String,
}

/// Reply to an enrollment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollReply {
    /// Organization that the token belongs to.
    pub organization: OrganizationId,
    /// Its name, a label.
    pub organization_name: String,
    /// The agent, by its public key.
    pub agent: AgentId,
    /// Client certificate, PEM.
    pub certificate: String,
    /// Geography of the workspace.
    pub geo: WorkspaceGeo,
    /// Policy revision in force.
    pub policy_revision: u64,
    /// Codec that the workspace asks for; absent, the agent's own setting holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Public key that policies and artifact requests are verified with: Ed25519, hex. Absent in replies of older
    /// releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_key: Option<String>,
    /// The policy in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<SignedPolicy>,
}

/// `POST /v1/renew`, over the certificate that is to be renewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// Certificate signing request (RFC 2986), PEM, signed by the agent's own key: the key, and so the id, stays.
    pub csr: String,
}

/// Reply to a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewReply {
    /// Client certificate, PEM.
    pub certificate: String,
}
