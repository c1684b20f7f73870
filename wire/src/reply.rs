//! JSON messages between agent and workspace, apart from batches.

use crate::{AgentId, Compression, OrganizationId, geo::WorkspaceGeo, policy::SignedPolicy};
use serde::{Deserialize, Serialize};

/// Acknowledgement of a batch that is durably landed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The batch had landed before.
    pub duplicate: bool,
    /// The organization's policy revision in force.
    pub policy_revision: u64,
    /// Limits of the workspace.
    pub limits: ReceiveLimits,
    /// First and last sequence in the epoch of the batch that the agent considers delivered and the workspace lacks, since it
    /// was restored from a backup. The agent reads again what it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<(u64, u64)>,
}

/// Limits of the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveLimits {
    /// Maximum size of a sealed batch in bytes.
    pub batch_bytes_max: u64,
    /// Maximum size of a decompressed batch in bytes.
    pub plain_bytes_max: u64,
    /// Requested codec for later batches; absent, the agent's setting applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

/// A page of `GET /v1/positions`, as MessagePack: where an agent continues after it lost its queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    /// Sources in the order of (collector, id).
    pub sources: Vec<StoredSource>,
    /// Whether more sources follow.
    pub more: bool,
}

/// What the workspace has of one source of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSource {
    /// Collector that reads it.
    pub collector: String,
    /// Id of the source.
    pub id: String,
    /// Newest cursor, in the collector's own format.
    #[serde(with = "serde_bytes")]
    pub cursor: Vec<u8>,
    /// When the batch with that cursor was sealed, nanoseconds UTC.
    #[serde(default)]
    pub sealed: i64,
    /// Stored positions: half-open ranges, ascending and disjoint.
    pub stored: Vec<(u64, u64)>,
}

/// `POST /v1/enroll`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// Token, as `vedette-workspace token new` printed it.
    pub token: String,
    /// Certificate signing request (RFC 2986), PEM, signed by the agent's own key.
    pub csr: String,
    /// Host name, for the list of agents.
    pub hostname: String,
    /// Hash of `/etc/machine-id`; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Version of the agent.
    pub version: String,
}

/// `POST /v1/rekey`, with the certificate of the cloned key. The reply is that to an enrollment; the machine becomes another
/// agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RekeyRequest {
    /// Certificate signing request (RFC 2986), PEM, signed by the new key.
    pub csr: String,
    /// Host name, for the list of agents.
    pub hostname: String,
    /// Machine id hash as in the refused headers; empty where they have none.
    pub machine: String,
    /// Version of the agent.
    pub version: String,
}

/// Reply to an enrollment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollReply {
    /// Organization of the token.
    pub organization: OrganizationId,
    /// Name of the organization, a label.
    pub organization_name: String,
    /// Agent, named by its public key.
    pub agent: AgentId,
    /// Client certificate, PEM.
    pub certificate: String,
    /// Geography of the workspace.
    pub geo: WorkspaceGeo,
    /// Policy revision in force.
    pub policy_revision: u64,
    /// Requested codec; absent, the agent's setting applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Public key for policies and artifact requests: Ed25519, hex. Absent in replies of older releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_key: Option<String>,
    /// The policy in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<SignedPolicy>,
}

/// `POST /v1/renew`, with the certificate to renew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// Certificate signing request (RFC 2986), PEM, signed by the agent's key, which stays the same as does the id.
    pub csr: String,
}

/// Reply to a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewReply {
    /// Client certificate, PEM.
    pub certificate: String,
}
