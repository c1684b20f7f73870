//! `addresses`: all interfaces with their addresses, at start, every hour, and when the operating system reports a change.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
use linux as platform;
#[cfg(windows)]
use windows as platform;

use crate::{
    BuildError, CollectError, CollectorClass, CollectorContext, Outlet,
    settings::Interval,
    spec::{Collector, Plan, Platform, Spec, Watch, collector_settings},
};
use platform::Interfaces;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use vedette_wire::{
    Body, Chunk, Position, Source,
    body::{Address, Change, Snapshot},
};

/// Maximum wait for changes between checks for a stop.
const LISTEN: Duration = Duration::from_secs(1);
/// Time in which changes of one burst are gathered.
const GATHER: Duration = Duration::from_millis(100);

/// Settings of `[collectors.addresses]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether the collector runs.
    enabled: bool,
    /// Interval of full snapshots; changes are sent at once.
    every: Interval,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, every: Interval(Duration::from_secs(3600)) }
    }
}

collector_settings!(Settings, every);

/// The collector.
enum Definition {}

impl Collector for Definition {
    type Settings = Settings;
    const ID: &'static str = "addresses";
    const CLASS: CollectorClass = CollectorClass::Inventory;
    const KIND: &'static str = "address";
    const SUMMARY: &'static str = "network interfaces and their addresses; changes at once, on Windows within 5 s";
    const READS: &'static str = platform::READS;
    const PLATFORMS: &'static [Platform] = &[Platform::Linux, Platform::Windows];

    fn build(settings: &Settings, _cx: &CollectorContext) -> Result<Plan, BuildError> {
        let every = settings.every.0;
        Ok(Plan::Watch(Box::new(Addresses { every })))
    }
}

pub(crate) const SPEC: Spec = Spec::of::<Definition>();

struct Addresses {
    every: Duration,
}

/// Interface index and address.
type Key = (u32, Option<String>);

impl Watch for Addresses {
    fn watch(&mut self, context: &CollectorContext, outlet: &mut Outlet) -> Result<(), CollectError> {
        let failed = |err| CollectError::read(platform::INTERFACE, err);
        let interfaces = Interfaces::open().map_err(failed)?;
        let source = Arc::new(Source { collector: SPEC.id, id: format!("run:{:x}", context.now()), name: None });
        let mut known: BTreeMap<Key, Address> = BTreeMap::new();
        let (mut position, mut snapshot_at) = (0, None::<Instant>);
        loop {
            let now = by_key(interfaces.addresses(context).map_err(failed)?);
            let full = snapshot_at.is_none_or(|at| at.elapsed() >= self.every);
            let changes = if full { snapshot(&now, context.now()) } else { changes(&known, &now) };
            if full {
                snapshot_at = Some(Instant::now());
            }
            known = now;
            let mut chunk = Chunk::new(Arc::clone(&source));
            for address in changes {
                chunk.push(context.now(), Position(position, position + 1), &Body::from(address));
                position += 1;
            }
            if !chunk.entries.is_empty() {
                outlet.emit(chunk)?;
            }
            if context.once.is_some() {
                return Ok(());
            }
            loop {
                if outlet.is_stopped() {
                    return Ok(());
                }
                if interfaces.changed(LISTEN).map_err(failed)? {
                    std::thread::sleep(GATHER);
                    interfaces.drain();
                    break;
                }
                if snapshot_at.is_some_and(|at| at.elapsed() >= self.every) {
                    break;
                }
            }
        }
    }
}

fn by_key(addresses: Vec<Address>) -> BTreeMap<Key, Address> {
    let key = |address: &Address| (address.interface_index, address.address.clone());
    addresses.into_iter().map(|address| (key(&address), address)).collect()
}

fn snapshot(now: &BTreeMap<Key, Address>, time: i64) -> Vec<Address> {
    let snapshot = Snapshot { id: format!("addresses/{time}"), count: now.len() as u32 };
    now.values().map(|address| Address { snapshot: Some(snapshot.clone()), ..address.clone() }).collect()
}

fn changes(known: &BTreeMap<Key, Address>, now: &BTreeMap<Key, Address>) -> Vec<Address> {
    let ended = known.iter().filter(|(key, _)| !now.contains_key(*key));
    let ended = ended.map(|(_, address)| Address { change: Change::End, ..address.clone() });
    let rest = now.iter().filter_map(|(key, address)| {
        let change = match known.get(key) {
            None => Change::Start,
            Some(before) if before != address => Change::Change,
            Some(_) => return None,
        };
        Some(Address { change, ..address.clone() })
    });
    ended.chain(rest).collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
