#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

use super::*;
use datafusion::arrow::array::{AsArray, RecordBatch};
use std::{path::PathBuf, time::Duration};
use vedette_wire::{
    AgentId, Body, Epoch, Header, LaneName, Position, Record, SourceRef,
    body::{Change, LifecycleEvent, Syslog},
    geo::WorkspaceGeo,
};

const T0: i64 = 1_795_404_079_123_456_789;

fn organization(last: u8) -> OrganizationId {
    let mut id = [1; 16];
    id[15] = last;
    OrganizationId(uuid_from(id))
}

fn uuid_from(bytes: [u8; 16]) -> vedette_wire::id::Uuid {
    vedette_wire::id::Uuid::from_bytes(bytes)
}

fn landed(organization: OrganizationId, seq: u64, bodies: Vec<Body>) -> LandedBatch {
    let records: Vec<Record> = (0..)
        .zip(bodies)
        .map(|(at, body)| Record { source: 0, observed: T0, position: Position(at * 10, at * 10 + 10), body })
        .collect();
    let header = Header {
        epoch: Epoch(3),
        seq,
        sealed: T0,
        policy_revision: 1,
        agent_version: "0.1.0".to_owned(),
        host: vedette_wire::record::HostLabel { hostname: "web1".to_owned(), ..Default::default() },
        sources: vec![SourceRef {
            collector: "syslog".to_owned(),
            id: "f".to_owned(),
            name: Some("/var/log/syslog".to_owned()),
            reached: 1,
            dropped: Vec::new(),
        }],
        records: records.len() as u32,
        lowest_held: 1,
        ..Header::new(organization, AgentId([2; 16]), LaneName::Records, WorkspaceGeo::Europe)
    };
    let (key, day) = (format!("key-{seq}"), "2026-11-23".to_owned());
    LandedBatch { key, day, landed: T0, store: StoreLevel::All, batch: Batch { header, records } }
}

fn line(text: &str) -> Body {
    Syslog { raw: text.as_bytes().to_vec(), ..Syslog::default() }.into()
}

fn start() -> Body {
    vedette_wire::body::Lifecycle {
        event: LifecycleEvent::Start,
        message: "started".to_owned(),
        version: "0.1.0".to_owned(),
        collector: None,
        configuration: None,
    }
    .into()
}

fn session(change: Change) -> Body {
    vedette_wire::body::Session {
        change,
        snapshot: None,
        id: "1".to_owned(),
        user: "alice".to_owned(),
        user_id: None,
        terminal: None,
        display: None,
        remote_host: None,
        since: None,
        service: None,
        class: None,
        source: "logind".to_owned(),
        leader: None,
    }
    .into()
}

fn texts(batches: &[RecordBatch]) -> Vec<String> {
    let mut out: Vec<String> = batches
        .iter()
        .flat_map(|batch| {
            let column = batch.column(0).as_string::<i32>();
            (0..batch.num_rows()).map(|row| column.value(row).to_owned()).collect::<Vec<_>>()
        })
        .collect();
    out.sort();
    out
}

/// Landed batches in memory, and the number of reads.
#[derive(Debug, Default)]
struct InMemory(std::collections::BTreeMap<String, Batch>, std::sync::atomic::AtomicUsize);

impl LandedBatches for InMemory {
    fn read<'a>(&'a self, key: &'a str) -> futures::future::BoxFuture<'a, Result<Option<Batch>, ReadFailure>> {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Box::pin(async move {
            match key {
                "key-away" => Err("the store is away".into()),
                key => Ok(self.0.get(key).cloned()),
            }
        })
    }
}

async fn query(
    lake: &Lake,
    org: OrganizationId,
    sql: &str,
    pending: &[LandedBatch],
    known: &Versions,
    limits: QueryLimits,
) -> Result<Output, QueryError> {
    let landing = InMemory(pending.iter().map(|l| (l.key.clone(), l.batch.clone())).collect(), Default::default());
    let landing: std::sync::Arc<dyn LandedBatches> = std::sync::Arc::new(landing);
    lake.query(org, sql, &unread(pending), &landing, known, limits).await
}

fn unread(landed: &[LandedBatch]) -> Vec<PendingBatch> {
    landed
        .iter()
        .map(|l| PendingBatch { key: l.key.clone(), day: l.day.clone(), landed: l.landed, store: l.store })
        .collect()
}

async fn ask(lake: &Lake, org: OrganizationId, sql: &str, pending: &[LandedBatch], known: &Versions) -> Vec<String> {
    let output = query(lake, org, sql, pending, known, QueryLimits::default()).await.expect(sql);
    assert!(!output.cut);
    texts(&output.batches)
}

const LINES: &str = "SELECT raw FROM syslog";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_seen_once_before_while_and_after_it_is_materialised() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lake, org) = (Lake::new(dir.path()), organization(1));
    let one = vec![landed(org, 1, vec![line("a"), start()]), landed(org, 2, vec![line("b")])];
    let nothing = Versions::new();
    assert_eq!(ask(&lake, org, LINES, &one, &nothing).await, ["a", "b"]);
    let known = lake.materialise(org, &one, &nothing).await.expect("writes");
    // The control store has no marks yet: the commits name the keys.
    assert_eq!(ask(&lake, org, LINES, &one, &nothing).await, ["a", "b"]);
    assert_eq!(ask(&lake, org, LINES, &[], &known).await, ["a", "b"]);
    // A crash before the marks: the same batches come again, with another one.
    let mut extended = one.clone();
    extended.push(landed(org, 3, vec![line("c")]));
    let known = lake.materialise(org, &extended, &nothing).await.expect("writes");
    assert_eq!(ask(&lake, org, LINES, &[], &known).await, ["a", "b", "c"]);
    let pending = [landed(org, 4, vec![line("d")])];
    assert_eq!(ask(&lake, org, LINES, &pending, &known).await, ["a", "b", "c", "d"]);
    lake.compact(org).await.expect("compacts");
    assert_eq!(ask(&lake, org, LINES, &pending, &known).await, ["a", "b", "c", "d"]);
    assert_eq!(ask(&lake, org, "SELECT event FROM lifecycle", &[], &known).await, ["start"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_reaches_over_every_table_that_its_kind_is_in() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lake, org) = (Lake::new(dir.path()), organization(1));
    let bodies = vec![session(Change::Snapshot), session(Change::End)];
    let known = lake.materialise(org, &[landed(org, 1, bodies)], &Versions::new()).await.expect("writes");
    assert_eq!(ask(&lake, org, "SELECT change FROM sessions", &[], &known).await, ["end", "snapshot"]);
    assert_eq!(ask(&lake, org, "SELECT user FROM authentication", &[], &known).await, ["alice"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_organization_sees_nothing_of_another() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lake = Lake::new(dir.path());
    let (mine, theirs) = (organization(1), organization(2));
    let known = lake.materialise(mine, &[landed(mine, 1, vec![line("mine")])], &Versions::new()).await.expect("writes");
    lake.materialise(theirs, &[landed(theirs, 1, vec![line("theirs")])], &Versions::new()).await.expect("writes");
    assert_eq!(ask(&lake, mine, LINES, &[], &known).await, ["mine"]);
    let path = lake.table_dir(theirs, OcsfClass::BaseEvent);
    for sql in [
        format!("SELECT * FROM '{}'", path.display()),
        format!("SELECT * FROM \"{theirs}\".base_event"),
        format!("CREATE EXTERNAL TABLE x STORED AS PARQUET LOCATION '{}'", path.display()),
        format!("COPY (SELECT 1) TO '{}/x.csv'", dir.path().display()),
        "SET datafusion.execution.batch_size = 1".to_owned(),
        "CREATE VIEW v AS SELECT 1".to_owned(),
        "SELECT * FROM generate_series(1, 10)".to_owned(),
        "SELECT unnest(range(1, 5))".to_owned(),
        "SELECT length(repeat('x', 1500000000))".to_owned(),
        "SELECT array_length(array_repeat(1, 200000000))".to_owned(),
        "SELECT lpad('x', 1500000000)".to_owned(),
        "SELECT 1; SELECT 2".to_owned(),
    ] {
        let refused = query(&lake, mine, &sql, &[], &known, QueryLimits::default()).await;
        assert!(matches!(refused, Err(QueryError::Sql(_))), "{sql}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_cut_and_end_a_query() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lake, org) = (Lake::new(dir.path()), organization(1));
    let lines: Vec<Body> = (0..1000).map(|number| line(&number.to_string())).collect();
    let pending = [landed(org, 1, lines)];
    let few = QueryLimits { rows_max: 7, ..QueryLimits::default() };
    let output = query(&lake, org, LINES, &pending, &Versions::new(), few).await.expect("answers");
    assert_eq!((output.batches.iter().map(RecordBatch::num_rows).sum::<usize>(), output.cut), (7, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_needs_too_much_memory_is_given_up() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lake, org) = (Lake::new(dir.path()), organization(1));
    let lines: Vec<Body> = (0..20_000).map(|number| line(&format!("{number:0>200}"))).collect();
    let little = QueryLimits { memory_max: 100_000, ..QueryLimits::default() };
    let wide = query(&lake, org, LINES, &[landed(org, 1, lines.clone())], &Versions::new(), little).await;
    assert!(matches!(wide, Err(QueryError::Memory(100_000))), "the answer counts as well: {wide:?}");
    let join = "SELECT count(*) FROM syslog a JOIN syslog b ON a.raw = b.raw";
    let refused = query(&lake, org, join, &[landed(org, 1, lines)], &Versions::new(), little).await;
    assert!(matches!(refused, Err(QueryError::Memory(100_000))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn landed_batches_are_read_when_the_query_comes_to_them() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lake, org) = (Lake::new(dir.path()), organization(1));
    let many = landed(org, 1, (0..9000).map(|number| line(&number.to_string())).collect());
    let mut stored = InMemory::default();
    let pending: Vec<PendingBatch> = (1..=40)
        .map(|seq| PendingBatch { key: format!("key-{seq}"), ..unread(std::slice::from_ref(&many))[0].clone() })
        .collect();
    stored.0.extend(pending.iter().map(|pending| (pending.key.clone(), many.batch.clone())));
    let stored = std::sync::Arc::new(stored);
    let landing: std::sync::Arc<dyn LandedBatches> = stored.clone();
    let limits = QueryLimits { rows_max: 5, memory_max: 2 << 30, ..QueryLimits::default() };
    let (few, known) = (limits, Versions::new());
    let output = lake.query(org, LINES, &pending, &landing, &known, few).await.expect("answers");
    assert_eq!((output.batches.iter().map(RecordBatch::num_rows).sum::<usize>(), output.cut), (5, true));
    // Two tables in four partitions each, and a little read-ahead.
    let read = stored.1.load(std::sync::atomic::Ordering::Relaxed);
    assert!(read < 60, "{read} of 80 reads were made for five rows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_batch_is_left_out_and_a_store_that_is_away_is_no_answer() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lake, org, known) = (Lake::new(dir.path()), organization(1), Versions::new());
    let all = [landed(org, 1, vec![line("a"), line("b")])];
    let landing = InMemory(all.iter().map(|l| (l.key.clone(), l.batch.clone())).collect(), Default::default());
    let landing: std::sync::Arc<dyn LandedBatches> = std::sync::Arc::new(landing);
    let mut pending = unread(&all);
    pending.push(PendingBatch { key: "key-damaged".to_owned(), ..pending[0].clone() });
    let whole = lake.query(org, LINES, &pending, &landing, &known, QueryLimits::default()).await.expect("answers");
    assert_eq!(texts(&whole.batches), ["a", "b"]);
    pending.push(PendingBatch { key: "key-away".to_owned(), ..pending[0].clone() });
    let refused = lake.query(org, LINES, &pending, &landing, &known, QueryLimits::default()).await;
    assert!(matches!(&refused, Err(QueryError::Sql(why)) if why.contains("the store is away")), "{refused:?}");
}

#[test]
fn a_query_that_takes_too_long_is_given_up() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("builds");
    let refused = runtime.block_on(async {
        let dir = tempfile::tempdir().expect("temp dir");
        let (lake, org) = (Lake::new(dir.path()), organization(1));
        let pending = [landed(org, 1, (0..300).map(|number| line(&number.to_string())).collect())];
        let short = QueryLimits { time_max: Duration::from_millis(200), ..QueryLimits::default() };
        let slow = "SELECT count(*) FROM syslog a, syslog b, syslog c WHERE a.raw || b.raw || c.raw = 'x'";
        query(&lake, org, slow, &pending, &Versions::new(), short).await
    });
    // An operator may not yield for long: do not wait for it.
    runtime.shutdown_background();
    assert!(matches!(refused, Err(QueryError::Timeout(_))), "{refused:?}");
}

#[tokio::test]
async fn a_tier_leaves_security_events_out_whether_they_are_materialised_or_not() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lake, org) = (Lake::new(dir.path()), organization(1));
    let login = "sshd[1]: Connection closed";
    let closed =
        Syslog { raw: login.as_bytes().to_vec(), app: Some(vedette_wire::body::Span(0, 4)), ..Syslog::default() };
    let mut batch = landed(org, 1, vec![line("one"), closed.into(), line("two"), session(Change::End)]);
    batch.store = StoreLevel::Minimal;
    let rows = "SELECT message || ' ' || index FROM syslog";
    let pending = std::slice::from_ref(&batch);
    assert_eq!(ask(&lake, org, rows, pending, &Versions::new()).await, ["one 0", "two 2"]);
    let known = lake.materialise(org, pending, &Versions::new()).await.expect("materialises");
    assert_eq!(ask(&lake, org, rows, &[], &known).await, ["one 0", "two 2"]);
    // No record of the class remains: no table.
    assert!(!known.contains_key("authentication"), "{known:?}");
}

#[tokio::test]
async fn a_time_needs_no_seconds() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lake, org) = (Lake::new(dir.path()), organization(1));
    let pending = [landed(org, 1, vec![line("one")])];
    // T0 is 2026-11-23 03:21:19.
    for (text, count) in
        [("2026-11-23 03:22", "1"), ("2026-11-23T03:21", "0"), ("2026-11-24", "1"), ("2026-11-23 03:21:20", "1")]
    {
        let sql = format!("SELECT count(*) || '' FROM syslog WHERE observed_time < '{text}'");
        assert_eq!(ask(&lake, org, &sql, &pending, &Versions::new()).await, [count], "{text}");
    }
    let sql = "SELECT count(*) || '' FROM syslog WHERE observed_time < (SELECT max(observed_time) FROM syslog WHERE observed_time > '2026-11-23 03:20')";
    assert_eq!(ask(&lake, org, sql, &pending, &Versions::new()).await, ["0"]);
}

/// Files below a directory, except checksums.
fn files(dir: &std::path::Path) -> Vec<PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for path in std::fs::read_dir(dir).expect("lists").map(|entry| entry.expect("an entry").path()) {
            if path.is_dir() {
                dirs.push(path);
            } else if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
                found.push(path);
            }
        }
    }
    found
}

#[tokio::test]
async fn a_damaged_table_is_an_error_and_no_wrong_answer() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lake, org) = (Lake::new(dir.path()), organization(1));
    let mut known = Versions::new();
    for seq in 1..4 {
        let lines = (0..40).map(|number| line(&format!("{seq} {number}"))).collect();
        known = lake.materialise(org, &[landed(org, seq, lines)], &known).await.expect("writes");
    }
    assert_eq!(known["base_event"], Mark { version: 3, rows: 120 });
    let sum = "SELECT count(*) || ' ' || min(raw) || ' ' || max(raw) FROM syslog";
    let right = ["120 1 0 3 9"];
    assert_eq!(ask(&lake, org, sum, &[], &known).await, right);
    let checked = lake.check(org, &known).await.expect("reads");
    assert_eq!(checked.0, Vec::<String>::new());
    // The creation of the table precedes its first mark, and has checksums too.
    assert_eq!(checked.1, 0);
    let of_table = files(&lake.table_dir(org, OcsfClass::BaseEvent));
    assert!(of_table.len() >= 7, "{of_table:?}");
    for path in of_table {
        let whole = std::fs::read(&path).expect("reads");
        let mut harmed: Vec<Vec<u8>> = (0..8)
            .map(|part| {
                let mut flipped = whole.clone();
                flipped[(whole.len() - 1) * part / 7] ^= 1;
                flipped
            })
            .collect();
        harmed.push(whole[..whole.len() / 2].to_vec());
        harmed.push(Vec::new());
        for bytes in harmed {
            std::fs::write(&path, bytes).expect("writes");
            let answer = query(&lake, org, sum, &[], &known, QueryLimits::default()).await;
            assert!(answer.is_err(), "{}: {answer:?}", path.display());
            assert_ne!(lake.check(org, &known).await.expect("reads").0, Vec::<String>::new(), "{}", path.display());
        }
        std::fs::remove_file(&path).expect("removes");
        let answer = query(&lake, org, sum, &[], &known, QueryLimits::default()).await;
        assert!(answer.is_err(), "{} is gone: {answer:?}", path.display());
        std::fs::write(&path, whole).expect("writes");
    }
    std::fs::remove_dir_all(lake.table_dir(org, OcsfClass::BaseEvent)).expect("removes");
    let gone = query(&lake, org, sum, &[], &known, QueryLimits::default()).await.expect_err("the table is gone");
    assert!(gone.to_string().contains("doctor --rebuild"), "{gone}");
    let written =
        lake.materialise(org, &[landed(org, 4, vec![line("x")])], &known).await.expect_err("nor is it written");
    assert!(written.to_string().contains("doctor --rebuild"), "{written}");
}
