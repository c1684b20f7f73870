#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

use super::*;
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};
use vedette_wire::body::PrincipalId;

fn collector() -> Processes {
    Processes { snapshot_every: Duration::from_secs(3600), ..Processes::default() }
}

fn this_host() -> CollectorContext {
    CollectorContext::new("/", Arc::new(|| 1))
}

fn poll(collector: &mut Processes) -> Vec<Process> {
    let bodies = collector.poll(&this_host()).expect("reads /proc");
    bodies
        .into_iter()
        .map(|body| if let Body::Process(process) = body { process } else { panic!("{body:?}") })
        .collect()
}

fn of(processes: &[Process], pid: u32) -> Vec<&Process> {
    processes.iter().filter(|process| process.pid == pid).collect()
}

struct Sleeper(Child);

impl Sleeper {
    /// A shell that runs `script` after a line on standard input; it waits for that when this returns.
    fn new(script: &str) -> Self {
        let script = format!("echo ready; read line; {script}");
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().expect("sh runs");
        let mut ready = [0; 6];
        child.stdout.as_mut().expect("piped").read_exact(&mut ready).expect("it says so");
        Self(child)
    }

    fn command_line(&self) -> Vec<u8> {
        std::fs::read(format!("/proc/{}/cmdline", self.0.id())).expect("it runs")
    }

    fn go(&mut self) {
        let before = self.command_line();
        self.0.stdin.as_mut().expect("piped").write_all(b"\n").expect("it reads");
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while self.command_line() == before {
            assert!(std::time::Instant::now() < deadline, "it does not call execve(2)");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn the_snapshot_is_whole_and_this_process_is_in_it() {
    let processes = poll(&mut collector());
    let me = of(&processes, std::process::id());
    assert_eq!(me.len(), 1);
    let me = me[0];
    assert_eq!(me.path.as_deref().map(Path::new), std::env::current_exe().ok().as_deref());
    assert_eq!(me.args, std::env::args().collect::<Vec<_>>());
    assert_eq!(me.cwd.as_deref().map(Path::new), std::env::current_dir().ok().as_deref());
    assert_eq!(me.user.as_ref().map(|user| &user.id), Some(&PrincipalId::Number(rustix::process::getuid().as_raw())));
    assert!(!me.kernel);
    let inode = |name: &str| {
        let meta = std::fs::metadata(format!("/proc/self/ns/{name}")).ok();
        meta.map(|meta| std::os::unix::fs::MetadataExt::ino(&meta))
    };
    assert!(me.namespaces.mnt.is_some());
    let names = ["mnt", "pid", "net", "user"];
    let found = [me.namespaces.mnt, me.namespaces.pid, me.namespaces.net, me.namespaces.user];
    assert_eq!(found, names.map(inode));
    let count = me.snapshot.as_ref().expect("in a snapshot").count;
    assert_eq!(count as usize, processes.len());
    assert!(processes.iter().any(|process| process.pid == 1));
}

#[test]
fn start_exec_under_the_same_pid_and_end_are_noticed_once() {
    let mut collector = collector();
    poll(&mut collector);
    let mut child = Sleeper::new("exec /bin/sleep 60");
    let pid = child.0.id();
    let after = poll(&mut collector);
    let started = of(&after, pid);
    assert_eq!(started.iter().map(|process| process.change).collect::<Vec<_>>(), [Change::Start]);
    assert_eq!(started[0].ppid, std::process::id());
    assert!(of(&poll(&mut collector), pid).is_empty(), "nothing changed");
    child.go();
    let after = poll(&mut collector);
    let changed = of(&after, pid);
    assert_eq!(changed.iter().map(|process| process.change).collect::<Vec<_>>(), [Change::Change]);
    assert_eq!(changed[0].args, ["/bin/sleep", "60"]);
    drop(child);
    let after = poll(&mut collector);
    let ended = of(&after, pid);
    assert_eq!(ended.iter().map(|process| process.change).collect::<Vec<_>>(), [Change::End]);
    assert_eq!(ended[0].args, ["/bin/sleep", "60"]);
    assert!(of(&poll(&mut collector), pid).is_empty());
}

#[test]
fn an_exec_of_the_same_program_is_noticed() {
    let mut collector = collector();
    let mut child = Sleeper::new("exec /bin/sh -c 'read line'");
    let pid = child.0.id();
    poll(&mut collector);
    child.go();
    let after = poll(&mut collector);
    let changed = of(&after, pid);
    assert_eq!(changed.iter().map(|process| process.change).collect::<Vec<_>>(), [Change::Change]);
    assert_eq!(changed[0].args, ["/bin/sh", "-c", "read line"]);
}

#[test]
fn what_started_or_ended_just_before_a_snapshot_is_told_as_well() {
    let mut collector = Processes { snapshot_every: Duration::ZERO, ..Processes::default() };
    let first = poll(&mut collector);
    assert!(first.iter().all(|process| process.change == Change::Snapshot), "before the first look nothing changed");
    let child = Sleeper::new("exec /bin/sleep 60");
    let pid = child.0.id();
    let changes = |processes: &[Process]| of(processes, pid).iter().map(|process| process.change).collect::<Vec<_>>();
    let after = poll(&mut collector);
    assert_eq!(changes(&after), [Change::Start, Change::Snapshot]);
    let count = of(&after, pid)[1].snapshot.as_ref().expect("in a snapshot").count as usize;
    assert_eq!(count, after.iter().filter(|process| process.change == Change::Snapshot).count());
    drop(child);
    assert_eq!(changes(&poll(&mut collector)), [Change::End]);
}

#[test]
fn a_very_long_command_line_is_cut_and_says_so() {
    let long = "x".repeat(100_000);
    let child =
        Command::new("/bin/sh").args(["-c", "read line", &long]).stdin(Stdio::piped()).spawn().expect("sh runs");
    let child = Sleeper(child);
    let mut collector = collector();
    let seen = poll(&mut collector);
    let process = of(&seen, child.0.id())[0].clone();
    assert!(process.args_cut && process.args[1..3] == ["-c", "read line"], "{:?}", &process.args[..3]);
    assert!(process.args.iter().map(String::len).sum::<usize>() <= 16 << 10);
    let pid = child.0.id();
    drop(child);
    let ended = of(&poll(&mut collector), pid)[0].clone();
    assert_eq!((ended.change, ended.args_cut, ended.args.len()), (Change::End, true, 3));
}

#[test]
fn the_full_state_can_be_rebuilt_from_snapshot_and_changes() {
    let mut collector = collector();
    let mut state: BTreeMap<u32, String> = BTreeMap::new();
    let mut children: Vec<Sleeper> = Vec::new();
    for round in 0..6 {
        for process in poll(&mut collector) {
            match process.change {
                Change::End => {
                    if state.get(&process.pid) == Some(&process.uid) {
                        state.remove(&process.pid);
                    }
                }
                _ => drop(state.insert(process.pid, process.uid)),
            }
        }
        let alive: Vec<u32> = children.iter().map(|child| child.0.id()).collect();
        for pid in &alive {
            assert!(state.contains_key(pid), "round {round}: {pid} is missing");
        }
        if round % 2 == 0 {
            children.push(Sleeper::new("exec /bin/sleep 60"));
        } else {
            let pid = children[0].0.id();
            drop(children.remove(0));
            let after = poll(&mut collector);
            assert_eq!(of(&after, pid)[0].change, Change::End);
            state.remove(&pid);
        }
    }
}

#[test]
fn a_fixture_without_processes_gives_none_and_broken_ones_are_left_out() {
    let dir = tempfile::tempdir().expect("temp dir");
    for (path, text) in [
        ("proc/stat", "btime 5\n"),
        ("proc/7/stat", "7 (a) b) (c) S 1 7 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 300 0 0 0 1 2 3\n"),
        ("proc/7/status", "Uid:\t0\t0\t0\t0\n"),
        ("proc/8/stat", "8 (truncated"),
        ("proc/9/stat", ""),
        ("proc/self/stat", "7 (no) S 1"),
        ("etc/passwd", "root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/root:/bin/sh\n"),
    ] {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("has one")).expect("makes");
        std::fs::write(path, text).expect("writes");
    }
    let context = CollectorContext { root: dir.path().to_owned(), ..this_host() };
    let bodies = collector().poll(&context).expect("reads");
    let [Body::Process(process)] = bodies.as_slice() else { panic!("{bodies:?}") };
    assert_eq!((process.pid, process.name.as_str(), process.ppid), (7, "a) b) (c", 1));
    assert_eq!(process.session, Some(9));
    assert_eq!(process.user.as_ref().and_then(|user| user.name.as_deref()), Some("root"));
    assert!(process.started.expect("has a start") > 5_000_000_000);
    assert_eq!((process.path.as_ref(), process.cwd.as_ref()), (None, None));
}
