//! Dumps of links, addresses and routes, and change notifications (rtnetlink(7)).

use crate::CollectorContext;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::event::{PollFd, PollFlags, poll};
use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};
use vedette_wire::body::{Address, Change};

/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE`
/// (include/uapi/linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

pub(super) const READS: &str = "rtnetlink, /etc/resolv.conf";
pub(super) const INTERFACE: &str = "rtnetlink";

/// A socket for notifications; each dump has its own.
pub(super) struct Interfaces {
    events: Socket,
}

impl Interfaces {
    pub(super) fn open() -> io::Result<Self> {
        let mut events = Socket::new(NETLINK_ROUTE)?;
        events.bind(&SocketAddr::new(0, GROUPS))?;
        events.set_non_blocking(true)?;
        Ok(Self { events })
    }

    /// Whether the kernel reports a change within `most`.
    #[expect(unsafe_code, reason = "netlink-sys gives the raw descriptor only")]
    pub(super) fn changed(&self, most: Duration) -> io::Result<bool> {
        // SAFETY: the descriptor is the socket's, which outlives this call.
        let descriptor = unsafe { BorrowedFd::borrow_raw(self.events.as_raw_fd()) };
        let mut watched = [PollFd::new(&descriptor, PollFlags::IN)];
        let timeout = rustix::time::Timespec::try_from(most).map_err(io::Error::other)?;
        match poll(&mut watched, Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(err) => Err(err.into()),
        }
    }

    /// Discards notifications. Their content does not matter, since everything is read again; neither does an overrun
    /// (ENOBUFS).
    pub(super) fn drain(&self) {
        while self.events.recv_from_full().is_ok() {}
    }

    /// All addresses with their interfaces, and all interfaces without one.
    pub(super) fn addresses(&self, context: &CollectorContext) -> io::Result<Vec<Address>> {
        let mut links: BTreeMap<u32, Address> = BTreeMap::new();
        for message in dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
            if let RouteNetlinkMessage::NewLink(link) = message {
                links.insert(link.header.index, interface(&link));
            }
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            for message in dump(RouteNetlinkMessage::GetRoute(request))? {
                if let RouteNetlinkMessage::NewRoute(route) = message {
                    default_gateway(&route, &mut links);
                }
            }
        }
        let mut out = Vec::new();
        let mut bare = links.clone();
        for message in dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
            let RouteNetlinkMessage::NewAddress(message) = message else { continue };
            let Some(link) = links.get(&message.header.index) else { continue };
            bare.remove(&message.header.index);
            out.push(address(&message, link.clone()));
        }
        out.extend(bare.into_values());
        let dns = name_servers(&context.text("/etc/resolv.conf").unwrap_or_default());
        for address in &mut out {
            address.dns.clone_from(&dns);
        }
        Ok(out)
    }
}

/// `nameserver` lines of resolv.conf(5).
fn name_servers(text: &str) -> Vec<String> {
    let server = |line: &str| line.trim().strip_prefix("nameserver")?.split_whitespace().next().map(str::to_owned);
    text.lines().filter_map(server).collect()
}

fn interface(link: &LinkMessage) -> Address {
    let mut out = Address {
        change: Change::Snapshot,
        snapshot: None,
        interface: String::new(),
        interface_index: link.header.index,
        interface_kind: None,
        state: "unknown".to_owned(),
        mac: None,
        mtu: None,
        address: None,
        prefix: None,
        scope: None,
        gateways: Vec::new(),
        dns: Vec::new(),
    };
    let mut kind = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => out.interface.clone_from(name),
            LinkAttribute::Mtu(mtu) => out.mtu = Some(*mtu),
            LinkAttribute::OperState(state) => out.state = format!("{state:?}").to_lowercase(),
            LinkAttribute::Address(mac) if mac.len() == 6 => {
                let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
                out.mac = Some(bytes.join(":"));
            }
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind) } else { None });
            }
            _ => {}
        }
    }
    out.interface_kind = Some(match (kind, link.header.link_layer_type) {
        (Some(InfoKind::Tun | InfoKind::Wireguard | InfoKind::IpIp | InfoKind::SitTun | InfoKind::GreTun), _) => {
            "tunnel".to_owned()
        }
        (Some(kind), _) => format!("{kind:?}").to_lowercase(),
        (None, LinkLayerType::Loopback) => "loopback".to_owned(),
        (None, LinkLayerType::Ether)
            if std::path::Path::new("/sys/class/net").join(&out.interface).join("wireless").exists() =>
        {
            "wireless".to_owned()
        }
        (None, LinkLayerType::Ether) => "ethernet".to_owned(),
        (None, other) => format!("{other:?}").to_lowercase(),
    });
    out
}

fn default_gateway(route: &RouteMessage, links: &mut BTreeMap<u32, Address>) {
    if route.header.destination_prefix_length != 0 {
        return;
    }
    let (mut index, mut gateway) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(IpAddr::from(*ip)),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => gateway = Some(IpAddr::from(*ip)),
            _ => {}
        }
    }
    if let (Some(link), Some(gateway)) = (index.and_then(|index| links.get_mut(&index)), gateway) {
        let gateway = gateway.to_string();
        if !link.gateways.contains(&gateway) {
            link.gateways.push(gateway);
        }
    }
}

fn address(message: &AddressMessage, link: Address) -> Address {
    // On a point-to-point link IFA_ADDRESS is the peer's address and IFA_LOCAL the host's.
    let (mut local, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            _ => {}
        }
    }
    let scope = match message.header.scope {
        AddressScope::Universe => "universe".to_owned(),
        AddressScope::Site => "site".to_owned(),
        AddressScope::Link => "link".to_owned(),
        AddressScope::Host => "host".to_owned(),
        other => u8::from(other).to_string(),
    };
    Address {
        address: local.or(peer).map(|ip| ip.to_string()),
        prefix: Some(message.header.prefix_len),
        scope: Some(scope),
        ..link
    }
}

/// Sends a dump request and reads the whole answer.
fn dump(request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut out = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = message.header.length as usize;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(out),
                NetlinkPayload::Error(err) if err.code.is_some() => return Err(err.to_io()),
                NetlinkPayload::InnerMessage(inner) => out.push(inner),
                _ => {}
            }
            // Messages are aligned to four bytes (netlink(7)).
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if length == 0 {
                return Err(io::Error::other("the kernel sent an empty netlink message"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_those_of_resolv_conf() {
        let text = "# comment\nnameserver 192.0.2.53\nsearch example.net\nnameserver\t2001:db8::53\nnameserver\n";
        assert_eq!(name_servers(text), ["192.0.2.53", "2001:db8::53"]);
    }
}
