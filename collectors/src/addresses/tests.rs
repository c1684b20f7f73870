#![expect(clippy::print_stdout, reason = "a skipped test says why")]

use super::*;
use std::{collections::BTreeSet, process::Command};

fn this_host() -> CollectorContext {
    CollectorContext::new("/", Arc::new(|| 1))
}

#[test]
fn this_machine_agrees_with_ip_addr() {
    let Ok(output) = Command::new("ip").args(["-j", "addr"]).output() else {
        println!("skipped: there is no `ip` to compare with (apt-get install iproute2)");
        return;
    };
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).expect("ip -j prints JSON");
    let mut expected = BTreeSet::new();
    for link in links.as_array().expect("a list") {
        let name = link["ifname"].as_str().expect("a name").to_owned();
        let addresses = link["addr_info"].as_array().cloned().unwrap_or_default();
        if addresses.is_empty() {
            expected.insert((name.clone(), None, None));
        }
        for address in addresses {
            let prefix = address["prefixlen"].as_u64().map(|prefix| prefix as u8);
            expected.insert((name.clone(), address["local"].as_str().map(str::to_owned), prefix));
        }
    }
    let interfaces = Interfaces::open().expect("opens");
    let found: BTreeSet<_> = by_key(interfaces.addresses(&this_host()).expect("reads"))
        .into_values()
        .map(|address| (address.interface, address.address, address.prefix))
        .collect();
    assert_eq!(found, expected);
    assert!(found.iter().any(|(_, address, _)| address.as_deref() == Some("127.0.0.1")), "{found:?}");
}

fn address(index: u32, ip: &str, state: &str) -> (Key, Address) {
    let kernel = Address {
        change: Change::Snapshot,
        snapshot: None,
        interface: format!("eth{index}"),
        interface_index: index,
        interface_kind: None,
        state: state.to_owned(),
        mac: None,
        mtu: None,
        address: Some(ip.to_owned()),
        prefix: Some(24),
        scope: None,
        gateways: Vec::new(),
        dns: Vec::new(),
    };
    ((index, Some(ip.to_owned())), kernel)
}

#[test]
fn only_what_changed_is_told() {
    let before = BTreeMap::from([address(1, "192.0.2.1", "up"), address(2, "192.0.2.2", "up")]);
    let after = BTreeMap::from([address(2, "192.0.2.2", "down"), address(3, "192.0.2.3", "up")]);
    let reported: Vec<_> = changes(&before, &after).into_iter().map(|a| (a.change, a.interface_index)).collect();
    assert_eq!(reported, [(Change::End, 1), (Change::Change, 2), (Change::Start, 3)]);
    assert!(changes(&after, &after).is_empty());
}
