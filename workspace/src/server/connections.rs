//! Limits of connections: per address, per agent, and in total.
//!
//! Until a peer presents a certificate of this workspace, its connections count for its address. At the limit of an address its
//! oldest connections are closed for a new one: idle connections are lost, while enrolling or presenting a certificate takes
//! only a moment. So a thousand agents behind one address can all return at once. Known agents count by certificate, and have
//! most of the slots. When all slots are in use, the largest holder loses one: an address or IPv6 network of 64 bits, or an
//! agent of the organization that has most.

use crate::store::AgentKey;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Maximum number of connections of an address without a certificate.
const OF_ADDRESS_MAX: usize = 64;
/// Maximum number of connections of an agent: it needs two.
const OF_AGENT_MAX: usize = 128;
/// Minimum age of a connection before it is closed for another.
const GRACE: Duration = Duration::from_secs(3);
/// Maximum wait for the slot of a connection that was told to close.
const EVICTION_WAIT: Duration = Duration::from_millis(100);
/// Descriptors reserved for the stores.
const RESERVED: u64 = 256;
/// Maximum number of connections, however many descriptors there are.
const CONNECTIONS_MAX: usize = 10_000;
/// Connections without a certificate get this fraction of the slots.
const UNKNOWN_DIVISOR: usize = 4;

/// Raises the limit of open files to the hard limit (getrlimit(2)); returns it.
pub(crate) fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(err) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(error = %err, "the limit of open files cannot be raised");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Slots for connections.
pub(super) struct Slots {
    unknown: Arc<Semaphore>,
    known: Arc<Semaphore>,
    addresses: Holders<IpAddr>,
    agents: Holders<AgentKey>,
}

/// Slot of a connection, freed when dropped.
pub(super) struct Slot {
    _permit: OwnedSemaphorePermit,
    held: Box<dyn Send>,
    /// Notified when the connection must close.
    pub(super) give_way: Arc<Notify>,
}

impl Slots {
    /// Creates slots for a limit of open files.
    pub(super) fn new(file_limit: u64) -> Self {
        let all = usize::try_from(file_limit.saturating_sub(RESERVED)).unwrap_or(CONNECTIONS_MAX);
        let all = all.clamp(64, CONNECTIONS_MAX);
        Self {
            unknown: Arc::new(Semaphore::new(all / UNKNOWN_DIVISOR)),
            known: Arc::new(Semaphore::new(all - all / UNKNOWN_DIVISOR)),
            addresses: Holders::default(),
            agents: Holders::default(),
        }
    }

    /// A slot for a new connection; absent if there is none.
    pub(super) async fn unknown(&self, address: IpAddr) -> Option<Slot> {
        let give_way = Arc::new(Notify::new());
        if self.unknown.available_permits() == 0 {
            self.addresses.evict(|network| *network);
        }
        let held = self.addresses.hold(network(address), OF_ADDRESS_MAX, &give_way);
        let permit = tokio::time::timeout(EVICTION_WAIT, Arc::clone(&self.unknown).acquire_owned()).await.ok()?.ok()?;
        Some(Slot { _permit: permit, held, give_way })
    }

    /// A slot for a connection of a known agent.
    pub(super) async fn known(&self, peer: AgentKey) -> Option<Slot> {
        let give_way = Arc::new(Notify::new());
        if self.known.available_permits() == 0 {
            self.agents.evict(|peer| peer.organization);
        }
        let held = self.agents.hold(peer, OF_AGENT_MAX, &give_way);
        let permit = tokio::time::timeout(EVICTION_WAIT, Arc::clone(&self.known).acquire_owned()).await.ok()?.ok()?;
        Some(Slot { _permit: permit, held, give_way })
    }
}

/// The network of an address: an IPv6 peer has its whole network.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none() => {
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)))
        }
        other => other.to_canonical(),
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("held", &std::ptr::from_ref(&*self.held)).finish_non_exhaustive()
    }
}

type Held<K> = Arc<Mutex<HashMap<K, VecDeque<(Arc<Notify>, Instant)>>>>;

/// Holders and their number of connections.
struct Holders<K>(Held<K>);

impl<K> Default for Holders<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

struct Hold<K: Eq + Hash> {
    holders: Held<K>,
    key: K,
    mine: Arc<Notify>,
}

impl<K: Eq + Hash + Copy + Send + 'static> Holders<K> {
    /// Adds a connection; notifies the oldest beyond `most` to close.
    fn hold(&self, key: K, most: usize, mine: &Arc<Notify>) -> Box<dyn Send> {
        let mut all = self.0.lock();
        let held = all.entry(key).or_default();
        held.push_back((Arc::clone(mine), Instant::now()));
        while held.len() > most && held.front().is_some_and(|(_, since)| since.elapsed() > GRACE) {
            if let Some((oldest, _)) = held.pop_front() {
                oldest.notify_one();
            }
        }
        Box::new(Hold { holders: Arc::clone(&self.0), key, mine: Arc::clone(mine) })
    }

    /// Notifies the oldest connection of the largest holder in the largest group to close.
    fn evict<G: Eq + Hash + Copy>(&self, group: impl Fn(&K) -> G) {
        let mut all = self.0.lock();
        let mut groups: HashMap<G, usize> = HashMap::new();
        for (key, held) in all.iter() {
            *groups.entry(group(key)).or_default() += held.len();
        }
        let Some(most) = groups.into_iter().max_by_key(|(_, count)| *count).map(|(group, _)| group) else { return };
        let of_group = all.iter_mut().filter(|(key, _)| group(key) == most);
        if let Some((_, held)) = of_group.max_by_key(|(_, held)| held.len())
            && let Some((oldest, _)) = held.pop_front()
        {
            oldest.notify_one();
        }
    }
}

impl<K: Eq + Hash> Drop for Hold<K> {
    fn drop(&mut self) {
        let mut all = self.holders.lock();
        if let Some(held) = all.get_mut(&self.key) {
            held.retain(|(other, _)| !Arc::ptr_eq(other, &self.mine));
            if held.is_empty() {
                all.remove(&self.key);
            }
        }
    }
}

/// When a peer last sent data.
#[derive(Clone)]
pub(super) struct Activity {
    began: Instant,
    last: Arc<AtomicU64>,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), last: Arc::default() }
    }

    fn note(&self) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(since, Ordering::Relaxed);
    }

    /// Ends when the peer has sent nothing for `idle`.
    pub(super) async fn silence(&self, idle: Duration) {
        loop {
            let until = self.began + Duration::from_millis(self.last.load(Ordering::Relaxed)) + idle;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// A stream that records activity.
pub(super) struct Watched<S> {
    pub(super) stream: S,
    pub(super) activity: Activity,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if into.filled().len() > before {
            self.activity.note();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    #[tokio::test(start_paused = true)]
    async fn the_old_ones_of_an_address_give_way_and_no_other_s() {
        let slots = Slots::new(100_000);
        let other = slots.unknown(address(2)).await.expect("a slot");
        let mut held = Vec::new();
        for _ in 0..2 * OF_ADDRESS_MAX {
            held.push(slots.unknown(address(1)).await.expect("as many come at once as will"));
        }
        let is_told = |slot: &Slot| {
            let notified = Arc::clone(&slot.give_way);
            async move { tokio::time::timeout(Duration::from_millis(1), notified.notified()).await.is_ok() }
        };
        assert!(!is_told(&held[0]).await);
        tokio::time::sleep(GRACE).await;
        held.push(slots.unknown(address(1)).await.expect("a slot"));
        assert!(is_told(&held[0]).await && is_told(&held[OF_ADDRESS_MAX]).await);
        assert!(!is_told(&held[OF_ADDRESS_MAX + 1]).await && !is_told(&other).await);
    }

    /// Drops a slot when it is notified.
    fn gives_way(slot: Slot) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            // Captures the whole slot, not only the field.
            let slot = slot;
            slot.give_way.notified().await;
        })
    }

    fn peer(organization: u8, agent: u8) -> AgentKey {
        let organization = vedette_wire::OrganizationId::from_uuid(uuid::Uuid::from_bytes([organization; 16]));
        AgentKey { organization, agent: vedette_wire::AgentId([agent; 16]) }
    }

    #[tokio::test(start_paused = true)]
    async fn one_network_or_organization_cannot_take_all_places() {
        let slots = Slots::new(RESERVED + 400);
        let mine = |last: u64| IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(last)));
        let (other, mut notified) = (gives_way(slots.unknown(address(2)).await.expect("a slot")), Vec::new());
        for last in 0..150 {
            notified.push(gives_way(slots.unknown(mine(last)).await.expect("a slot, in turn")));
        }
        assert!(slots.unknown(address(3)).await.is_some(), "though all were taken a moment ago");
        let given_up = notified.iter().filter(|one| one.is_finished()).count();
        assert!(given_up > 50 && !other.is_finished(), "who holds one keeps it: {given_up}");

        let first = gives_way(slots.known(peer(1, 1)).await.expect("a slot"));
        let mut held = Vec::new();
        for agent in 0..20 {
            for _ in 0..20 {
                held.push(gives_way(slots.known(peer(2, agent)).await.expect("a slot, in turn")));
            }
        }
        assert!(slots.known(peer(1, 2)).await.is_some() && !first.is_finished());
        assert!(held.iter().filter(|one| one.is_finished()).count() > 90);
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_peers_cannot_take_the_places_of_agents() {
        let slots = Slots::new(RESERVED + 400);
        let mut unknown = Vec::new();
        for number in 0..200 {
            unknown.extend(slots.unknown(address(number)).await);
        }
        assert_eq!(unknown.len(), 100);
        assert!(slots.known(peer(1, 1)).await.is_some());
        drop(unknown.pop());
        assert!(slots.unknown(address(1)).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_counted_from_what_came_last() {
        let (activity, began) = (Activity::new(), Instant::now());
        tokio::time::sleep(Duration::from_secs(7)).await;
        activity.note();
        activity.silence(Duration::from_secs(10)).await;
        assert!(began.elapsed() >= Duration::from_secs(17));
    }
}
