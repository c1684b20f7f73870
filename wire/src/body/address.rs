//! A network address, or an interface without one: OCSF 5040 Live Evidence Info, query type 8.

use super::{Change, Kind, Observation, RowContext, Snapshot, snapshot};
use crate::{
    column::{Column, Value, integer, list, text},
    ocsf::{Event, OcsfClass, object},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// One address with its interface, as rtnetlink(7) shows them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Address {
    /// Why the record was made.
    pub change: Change,
    /// The snapshot that the record belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Interface name.
    pub interface: String,
    /// Interface index.
    pub interface_index: u32,
    /// Kind of the interface as the kernel names it: `loopback`, `ethernet`, `wireless`, `tunnel`, `bridge`, `bond`, `vlan`,
    /// `veth`, ….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_kind: Option<String>,
    /// Operational state (RFC 2863): `up`, `down`, `unknown`, ….
    pub state: String,
    /// Hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Maximum transmission unit in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// IPv4 or IPv6 address; absent for an interface without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Prefix length in bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<u8>,
    /// `universe`, `site`, `link`, `host` or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Default gateways of this interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<String>,
    /// Name servers of the host (resolv.conf(5)).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
}

const COLUMNS: &[Column] = &[
    snapshot::CHANGE,
    snapshot::SNAPSHOT,
    snapshot::SNAPSHOT_COUNT,
    text("interface", "interface name"),
    integer("interface_index", "interface index"),
    text("interface_kind", "kind of interface"),
    text("state", "operational state; `removed` in an end record"),
    text("mac", "hardware address"),
    integer("mtu", "maximum transmission unit in bytes"),
    text("address", "IPv4 or IPv6 address; null for an interface without any"),
    integer("prefix", "prefix length in bits"),
    text("scope", "scope of the address"),
    text("gateways", "default gateways over this interface, JSON list"),
    text("dns", "name servers of the host, JSON list"),
];

impl Address {
    fn state_name(&self) -> &str {
        if self.change == Change::End { "removed" } else { &self.state }
    }
}

impl Observation for Address {
    const KIND: Kind = Kind {
        name: "address",
        view: "addresses",
        help: "network interfaces and their addresses, at start, every hour and on change",
        classes: &[OcsfClass::LiveEvidenceInfo],
        columns: COLUMNS,
    };

    fn activity(&self) -> u8 {
        1
    }

    fn render(&self, event: &mut Event) {
        let type_id = match self.interface_kind.as_deref() {
            Some("ethernet") => 1,
            Some("wireless") => 2,
            Some("tunnel") => 4,
            None => 0,
            Some(_) => 99,
        };
        let interface = object([
            ("name", json!(self.interface)),
            ("uid", json!(self.interface_index.to_string())),
            ("ip", json!(self.address)),
            ("mac", json!(self.mac)),
            ("subnet_prefix", json!(self.prefix)),
            ("type_id", json!(type_id)),
            ("type", json!(self.interface_kind)),
        ]);
        event.set("query_result_id", 1);
        event.set("query_evidence", json!({"query_type_id": 8, "network_interfaces": [interface]}));
        for (name, value) in [
            ("change", json!(self.change)),
            ("snapshot", json!(self.snapshot)),
            ("state", json!(self.state_name())),
            ("mtu", json!(self.mtu)),
            ("scope", json!(self.scope)),
            ("gateways", json!(self.gateways)),
            ("dns", json!(self.dns)),
        ] {
            event.set_in("unmapped", name, value);
        }
    }

    fn row<'a>(&'a self, _: &RowContext<'a>) -> Vec<Value<'a>> {
        vec![
            self.change.name().into(),
            snapshot::id(self.snapshot.as_ref()),
            snapshot::count(self.snapshot.as_ref()),
            self.interface.as_str().into(),
            self.interface_index.into(),
            self.interface_kind.as_ref().into(),
            self.state_name().into(),
            self.mac.as_ref().into(),
            self.mtu.into(),
            self.address.as_ref().into(),
            self.prefix.into(),
            self.scope.as_ref().into(),
            list(&self.gateways),
            list(&self.dns),
        ]
    }
}
