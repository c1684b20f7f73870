use super::*;
use crate::runtime::events::{AgentEvents, collecting};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicUsize, Ordering};
use vedette_collectors::{BuildError, CollectError, Collector, CollectorClass, CollectorSettings};
use vedette_transport::{BatchContext, BatchLimits, Lane, LaneConfig, Queue, Quota};
use vedette_wire::{
    AgentId, Compression, OrganizationId,
    body::{Syslog, Unknown},
    geo::WorkspaceGeo,
};

struct Running {
    _dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
    lane: Lane,
    statuses: Arc<CollectorStatuses>,
    stop: StopSignal,
    thread: JoinHandle<()>,
}

/// A lane that delivers nothing.
fn lane(dir: &std::path::Path, quota: Quota) -> Lane {
    let (_, batch_context) = tokio::sync::watch::channel(BatchContext {
        organization: OrganizationId("01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("a UUID")),
        agent: AgentId([1; 16]),
        geo: WorkspaceGeo::Europe,
        agent_version: String::new(),
        host: Default::default(),
        policy_revision: 1,
    });
    Lane::start(LaneConfig {
        queue: Queue::open(dir, vedette_wire::LaneName::Records, quota, 7).expect("opens"),
        limits: BatchLimits {
            bytes_max: 1 << 20,
            records_max: 1000,
            age_max: Duration::from_millis(10),
            compression: Compression::Zstd,
        },
        context: batch_context,
        codec: tokio::sync::watch::channel(None).1,
        intake_bytes_max: 1 << 20,
        in_flight_bytes_max: 1 << 20,
        now: Arc::new(|| 1),
        post: None,
    })
    .expect("starts")
}

/// Constructors of the collectors of tests.
type Build = fn() -> Plan;
static BUILDS: Mutex<Vec<Build>> = Mutex::new(Vec::new());

/// Index into [`BUILDS`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
struct ProbeSettings {
    build: usize,
}

impl CollectorSettings for ProbeSettings {}

enum Probe {}

impl Collector for Probe {
    type Settings = ProbeSettings;
    const ID: &'static str = "probe";
    const CLASS: CollectorClass = CollectorClass::Event;
    const KIND: &'static str = "syslog";
    const SUMMARY: &'static str = "";
    const READS: &'static str = "";

    fn build(settings: &ProbeSettings, _: &CollectorContext) -> Result<Plan, BuildError> {
        Ok(BUILDS.lock()[settings.build]())
    }
}

static SPEC: Spec = Spec::of::<Probe>();
/// The same, with sources that hold what can be read later.
static SPEC_WITH_CURSORS: Spec = Spec { can_skip: true, ..Spec::of::<Probe>() };

/// A runner with this constructor of its collector.
fn start(build: Build) -> Running {
    start_with(&SPEC, build, Quota::bytes(1 << 30), false)
}

fn start_with(spec: &'static Spec, build: Build, quota: Quota, is_replacement: bool) -> Running {
    let settings = {
        let mut builds = BUILDS.lock();
        builds.push(build);
        toml::Table::try_from(ProbeSettings { build: builds.len() - 1 }).expect("is a table")
    };
    let dir = tempfile::tempdir().expect("temp dir");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("builds");
    let lane = {
        let _inside = runtime.enter();
        lane(dir.path(), quota)
    };
    let statuses = Arc::new(CollectorStatuses::default());
    statuses.add("probe", CollectorClass::Event);
    let events = Arc::new(AgentEvents::new(lane.intake().clone(), collecting()));
    let stop = StopSignal::default();
    if is_replacement {
        // A predecessor's record, which is not durable until the lane can commit.
        let mut chunk = Chunk::new(positions_source("predecessor"));
        chunk.push(1, Position(0, 1), &Syslog::default().into());
        lane.intake().put(chunk).expect("open");
    }
    let runner = Runner {
        spec,
        is_replacement,
        settings: (SPEC.parse)(settings).expect("parses"),
        context: CollectorContext::new("/", Arc::new(|| 1)),
        sink: Arc::new(QueueSink::new(&lane, Arc::clone(&statuses), events)),
        queue: Arc::clone(lane.queue()),
        statuses: Arc::clone(&statuses),
        stop: stop.child(),
        deadline: Duration::from_millis(50),
    };
    let thread = runner.start().expect("starts");
    Running { _dir: dir, _runtime: runtime, lane, statuses, stop, thread }
}

impl Running {
    /// Waits for a state and a number of emitted records.
    fn until(&self, state: CollectorState, emitted: u64) -> Option<String> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.statuses.all()[0].1.clone();
            let count = self.lane.status().ledger.0.get("probe").map_or(0, |counters| counters.emitted);
            if status.state == state && count >= emitted {
                return status.stuck.or(status.reason);
            }
            assert!(Instant::now() < deadline, "{status:?} {count}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(self) {
        self.stop.stop();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.thread.is_finished() {
            assert!(Instant::now() < deadline, "it stops at once");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

struct Ticks(&'static AtomicUsize);

impl Poll for Ticks {
    fn poll(&mut self, _: &CollectorContext) -> Result<Vec<Body>, CollectError> {
        match self.0.fetch_add(1, Ordering::SeqCst) {
            0 => Ok(vec![Syslog::default().into()]),
            1 => panic!("a bug in a collector"),
            _ => Ok(vec![Unknown { raw: Vec::new() }.into()]),
        }
    }
}

#[test]
fn a_panic_is_shown_and_the_collector_is_started_again() {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let running = start(|| Plan::Poll(Duration::from_millis(5), Box::new(Ticks(&COUNT))));
    let why = running.until(CollectorState::Failing, 1).expect("says why");
    assert!(why.contains("a bug in a collector"), "{why}");
    running.until(CollectorState::Running, 3);
    let agent = || running.lane.status().ledger.0.get("agent").map_or(0, |counters| counters.emitted);
    let deadline = Instant::now() + Duration::from_secs(20);
    while agent() < 2 {
        assert!(Instant::now() < deadline, "error and recovery are records");
        std::thread::sleep(Duration::from_millis(5));
    }
    running.stop();
}

#[test]
fn a_source_that_is_absent_says_why_and_a_stop_is_at_once() {
    let running = start(|| Plan::Absent("no such thing here".to_owned()));
    assert_eq!(running.until(CollectorState::Absent, 0).as_deref(), Some("no such thing here"));
    running.stop();
}

struct Waits;

impl Watch for Waits {
    fn watch(&mut self, _: &CollectorContext, outlet: &mut Outlet) -> Result<(), CollectError> {
        while outlet.wait(Duration::from_secs(60)) != Wake::Stop {}
        Ok(())
    }
}

#[test]
fn a_watch_is_told_to_stop() {
    let running = start(|| Plan::Watch(Box::new(Waits)));
    running.until(CollectorState::Running, 0);
    running.stop();
}

/// While nothing can become durable, say on a full disk, a listener listens, and only what continues at cursors of a predecessor waits.
#[test]
fn a_collector_starts_while_the_queue_cannot_commit_unless_it_replaces_one_with_cursors() {
    let build: Build = || Plan::Watch(Box::new(Waits));
    let full = || Quota { volume_share_max: 0.0, ..Quota::bytes(1 << 30) };
    for (spec, is_replacement) in [(&SPEC, false), (&SPEC, true), (&SPEC_WITH_CURSORS, false)] {
        let running = start_with(spec, build, full(), is_replacement);
        running.until(CollectorState::Running, 0);
        running.stop();
    }
    let running = start_with(&SPEC_WITH_CURSORS, build, full(), true);
    let why = running.until(CollectorState::Waiting, 0);
    assert_eq!(why.as_deref(), Some("what it emitted before is not durable yet"));
    // Longer than a batch's age.
    std::thread::sleep(Duration::from_millis(300));
    running.until(CollectorState::Waiting, 0);
    running.stop();
    // With room, it does not wait for long.
    let running = start_with(&SPEC_WITH_CURSORS, build, Quota::bytes(1 << 30), true);
    running.until(CollectorState::Running, 0);
    running.stop();
}

/// Lacks a permission, hangs, and continues.
struct LacksPermission(std::sync::mpsc::Receiver<()>);

impl Watch for LacksPermission {
    fn watch(&mut self, _: &CollectorContext, outlet: &mut Outlet) -> Result<(), CollectError> {
        outlet.report_problem("probe", &"a right is missing");
        self.0.recv().expect("the test lets it go");
        while outlet.wait(Duration::from_secs(60)) != Wake::Stop {}
        Ok(())
    }
}

#[test]
fn a_watch_that_was_stuck_still_says_what_it_cannot_do() {
    static GO: Mutex<Option<std::sync::mpsc::SyncSender<()>>> = Mutex::new(None);
    let running = start(|| {
        let (go, wait) = std::sync::mpsc::sync_channel(1);
        *GO.lock() = Some(go);
        Plan::Watch(Box::new(LacksPermission(wait)))
    });
    let why = running.until(CollectorState::Stuck, 0).expect("says why");
    assert!(why.contains("no progress"), "{why}");
    GO.lock().take().expect("is set").send(()).expect("it waits");
    assert_eq!(running.until(CollectorState::Running, 0).as_deref(), Some("a right is missing"));
    assert!(running.statuses.all()[0].1.is_problem);
    running.stop();
}

/// Hangs once, and then lacks a permission.
struct Hangs(std::sync::mpsc::Receiver<()>, bool);

impl Poll for Hangs {
    fn poll(&mut self, _: &CollectorContext) -> Result<Vec<Body>, CollectError> {
        if !std::mem::replace(&mut self.1, true) {
            self.0.recv().expect("the test lets it go");
        }
        Ok(Vec::new())
    }

    fn missing_permission(&self) -> Option<String> {
        Some("a right is missing".to_owned())
    }
}

#[test]
fn a_poll_that_does_not_come_back_is_shown_as_stuck_and_a_missing_right_is_told_once() {
    static GO: Mutex<Option<std::sync::mpsc::SyncSender<()>>> = Mutex::new(None);
    let running = start(|| {
        let (go, wait) = std::sync::mpsc::sync_channel(1);
        *GO.lock() = Some(go);
        Plan::Poll(Duration::from_millis(5), Box::new(Hangs(wait, false)))
    });
    let why = running.until(CollectorState::Stuck, 0).expect("says why");
    assert!(why.contains("has not returned"), "{why}");
    GO.lock().take().expect("is set").send(()).expect("it waits");
    assert_eq!(running.until(CollectorState::Running, 0).as_deref(), Some("a right is missing"));
    std::thread::sleep(Duration::from_millis(200));
    let emitted = running.lane.status().ledger.0.get("agent").map_or(0, |counters| counters.emitted);
    assert_eq!(emitted, 1, "once, not at each look");
    running.stop();
}

#[test]
fn polls_are_spread_over_a_tenth_to_either_side() {
    let pauses: Vec<f64> = (0..1000).map(|_| with_jitter(Duration::from_secs(100)).as_secs_f64()).collect();
    assert!(pauses.iter().all(|pause| (90.0..=110.0).contains(pause)));
    assert!(pauses.iter().any(|pause| *pause < 92.0) && pauses.iter().any(|pause| *pause > 108.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_push_source_brings_beyond_its_share_is_dropped_and_counted() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lane = lane(dir.path(), Quota::bytes(16 << 20));
    let events = Arc::new(AgentEvents::new(lane.intake().clone(), collecting()));
    let sink = QueueSink::new(&lane, Arc::new(CollectorStatuses::default()), events);
    let offer = |id: &str| {
        let source = Arc::new(vedette_wire::Source { collector: "probe", id: id.to_owned(), name: None });
        let mut chunk = Chunk::new(Arc::clone(&source));
        let raw = (0..200_000).map(|_| fastrand::u8(..)).collect();
        chunk.push(1, Position(0, 1), &Syslog { raw, ..Syslog::default() }.into());
        sink.offer(chunk, CollectorClass::Event).expect("open");
        tokio::task::block_in_place(|| sink.wait_durable()).expect("becomes durable");
        source
    };
    let mut offered = 0;
    while sink.has_room(&offer("flood"), false) {
        offered += 1;
        assert!(offered < 100, "it never ends");
    }
    let dropped = || lane.status().ledger.0["probe"].dropped.get(&vedette_wire::Reason::QueueFull).copied();
    assert_eq!(dropped(), None);
    offer("flood");
    assert_eq!(dropped(), Some(1));
    offer("quiet");
    assert_eq!(dropped(), Some(1));
    lane.stop(Duration::ZERO).await;
}
