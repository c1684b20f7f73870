//! Adapters and their addresses (`GetAdaptersAddresses` of iphlpapi).

use crate::CollectorContext;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ptr,
    time::{Duration, Instant},
};
use vedette_wire::body::{Address, Change};
use windows_sys::Win32::{
    Foundation::{ERROR_BUFFER_OVERFLOW, ERROR_NO_DATA, NO_ERROR},
    NetworkManagement::{
        IpHelper::{
            GAA_FLAG_INCLUDE_GATEWAYS, GAA_FLAG_SKIP_ANYCAST, GAA_FLAG_SKIP_MULTICAST, GetAdaptersAddresses,
            IP_ADAPTER_ADDRESSES_LH,
        },
        Ndis::{IfOperStatusDown, IfOperStatusUp},
    },
    Networking::WinSock::{AF_INET, AF_INET6, AF_UNSPEC, SOCKADDR_IN, SOCKADDR_IN6, SOCKET_ADDRESS},
};

pub(super) const READS: &str = "GetAdaptersAddresses, every 5 s";
pub(super) const INTERFACE: &str = "GetAdaptersAddresses";

/// Poll interval for changes.
const CHANGE_POLL: Duration = Duration::from_secs(5);
/// Size of the first buffer, as its documentation recommends.
const FIRST_BYTES: u32 = 15 << 10;
/// Maximum size of the answer.
const BYTES_MAX: u32 = 16 << 20;

/// The adapters of this machine.
pub(super) struct Interfaces {
    opened: Instant,
}

impl Interfaces {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { opened: Instant::now() })
    }

    /// Waits for `most`; whether adapters are due to be read again.
    pub(super) fn changed(&self, most: Duration) -> io::Result<bool> {
        let before = self.opened.elapsed().as_secs() / CHANGE_POLL.as_secs();
        std::thread::sleep(most);
        Ok(self.opened.elapsed().as_secs() / CHANGE_POLL.as_secs() != before)
    }

    /// Discards notifications; there are none.
    pub(super) fn drain(&self) {}

    /// All addresses with their interfaces, and all interfaces without one.
    pub(super) fn addresses(&self, _context: &CollectorContext) -> io::Result<Vec<Address>> {
        let (buffer, mut out) = (adapters()?, Vec::new());
        if buffer.is_empty() {
            return Ok(out);
        }
        // SAFETY: the buffer holds the list that the call wrote, is aligned for it, and outlives this loop.
        #[expect(unsafe_code, reason = "the call answers with a linked list in a buffer")]
        unsafe {
            let mut next = buffer.as_ptr().cast::<IP_ADAPTER_ADDRESSES_LH>();
            while let Some(adapter) = next.as_ref() {
                append(adapter, &mut out);
                next = adapter.Next;
            }
        }
        Ok(out)
    }
}

/// The answer, in words of eight bytes, which align it; empty without adapters.
fn adapters() -> io::Result<Vec<u64>> {
    let flags = GAA_FLAG_SKIP_ANYCAST | GAA_FLAG_SKIP_MULTICAST | GAA_FLAG_INCLUDE_GATEWAYS;
    let mut bytes = FIRST_BYTES;
    loop {
        let mut buffer = vec![0_u64; (bytes as usize).div_ceil(8)];
        let mut size = bytes;
        // SAFETY: the buffer has the stated size.
        #[expect(unsafe_code, reason = "there is no safe call for it")]
        let status = unsafe {
            GetAdaptersAddresses(AF_UNSPEC.into(), flags, ptr::null(), buffer.as_mut_ptr().cast(), &raw mut size)
        };
        match status {
            NO_ERROR => return Ok(buffer),
            ERROR_NO_DATA => return Ok(Vec::new()),
            // Adapters may appear between two calls.
            ERROR_BUFFER_OVERFLOW if bytes < BYTES_MAX => bytes = size.max(bytes + FIRST_BYTES).min(BYTES_MAX),
            code => return Err(io::Error::from_raw_os_error(code.cast_signed())),
        }
    }
}

/// Appends the addresses of an adapter, or the adapter without one.
///
/// # Safety
/// The adapter is one of `GetAdaptersAddresses`, and its buffer is alive.
#[expect(unsafe_code, reason = "lists of pointers")]
unsafe fn append(adapter: &IP_ADAPTER_ADDRESSES_LH, out: &mut Vec<Address>) {
    // SAFETY: the caller's.
    unsafe {
        let index = adapter.Anonymous1.Anonymous.IfIndex;
        let mut link = Address {
            change: Change::Snapshot,
            snapshot: None,
            interface: wide(adapter.FriendlyName),
            // An adapter without IPv4 has an index of IPv6 alone.
            interface_index: if index == 0 { adapter.Ipv6IfIndex } else { index },
            interface_kind: Some(kind(adapter.IfType)),
            state: state(adapter.OperStatus).to_owned(),
            mac: mac(&adapter.PhysicalAddress[..(adapter.PhysicalAddressLength as usize).min(8)]),
            mtu: (adapter.Mtu != u32::MAX).then_some(adapter.Mtu),
            address: None,
            prefix: None,
            scope: None,
            gateways: Vec::new(),
            dns: Vec::new(),
        };
        let mut next = adapter.FirstGatewayAddress;
        while let Some(gateway) = next.as_ref() {
            link.gateways.extend(ip(&gateway.Address).map(|ip| ip.to_string()));
            next = gateway.Next;
        }
        let mut next = adapter.FirstDnsServerAddress;
        while let Some(server) = next.as_ref() {
            link.dns.extend(ip(&server.Address).map(|ip| ip.to_string()));
            next = server.Next;
        }
        let before = out.len();
        let mut next = adapter.FirstUnicastAddress;
        while let Some(unicast) = next.as_ref() {
            if let Some(ip) = ip(&unicast.Address) {
                let (address, scope) = (Some(ip.to_string()), Some(scope(ip).to_owned()));
                out.push(Address { address, scope, prefix: Some(unicast.OnLinkPrefixLength), ..link.clone() });
            }
            next = unicast.Next;
        }
        if out.len() == before {
            out.push(link);
        }
    }
}

/// The address of a socket address; absent for another family.
///
/// # Safety
/// `lpSockaddr` points to as many bytes as its family has.
#[expect(unsafe_code, reason = "the family says what the pointer points to")]
unsafe fn ip(address: &SOCKET_ADDRESS) -> Option<IpAddr> {
    // SAFETY: the caller's.
    unsafe {
        match address.lpSockaddr.as_ref()?.sa_family {
            AF_INET => {
                let of = &*address.lpSockaddr.cast::<SOCKADDR_IN>();
                // The bytes are in network order already.
                Some(Ipv4Addr::from(of.sin_addr.S_un.S_addr.to_ne_bytes()).into())
            }
            AF_INET6 => {
                let of = &*address.lpSockaddr.cast::<SOCKADDR_IN6>();
                Some(Ipv6Addr::from(of.sin6_addr.u.Byte).into())
            }
            _ => None,
        }
    }
}

/// A text that ends with NUL.
///
/// # Safety
/// The pointer is null, or points to a text that ends with NUL.
#[expect(unsafe_code, reason = "only the NUL says where the text ends")]
unsafe fn wide(text: *const u16) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's.
    unsafe {
        let length = (0..).take_while(|at| *text.add(*at) != 0).count();
        String::from_utf16_lossy(std::slice::from_raw_parts(text, length))
    }
}

fn mac(bytes: &[u8]) -> Option<String> {
    let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    (bytes.len() == 6).then(|| bytes.join(":"))
}

/// Kind of an interface by its IANA ifType, named as on Linux.
fn kind(if_type: u32) -> String {
    match if_type {
        6 => "ethernet".to_owned(),
        24 => "loopback".to_owned(),
        71 => "wireless".to_owned(),
        23 | 131 => "tunnel".to_owned(),
        other => format!("type {other}"),
    }
}

fn state(status: i32) -> &'static str {
    match status {
        status if status == IfOperStatusUp => "up",
        status if status == IfOperStatusDown => "down",
        _ => "unknown",
    }
}

/// Scope of an address, named as on Linux.
fn scope(ip: IpAddr) -> &'static str {
    match ip {
        ip if ip.is_loopback() => "host",
        IpAddr::V4(ip) if ip.is_link_local() => "link",
        IpAddr::V6(ip) if ip.is_unicast_link_local() => "link",
        _ => "universe",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_the_addresses_that_its_sockets_use() {
        let context = CollectorContext::new("C:\\", std::sync::Arc::new(|| 1));
        let all = Interfaces::open().and_then(|interfaces| interfaces.addresses(&context)).expect("reads");
        assert!(all.iter().all(|address| !address.interface.is_empty() && address.interface_index > 0), "{all:?}");
        let loopback = all.iter().find(|address| address.address.as_deref() == Some("127.0.0.1")).expect("loopback");
        assert_eq!((loopback.prefix, loopback.scope.as_deref()), (Some(8), Some("host")));
    }

    #[test]
    fn names_are_those_of_linux() {
        assert_eq!((kind(6), kind(24), kind(42)), ("ethernet".to_owned(), "loopback".to_owned(), "type 42".to_owned()));
        assert_eq!(scope("fe80::1".parse().expect("an address")), "link");
        assert_eq!(scope("2001:db8::1".parse().expect("an address")), "universe");
        assert_eq!(mac(&[0, 1, 2, 0xab, 0xcd, 0xef]).as_deref(), Some("00:01:02:ab:cd:ef"));
        assert_eq!(mac(&[]), None);
    }
}
