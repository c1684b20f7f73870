#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

use super::*;
use crate::{Sink, StopSignal};
use std::{fs, os::unix::fs::symlink};

#[derive(Default)]
struct Sent(parking_lot::Mutex<Vec<Chunk>>);

impl Sink for Sent {
    fn put(&self, chunk: Chunk, _: &StopSignal) -> Result<(), CollectError> {
        self.0.lock().push(chunk);
        Ok(())
    }
    fn report_problem(&self, _: &'static str, _: String) {}
}

/// A host with a few files, and its settings.
fn host() -> (tempfile::TempDir, CollectorContext, Settings) {
    let dir = tempfile::tempdir().expect("temp dir");
    for parent in ["usr/bin", "etc/cron.d", "var/log/app", "home/bob/.ssh", "etc/ssh"] {
        fs::create_dir_all(dir.path().join(parent)).expect("makes");
    }
    fs::write(dir.path().join("usr/bin/tool"), vec![7; 3 * PIECE_BYTES / 2]).expect("writes");
    fs::write(dir.path().join("etc/shadow"), "secret").expect("writes");
    fs::write(dir.path().join("etc/ssh/ssh_host_ed25519_key"), "secret").expect("writes");
    fs::write(dir.path().join("home/bob/.ssh/authorized_keys"), "ssh-ed25519 AAAA bob").expect("writes");
    fs::write(dir.path().join("home/bob/.ssh/id_ed25519"), "secret").expect("writes");
    fs::write(dir.path().join("var/log/app/empty.log"), "").expect("writes");
    symlink("usr/bin", dir.path().join("bin")).expect("links");
    symlink("/etc/shadow", dir.path().join("var/log/link.log")).expect("links");
    symlink("../../etc/shadow", dir.path().join("var/log/relative.log")).expect("links");
    let root = fs::canonicalize(dir.path()).expect("is there");
    (dir, CollectorContext::new(root, Arc::new(|| 1)), Settings::default())
}

fn approved(path: &str) -> ApprovedRequest {
    ApprovedRequest {
        request: "r1".to_owned(),
        path: path.to_owned(),
        paths: Vec::new(),
        bytes_max: 1 << 30,
        refused: None,
    }
}

/// What is sent for a request from an offset on, and whether a cursor remains.
fn answered(
    context: &CollectorContext,
    settings: &Settings,
    approved: &ApprovedRequest,
    durable: Option<&SentPart>,
) -> (Vec<Artifact>, Vec<Position>) {
    let sent = Arc::new(Sent::default());
    let outlet = Outlet::new(Arc::clone(&sent) as Arc<dyn Sink>, StopSignal::default());
    let artifacts = Artifacts { settings: settings.clone(), requests: Requests::default() };
    artifacts.answer(context, &outlet, approved, durable).expect("is answered");
    let chunks = sent.0.lock();
    let last = chunks.last().expect("there is an answer");
    assert!(last.cursor.is_none() && last.forget == ["r1"], "its place is forgotten");
    let records: Vec<_> = chunks.iter().flat_map(|chunk| chunk.decode().expect("decodes")).collect();
    let positions = records.iter().map(|record| record.position).collect();
    let bodies = records.into_iter().map(|record| match record.body {
        Body::Artifact(artifact) => artifact,
        other => panic!("{other:?}"),
    });
    (bodies.collect(), positions)
}

#[test]
fn a_file_on_the_list_is_sent_whole_with_what_is_known_of_it() {
    let (_dir, context, settings) = host();
    // Through a symbolic link to the directory.
    let (pieces, positions) = answered(&context, &settings, &approved("/bin/tool"), None);
    assert_eq!(pieces.len(), 2);
    let content: Vec<u8> = pieces.iter().flat_map(|piece| piece.data.clone()).collect();
    assert_eq!(content, vec![7; 3 * PIECE_BYTES / 2]);
    let whole = pieces[1].whole.as_ref().expect("with the last piece");
    assert_eq!((whole.size, whole.real_path.as_str()), (content.len() as u64, "/usr/bin/tool"));
    assert_eq!(whole.sha256, hex::encode(Sha256::digest(&content)));
    let meta = fs::metadata(context.path("/usr/bin/tool")).expect("is there");
    assert_eq!((whole.mode, whole.user_id, whole.torn), (meta.mode(), meta.uid(), false));
    assert_eq!(whole.modified, meta.mtime() * 1_000_000_000 + meta.mtime_nsec());
    assert!(positions.windows(2).all(|pair| pair[0].1 == pair[1].0), "they tile: {positions:?}");
    let (empty, _) = answered(&context, &settings, &approved("/var/log/app/empty.log"), None);
    assert_eq!((empty.len(), empty[0].whole.as_ref().map(|whole| whole.size)), (1, Some(0)));
    let (keys, _) = answered(&context, &settings, &approved("/home/bob/.ssh/authorized_keys"), None);
    assert_eq!(keys[0].data, b"ssh-ed25519 AAAA bob");
}

#[test]
fn after_a_restart_the_rest_is_sent_and_the_digest_is_of_the_whole() {
    let (_dir, context, settings) = host();
    let (all, _) = answered(&context, &settings, &approved("/usr/bin/tool"), None);
    let meta = fs::metadata(context.path("/usr/bin/tool")).expect("is there");
    let sent = SentPart { offset: PIECE_BYTES as u64, fingerprint: fingerprint(&meta) };
    let (rest, positions) = answered(&context, &settings, &approved("/usr/bin/tool"), Some(&sent));
    let position =
        |piece: &Artifact| (piece.offset, piece.data.len(), piece.whole.as_ref().map(|whole| whole.sha256.clone()));
    assert_eq!((rest.len(), position(&rest[0])), (1, position(&all[1])));
    assert_eq!(positions[0].0, PIECE_BYTES as u64);
    // Rewritten meanwhile, so it is sent from the beginning.
    fs::write(context.path("/usr/bin/tool"), vec![8; 2 * PIECE_BYTES]).expect("writes");
    let (anew, _) = answered(&context, &settings, &approved("/usr/bin/tool"), Some(&sent));
    assert_eq!((anew[0].offset, anew[0].data[0]), (0, 8));
}

#[test]
fn what_is_not_on_the_list_or_is_no_plain_file_is_refused_with_the_reason() {
    let (dir, context, settings) = host();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("var/log/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("makes a FIFO");
    for (path, expected) in [
        ("/etc/shadow", "not on this host's list"),
        ("/etc/ssh/ssh_host_ed25519_key", "not on this host's list"),
        ("/home/bob/.ssh/id_ed25519", "not on this host's list"),
        ("/var/log/../../etc/shadow", "not on this host's list"),
        ("/var/log/relative.log", "not on this host's list"),
        ("/var/log/link.log", ""),
        ("/var/log/pipe", "not a regular file"),
        ("/var/log/app", "not a regular file"),
        ("/var/log/missing", "cannot be opened"),
        ("var/log/app/empty.log", "not absolute"),
    ] {
        let (pieces, _) = answered(&context, &settings, &approved(path), None);
        let [Artifact { refused: Some(why), data, .. }] = pieces.as_slice() else { panic!("{path}: {pieces:?}") };
        assert!(why.contains(expected) && data.is_empty(), "{path}: {why}");
    }
}

#[test]
fn policy_and_host_both_limit_and_the_smaller_counts() {
    let (_dir, context, settings) = host();
    let why = |settings: &Settings, approved: &ApprovedRequest| {
        let (pieces, _) = answered(&context, settings, approved, None);
        pieces[0].refused.clone().unwrap_or_default()
    };
    let tool = approved("/usr/bin/tool");
    let policy = ApprovedRequest { bytes_max: 10, ..tool.clone() };
    assert!(why(&settings, &policy).contains("10 are allowed"));
    let narrow = Settings { bytes_max: Bytes(9), ..settings.clone() };
    assert!(why(&narrow, &policy).contains("9 are allowed"));
    let others = ApprovedRequest { paths: vec!["/var/log/**/*".to_owned()], ..tool.clone() };
    assert!(why(&settings, &others).contains("not among the paths that the policy allows"));
    let none = Settings { allow: Vec::new(), ..settings.clone() };
    assert!(why(&none, &tool).contains("not on this host's list"));
    let refused = ApprovedRequest { refused: Some("too many in an hour".to_owned()), ..tool };
    assert_eq!(why(&settings, &refused), "too many in an hour");
}
