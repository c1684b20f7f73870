#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
#![expect(clippy::print_stdout, reason = "a skipped test says why")]

use super::*;
use crate::{Sink, StopSignal};
use parking_lot::Mutex;
use proptest::prelude::*;
use std::process::Command;

#[derive(Default)]
struct MemorySink {
    crashes: Mutex<Vec<Crash>>,
    cursor: Mutex<Vec<(String, Vec<u8>)>>,
}

impl Sink for MemorySink {
    fn put(&self, chunk: Chunk, _: &StopSignal) -> Result<(), CollectError> {
        for (_, body) in chunk.bodies() {
            let Body::Crash(crash) = rmp_serde::from_slice(body).expect("a body") else { panic!("no crash") };
            self.crashes.lock().push(crash);
        }
        *self.cursor.lock() = vec![(chunk.source.id.clone(), chunk.cursor.expect("has one"))];
        Ok(())
    }

    fn report_problem(&self, _: &'static str, message: String) {
        panic!("{message}");
    }
}

/// One poll below a root, with the previous cursor.
fn look(root: &Path, paths: &[&str], sink: &Arc<MemorySink>) -> Vec<Crash> {
    let context = CollectorContext {
        cursors: sink.cursor.lock().clone(),
        once: Some(100),
        ..CollectorContext::new(root, Arc::new(|| i64::MAX))
    };
    let patterns = paths.iter().map(|path| Pattern::new(path).expect("a pattern")).collect();
    let mut outlet = Outlet::new(Arc::clone(sink) as Arc<dyn Sink>, StopSignal::default());
    CrashDumps { every: Duration::from_secs(10), patterns }.watch(&context, &mut outlet).expect("looks");
    std::mem::take(&mut *sink.crashes.lock())
}

fn put(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().expect("has one")).expect("makes");
    std::fs::write(path, bytes).expect("writes");
}

#[test]
fn a_core_of_this_kernel_tells_process_signal_and_executable() {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    if pattern.trim() != "core" {
        println!("skipped: kernel.core_pattern is {:?}, not a core in the working directory", pattern.trim());
        return;
    }
    let dir = tempfile::tempdir().expect("temp dir");
    let script = "ulimit -c unlimited; exec sh -c 'kill -SEGV $$'";
    let mut child = Command::new("/bin/bash").args(["-c", script]).current_dir(dir.path()).spawn().expect("runs");
    let pid = child.id();
    child.wait().expect("ends");
    let sink = Arc::new(MemorySink::default());
    let crashes = look(dir.path(), &["/core*"], &sink);
    let [crash] = crashes.as_slice() else { panic!("{crashes:?}") };
    assert_eq!((crash.pid, crash.signal, crash.process.as_deref()), (Some(pid), Some(11), Some("sh")));
    assert!(crash.path.as_deref().is_some_and(|path| path.contains("sh")), "{crash:?}");
    assert_eq!(crash.cmd_line.as_deref(), Some("sh -c kill -SEGV $$"));
    let file = std::fs::read_dir(dir.path()).expect("lists").next().expect("one").expect("reads").path();
    let sum = Command::new("sha256sum").arg(&file).output().expect("runs");
    assert_eq!(crash.sha256.as_deref(), String::from_utf8_lossy(&sum.stdout).split(' ').next());
    assert!(!crash.truncated);
    assert!(look(dir.path(), &["/core*"], &sink).is_empty(), "each once, also after a restart");
    let bytes = std::fs::read(&file).expect("reads");
    put(dir.path(), "core.cut", &bytes[..bytes.len() / 2]);
    let cut = look(dir.path(), &["/core*"], &sink);
    assert!(cut.len() == 1 && cut[0].truncated, "{cut:?}");
}

#[test]
fn dumps_of_each_system_are_found_with_what_it_notes() {
    let dir = tempfile::tempdir().expect("temp dir");
    let name = "var/lib/systemd/coredump/core.my.app.1000.0123456789abcdef0123456789abcdef.812.1795404079123456.zst";
    put(dir.path(), name, b"\x28\xb5\x2f\xfd");
    put(
        dir.path(),
        "var/crash/_usr_bin_app.0.crash",
        b"ProblemType: Crash\nDate: Thu Nov 26 10:00:28 2026\nExecutablePath: /usr/bin/app\nProcCmdline: app -x\nProcStatus:\n \
          Name:\tapp\n Pid:\t4711\n Uid:\t1000\t1000\t1000\t1000\nSignal: 6\nCoreDump: base64\n Pid: 1\n",
    );
    put(dir.path(), "var/crash/_opt_x.1001.crash", b"ProblemType: Crash\nExecutablePath: /opt/x\nCoreDump: base64\n");
    put(dir.path(), "var/crash/linux-image-6.1.0.crash", b"ProblemType: KernelOops\nDate: Thu Nov 26 10:00:28 2026\n");
    put(dir.path(), "var/crash/package.0.crash", b"ProblemType: Package\nPackage: x\n");
    put(dir.path(), "var/lib/systemd/coredump/core.a.0.b.1.2", b"no ELF header");
    put(
        dir.path(),
        "var/lib/systemd/coredump/core.my\\x20app.0.b.1.1795404079000000.lz4",
        b"\x04\x22\x4d\x18 and so on",
    );
    put(dir.path(), "var/crash/202611230321/vmcore", b"KDUMP");
    put(dir.path(), "var/crash/notes.txt", b"no dump");
    put(dir.path(), "cores/README", b"no dump either");
    put(dir.path(), "var/lib/dpkg/info/app.list", b"/.\n/usr/bin/app\n");
    put(dir.path(), "var/lib/dpkg/status", b"Package: other\nVersion: 9\n\nPackage: app\nStatus: ok\nVersion: 1.2-3\n");
    let sink = Arc::new(MemorySink::default());
    let mut crashes = look(dir.path(), &["/cores/*"], &sink);
    crashes.sort_by(|a, b| (&a.format, a.pid).cmp(&(&b.format, b.pid)));
    let [kernel, other, apport, kdump, escaped, systemd] = crashes.as_slice() else { panic!("{crashes:#?}") };
    let (kernel, other) = if kernel.process.as_deref() == Some("kernel") { (kernel, other) } else { (other, kernel) };
    // The root has no time zone, so 10:00:28 is UTC.
    assert_eq!((kernel.process.as_deref(), kernel.time), (Some("kernel"), Some(1_795_687_228_000_000_000)));
    assert_eq!((other.process.as_deref(), other.user_id), (Some("x"), Some(1001)));
    assert_eq!((apport.pid, apport.user_id, apport.time), (Some(4711), Some(1000), kernel.time));
    assert_eq!((escaped.process.as_deref(), escaped.user_id), (Some("my app"), Some(0)));
    assert_eq!((apport.format.as_str(), apport.signal, apport.process.as_deref()), ("apport", Some(6), Some("app")));
    assert_eq!(apport.package.as_deref(), Some("app 1.2-3"));
    assert_eq!((kdump.format.as_str(), kdump.process.as_deref()), ("kdump", Some("kernel")));
    assert_eq!((systemd.process.as_deref(), systemd.pid, systemd.user_id), (Some("my.app"), Some(812), Some(1000)));
    assert_eq!(systemd.time, Some(1_795_404_079_123_456_000));
}

#[test]
fn cores_are_found_where_an_absolute_core_pattern_puts_them() {
    for (pattern, expected) in [
        ("/var/cores/core.%e.%p", Some("/var/cores/core.*.*")),
        ("/cores/%e%p", Some("/cores/*")),
        ("/cores/%e.%p.core", Some("/cores/*.*.core*")),
        ("/cores/100%%[x]-core", Some("/cores/100%[[]x[]]-core*")),
        ("|/usr/lib/systemd/systemd-coredump %P", None),
        ("core", None),
    ] {
        let glob = formats::glob_of(pattern);
        assert_eq!(glob.as_deref(), expected, "{pattern}");
        assert!(glob.is_none_or(|glob| glob::Pattern::new(&glob).is_ok()), "{pattern}");
    }
    let dir = tempfile::tempdir().expect("temp dir");
    put(dir.path(), "proc/sys/kernel/core_pattern", b"/cores/core.%e.%p\n");
    let mut core = vec![0_u8; 200];
    core[..6].copy_from_slice(b"\x7fELF\x02\x01");
    core[16] = 4;
    put(dir.path(), "cores/core.app.812", &core);
    assert_eq!(look(dir.path(), &[], &Arc::new(MemorySink::default())).len(), 1);
}

#[test]
fn numbers_that_lie_do_no_harm() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut head = vec![0_u8; 200];
    head[..6].copy_from_slice(b"\x7fELF\x02\x01");
    head[16] = 4;
    head[32..40].copy_from_slice(&64_u64.to_le_bytes());
    head[54..56].copy_from_slice(&56_u16.to_le_bytes());
    head[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
    head[64..68].copy_from_slice(&4_u32.to_le_bytes());
    head[72..80].copy_from_slice(&u64::MAX.to_le_bytes());
    head[96..104].copy_from_slice(&u64::MAX.to_le_bytes());
    put(dir.path(), "core", &head);
    head[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    put(dir.path(), "core2", &head);
    let crashes = look(dir.path(), &["/core*"], &Arc::new(MemorySink::default()));
    assert_eq!(crashes.len(), 2);
    assert!(crashes[0].truncated);
}

proptest! {
    #[test]
    fn no_notes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), kind in prop::sample::select(vec![1_u32, 3, 0x4649_4c45])) {
        let mut crash = Crash::default();
        elf::read_notes(&bytes, &mut crash);
        let mut note = Vec::new();
        note.extend_from_slice(&4_u32.to_le_bytes());
        note.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        note.extend_from_slice(&kind.to_le_bytes());
        note.extend_from_slice(b"CORE");
        note.extend_from_slice(&bytes);
        elf::read_notes(&note, &mut crash);
    }
}

#[test]
fn a_dump_is_complete_when_it_stands_still_whatever_its_times_say() {
    let dir = tempfile::tempdir().expect("temp dir");
    put(dir.path(), "core", b"x");
    let path = dir.path().join("core");
    let meta = || rustix::fs::stat(&path).expect("is there");
    let mut growing = Growing::default();
    let look = |growing: &mut Growing, back: Duration| {
        growing.begin();
        for (_, since) in growing.before.values_mut() {
            *since = since.checked_sub(back).expect("the machine runs longer");
        }
        growing.has_settled(&path, &meta())
    };
    let file = File::options().append(true).open(&path).expect("opens");
    file.set_modified(std::time::SystemTime::now() + Duration::from_secs(1 << 30)).expect("sets");
    assert!(!look(&mut growing, Duration::ZERO));
    assert!(!look(&mut growing, SETTLED_AFTER / 4));
    put(dir.path(), "core", b"longer");
    file.set_modified(std::time::SystemTime::now() + Duration::from_secs(1 << 30)).expect("sets");
    assert!(!look(&mut growing, SETTLED_AFTER));
    assert!(look(&mut growing, SETTLED_AFTER), "a time in the future is not a reason never to report");
}

#[test]
fn names_are_unescaped() {
    for (name, expected) in [("my\\x20app", "my app"), ("a\\x2eb\\x2fc", "a.b/c"), ("a\\xzz", "a\\xzz"), ("\\x", "\\x")]
    {
        assert_eq!(formats::unescape(name), expected);
    }
}
