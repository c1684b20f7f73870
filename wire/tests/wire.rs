//! The wire format and the OCSF rendering, tried on one sample of every record.

#![expect(clippy::disallowed_methods, reason = "the golden file is written on request")]

mod samples;

use serde_json::json;
use std::{collections::BTreeSet, path::Path};
use vedette_wire::{
    Batch, Body, Compression, EntryHead, EntryPacker, HostLabel, OsFamily, Packer, Position, Record, SourceRef,
    body::{Change, Journal, KINDS, Principal, PrincipalId, Process, ProcessState, RowContext},
    codec::{self, DecodeError},
    column::{ColumnType, Value},
    frame::{self, FrameHead},
    ocsf::OcsfClass,
    policy::Directives,
    render::{self, Origin},
    seal,
};

fn encode(record: &Record, into: &mut Vec<u8>) {
    let mut body = Vec::new();
    codec::append_body(&record.body, &mut body);
    codec::append_record(record.source, record.observed, record.position, &body, into);
}

#[test]
fn a_record_written_in_two_steps_is_the_record_serialized() {
    for record in samples::batch().records {
        let mut bytes = Vec::new();
        encode(&record, &mut bytes);
        assert_eq!(bytes, rmp_serde::to_vec_named(&record).expect("records serialize"));
    }
}

/// Agents and workspaces of earlier releases read these names.
#[test]
fn fields_keep_their_names_on_the_wire() {
    let source = SourceRef {
        collector: "syslog".to_owned(),
        id: "1".to_owned(),
        name: None,
        reached: 2,
        dropped: vec![(1, 2, 1)],
    };
    assert_eq!(json!(source)["skipped"], json!([[1, 2, 1]]));
    assert_eq!(json!(Directives { wants_policy: true, ..Directives::default() }), json!({"bring_policy": true}));
}

fn encoded_records(batch: &Batch) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in &batch.records {
        encode(record, &mut bytes);
    }
    bytes
}

#[test]
fn a_batch_survives_sealing_with_each_codec() {
    let batch = samples::batch();
    for compression in [Compression::Zstd, Compression::Gzip] {
        let sealed = seal::seal(&batch.header, &encoded_records(&batch), compression).expect("seals");
        let plain = codec::decompress(&sealed, compression, 1 << 20).expect("decompresses");
        assert_eq!(codec::decode(&plain).expect("decodes"), batch);
    }
}

#[test]
fn a_decompression_bomb_is_refused() {
    let batch = samples::batch();
    let sealed = seal::seal(&batch.header, &vec![0; 4 << 20], Compression::Zstd).expect("seals");
    assert!(sealed.len() < 10_000);
    let refused = codec::decompress(&sealed, Compression::Zstd, 1 << 20);
    assert!(matches!(refused, Err(DecodeError::TooLarge { limit: 1_048_576 })), "{refused:?}");
}

#[test]
fn a_header_of_another_version_is_named() {
    let mut batch = samples::batch();
    batch.header.version = 9;
    let sealed = seal::seal(&batch.header, &[], Compression::Zstd).expect("seals");
    let plain = codec::decompress(&sealed, Compression::Zstd, 1 << 20).expect("decompresses");
    assert!(matches!(codec::decode_header(&plain), Err(DecodeError::Version { found: 9 })));
}

#[test]
fn a_cut_batch_is_an_error_at_every_length() {
    let batch = samples::batch();
    let sealed = seal::seal(&batch.header, &encoded_records(&batch), Compression::Zstd).expect("seals");
    let plain = codec::decompress(&sealed, Compression::Zstd, 1 << 20).expect("decompresses");
    for length in 0..plain.len() {
        assert!(codec::decode(&plain[..length]).is_err(), "cut at {length}");
    }
}

#[test]
fn a_record_of_an_unknown_kind_is_kept_whole_and_does_not_hide_the_next() {
    let batch = samples::batch();
    let mut bytes = Vec::new();
    let alien = json!({"s": 0, "t": 1, "p": [3, 4], "b": {"hologram": {"depth": 7}}});
    rmp_serde::encode::write_named(&mut bytes, &alien).expect("serializes");
    let alien_bytes = bytes.clone();
    encode(&batch.records[0], &mut bytes);
    let mut header = batch.header.clone();
    header.records = 2;
    let sealed = seal::seal(&header, &bytes, Compression::Zstd).expect("seals");
    let plain = codec::decompress(&sealed, Compression::Zstd, 1 << 20).expect("decompresses");
    let decoded = codec::decode(&plain).expect("decodes");
    let Body::Unknown(unknown) = &decoded.records[0].body else { panic!("{:?}", decoded.records[0]) };
    assert_eq!(unknown.raw, alien_bytes);
    assert_eq!((decoded.records[0].position.0, decoded.records[0].position.1), (3, 4));
    assert_eq!(decoded.records[1], batch.records[0]);
}

/// The golden batches were written by the first release of each format. Were they not decoded to the same values, agents
/// and workspaces of different releases would not understand each other.
#[test]
fn the_golden_batches_are_still_read() {
    let mut first = of_golden();
    first.header.version = 1;
    golden("tests/golden/batch-v1.zst", first.clone(), &encoded_records(&first));

    // With packed lines, and in several frames.
    let mut second = of_golden();
    let (mut chunk, mut packer) = (samples::chunk(), Packer::default());
    let mut at = 100;
    for (whole, line) in samples::whole_lines() {
        let position = Position(at, at + whole.len() as u64);
        at = position.1;
        assert!(packer.push(&whole, position, &line));
        second.records.push(Record { source: 0, observed: 7, position, body: Body::Syslog(line) });
    }
    chunk.push_packed(7, &mut packer);
    second.header.records = u32::try_from(second.records.len()).expect("few");
    let records = [encoded_records(&of_golden()), chunk.encode()].concat();
    golden("tests/golden/batch-v2.zst", second, &records);

    // With packed entries of the journal.
    let (mut chunk, mut packer) = (samples::chunk(), EntryPacker::default());
    let head = EntryHead { sequence: [5; 16], boot: [6; 16], realtime: 1_795_404_079_000_005, monotonic: 7, hash: 8 };
    assert!(packer.begin(&head, Position(3, 5)));
    packer.field(b"MESSAGE", b"one\xff");
    let unit = packer.field(b"_SYSTEMD_UNIT", b"a.service");
    packer.field(b"_PID", b"9");
    assert!(packer.begin(&EntryHead { realtime: head.realtime - 1, monotonic: 9, hash: 0, ..head }, Position(5, 6)));
    packer.repeat(unit);
    packer.field(b"CODE_LINE", b"7");
    chunk.push_entries(7, &mut packer);
    let (cursor, unit) = (|rest: &str| format!("s={};{rest}", "05".repeat(16)), Some("a.service".to_owned()));
    let boot_id = Some("06".repeat(16));
    let entries = [
        Journal {
            message: "one\u{fffd}".to_owned(),
            time: 1_795_404_079_000_005_000,
            cursor: cursor(&format!("i=4;b={};m=7;t=660e9165b69c5;x=8", "06".repeat(16))),
            unit: unit.clone(),
            pid: Some(9),
            boot_id: boot_id.clone(),
            ..Journal::default()
        },
        Journal {
            time: 1_795_404_079_000_004_000,
            cursor: cursor(&format!("i=5;b={};m=9;t=660e9165b69c4;x=0", "06".repeat(16))),
            unit,
            boot_id,
            more: [("CODE_LINE".to_owned(), "7".to_owned())].into(),
            ..Journal::default()
        },
    ];
    let records_of = entries.into_iter().zip([Position(3, 5), Position(5, 6)]);
    let records_of =
        records_of.map(|(entry, position)| Record { source: 0, observed: 7, position, body: Body::Journal(entry) });
    let mut fourth = Batch { records: records_of.collect(), ..of_golden() };
    (fourth.header.version, fourth.header.records) = (4, 2);
    golden("tests/golden/batch-v4.zst", fourth, &chunk.encode());
}

/// The batch of when they were written: a host had no cloud then, and an agent one endpoint.
fn of_golden() -> Batch {
    let mut batch = samples::batch();
    (batch.header.host.machine, batch.header.host.boot, batch.header.resealed) = (None, None, false);
    batch.records.retain(|record| !matches!(record.body.kind().name, "artifact" | "container_log"));
    batch.header.records = u32::try_from(batch.records.len()).expect("few");
    batch.header.sources[0].reached = batch.records.len() as u64;
    for record in &mut batch.records {
        if let Body::Host(host) = &mut record.body {
            host.cloud = None;
        }
        if let Body::Heartbeat(heartbeat) = &mut record.body {
            (heartbeat.endpoint_since, heartbeat.endpoint_why) = (None, None);
        }
    }
    batch
}

fn golden(path: &str, batch: Batch, records: &[u8]) {
    // Cargo runs tests in the package's directory; a path from compile time may be of another clone.
    let path = Path::new(path);
    if std::env::var_os("WRITE_GOLDEN").is_some() && !path.exists() {
        let sealed = seal::seal(&batch.header, records, Compression::Zstd).expect("seals");
        std::fs::write(path, sealed).expect("golden file is writable");
    }
    let sealed = std::fs::read(path).expect("golden file is there");
    let plain = codec::decompress(&sealed, Compression::Zstd, 1 << 20).expect("decompresses");
    assert!(codec::decode(&plain).expect("decodes") == batch, "{}", path.display());
}

fn frame_of(sealed: &[u8]) -> (FrameHead, Vec<u8>) {
    let head = FrameHead {
        key: samples::batch().header.key(),
        compression: Compression::Gzip,
        sealed: 5,
        records: 6,
        digest: frame::sha256(sealed),
    };
    let bytes = frame::build(&head, sealed);
    (head, bytes)
}

#[test]
fn any_flipped_bit_of_a_frame_is_noticed() {
    let (head, bytes) = frame_of(b"sealed bytes");
    assert_eq!(frame::parse(&bytes), Ok((head, &b"sealed bytes"[..])));
    for bit in 0..bytes.len() * 8 {
        let mut broken = bytes.clone();
        broken[bit / 8] ^= 1 << (bit % 8);
        assert!(frame::parse(&broken).is_err(), "bit {bit}");
    }
    for length in 0..bytes.len() {
        assert!(frame::parse(&bytes[..length]).is_err(), "cut at {length}");
    }
}

fn schema(class: OcsfClass) -> jsonschema::Validator {
    let all: serde_json::Value =
        serde_json::from_str(include_str!("ocsf/ocsf-1.8.0.json")).expect("the vendored schema is JSON");
    let name = match class {
        OcsfClass::BaseEvent => "base_event",
        OcsfClass::ProcessActivity => "process_activity",
        OcsfClass::Authentication => "authentication",
        OcsfClass::DeviceInventoryInfo => "inventory_info",
        OcsfClass::LiveEvidenceInfo => "evidence_info",
        OcsfClass::ApplicationLifecycle => "application_lifecycle",
        OcsfClass::ApplicationError => "application_error",
    };
    let mut schema = all["classes"][name].clone();
    schema["$defs"] = all["$defs"].clone();
    jsonschema::validator_for(&schema).expect("the vendored schema compiles")
}

#[test]
fn every_record_renders_to_valid_ocsf() {
    let batch = samples::batch();
    let mut reached = BTreeSet::new();
    let mut errors = Vec::new();
    for (index, record) in batch.records.iter().enumerate() {
        let event = render::render(&Origin::in_batch(&batch.header, index, record), record);
        let class = record.body.class();
        for err in schema(class).iter_errors(&event) {
            errors.push(format!("{index} {class:?} {}: {err}", err.instance_path()));
        }
        reached.insert(class);
    }
    assert!(errors.is_empty(), "{errors:#?}");
    assert_eq!(reached, BTreeSet::from(OcsfClass::ALL), "a sample for every class");
}

#[test]
fn the_schema_check_would_notice_a_wrong_attribute() {
    let batch = samples::batch();
    let record = &batch.records[0];
    let mut event = render::render(&Origin::in_batch(&batch.header, 0, record), record);
    event["bogus"] = json!(1);
    assert!(!schema(record.body.class()).is_valid(&event));
}

#[test]
fn every_row_fits_the_columns_of_its_kind() {
    let batch = samples::batch();
    for record in &batch.records {
        let kind = record.body.kind();
        let context = RowContext { source_name: Some("/var/log/syslog"), position: record.position };
        let row = record.body.row(&context);
        assert_eq!(row.len(), kind.columns.len(), "{}", kind.name);
        for (value, column) in row.iter().zip(kind.columns) {
            let fits = matches!(
                (value, column.ty),
                (Value::Null, _)
                    | (Value::Text(_), ColumnType::Text)
                    | (Value::Integer(_), ColumnType::Integer)
                    | (Value::Boolean(_), ColumnType::Boolean)
                    | (Value::Time(_), ColumnType::Time)
            );
            assert!(fits, "{}.{}: {value:?}", kind.name, column.name);
        }
        assert!(kind.classes.contains(&record.body.class()), "{} lists its classes", kind.name);
    }
}

#[test]
fn columns_of_one_name_have_one_type_in_a_table() {
    for class in OcsfClass::ALL {
        let kinds = KINDS.iter().filter(|kind| kind.classes.contains(&class));
        let mut seen = std::collections::BTreeMap::new();
        for column in kinds.flat_map(|kind| kind.columns).chain(vedette_wire::column::COMMON) {
            let ty = *seen.entry(column.name).or_insert(column.ty);
            assert_eq!(ty, column.ty, "{}.{}", class.table(), column.name);
        }
    }
}

#[test]
fn a_record_of_windows_says_so_and_one_of_an_older_agent_is_of_linux() {
    let batch = samples::batch();
    let find = |name: &str| batch.records.iter().find(|record| record.body.kind().name == name).expect("has one");
    let (mut host, mut process) = (find("host").clone(), find("process").clone());
    let Body::Host(facts) = &mut host.body else { panic!("{host:?}") };
    facts.os.family = OsFamily::Windows;
    let Body::Process(one) = &mut process.body else { panic!("{process:?}") };
    let sid = PrincipalId::Sid("S-1-5-18".to_owned());
    (one.user, one.group, one.state) = (Some(Principal { id: sid, name: None }), None, None);
    (one.path, one.change) = (Some(r"C:\Windows\System32\a/b.exe".to_owned()), Change::Start);
    let mut header = batch.header.clone();
    header.host.os_family = OsFamily::Windows;
    for record in [&host, &process] {
        let event = render::render(&Origin::in_batch(&header, 0, record), record);
        let errors: Vec<String> = schema(record.body.class()).iter_errors(&event).map(|err| err.to_string()).collect();
        assert_eq!(errors, [""; 0]);
        assert_eq!(
            (&event["device"]["os"]["type_id"], &event["device"]["os"]["type"]),
            (&json!(100), &json!("Windows"))
        );
    }
    let event = render::render(&Origin::in_batch(&header, 0, &process), &process);
    assert_eq!(event["process"]["user"], json!({"uid": "S-1-5-18"}));
    assert_eq!(event["process"]["file"]["name"], "a/b.exe");
    // The record survives the wire, and its row has the identifier in a column of its own.
    let read: Process =
        rmp_serde::from_slice(&rmp_serde::to_vec_named(process_of(&process.body)).expect("encodes")).expect("decodes");
    assert_eq!(&read, process_of(&process.body));
    let row = process.body.row(&RowContext { source_name: None, position: process.position });
    let column =
        |name: &str| process.body.kind().columns.iter().position(|column| column.name == name).expect("is one");
    let text = |name: &str| format!("{:?}", row[column(name)]);
    assert_eq!((text("user_id"), text("state")), (format!("{:?}", Value::Null), format!("{:?}", Value::Null)));
    assert!(text("user_sid").contains("S-1-5-18") && text("user").contains("S-1-5-18"), "{row:?}");
    // An older agent sends the letter of proc(5), a number, and no family.
    let old = json!({"change": "start", "uid": "b/1/2", "pid": 1, "ppid": 0, "name": "init", "state": "D",
        "user": {"id": 0, "name": "root"}});
    let old: Process = rmp_serde::from_slice(&rmp_serde::to_vec_named(&old).expect("encodes")).expect("decodes");
    assert_eq!(
        (old.state, old.user.clone().map(|user| user.id)),
        (Some(ProcessState::DiskSleep), Some(PrincipalId::Number(0)))
    );
    let label: HostLabel = serde_json::from_value(json!({"hostname": "a", "os_name": "b"})).expect("decodes");
    assert_eq!(label.os_family, OsFamily::Linux);
    // An older workspace reads what it can: batches of Linux, with states of one letter.
    assert_eq!([OsFamily::Linux, OsFamily::Windows].map(vedette_wire::format_version), [2, 3]);
    let parked =
        rmp_serde::to_vec_named(&Process { state: Some(ProcessState::Unknown), ..old.clone() }).expect("encodes");
    let of_an_older_release: serde_json::Value = rmp_serde::from_slice(&parked).expect("decodes");
    assert_eq!(of_an_older_release["state"], "?");
    assert_eq!(ProcessState::of_letter('P'), ProcessState::Unknown);
}

fn process_of(body: &Body) -> &Process {
    let Body::Process(process) = body else { panic!("{body:?}") };
    process
}
