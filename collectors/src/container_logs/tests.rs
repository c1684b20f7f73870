use super::*;
use crate::{Sink, StopSignal, outlet::store_cursors};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use vedette_wire::{
    Chunk, Position,
    body::{Container, ContainerLog, Stream},
};

fn records(text: &str) -> Vec<(Position, ContainerLog)> {
    let position = Position(100, 100 + text.len() as u64);
    let line =
        Line { bytes: text.trim_end().as_bytes(), whole: text.as_bytes(), position, part: None, unfinished: false };
    lines::records(&line)
}

fn message(record: &ContainerLog) -> String {
    String::from_utf8_lossy(&record.message).into_owned()
}

/// Text and lines of the first record that the tailer takes at once.
fn first_record(text: &str) -> usize {
    let mut pieces = Pieces::default();
    let mut is_first = true;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if pieces.ends_record(line.as_bytes(), is_first) {
            return number + 1;
        }
        is_first = false;
    }
    0
}

#[test]
fn pieces_are_joined_by_stream_and_positions_tile() {
    let text = "2026-11-28T04:00:00.000000001Z stdout P one \n\
                2026-11-28T04:00:00.000000002Z stderr F other\n\
                2026-11-28T05:00:00.000000003+01:00 stdout P two \n\
                2026-11-28T04:00:00.000000004Z stdout F three\n";
    assert_eq!(first_record(text), 4, "the cursor does not pass an open piece");
    let found = records(text);
    let messages: Vec<String> = found.iter().map(|(_, record)| message(record)).collect();
    assert_eq!(messages, ["other", "one two three"]);
    assert_eq!((found[0].0.0, found[0].0.1, found[1].0.0), (100, found[1].0.0, found[0].0.1));
    assert_eq!(found[1].0.1, 100 + text.len() as u64);
    assert_eq!((found[0].1.stream, found[1].1.stream), (Some(Stream::Stderr), Some(Stream::Stdout)));
    assert_eq!(found[1].1.time, Some(1_795_838_400_000_000_001), "the time of the first piece");
    assert!(found.iter().all(|(_, record)| !record.unfinished));
}

#[test]
fn docker_s_lines_are_joined_without_their_ends() {
    let text = concat!(
        r#"{"log":"a \u0001","stream":"stdout","time":"2026-11-28T04:00:00.5Z"}"#,
        "\n",
        r#"{"log":"b\r\n","stream":"stdout","attrs":{"tag":"web"},"time":"2026-11-28T04:00:01Z"}"#,
        "\n",
    );
    assert_eq!(first_record(text), 2);
    let found = records(text);
    assert_eq!((found.len(), message(&found[0].1).as_str()), (1, "a \u{1}b"));
    assert_eq!(found[0].1.time, Some(1_795_838_400_500_000_000));
    let (_, alone) = &records(&text[text.find('\n').expect("two lines") + 1..])[0];
    assert_eq!(alone.attributes.as_deref(), Some(r#"{"tag":"web"}"#));
}

#[test]
fn what_is_in_no_format_is_a_message_of_its_own() {
    for text in [
        "\n",
        "no format\n",
        "{\"log\":1}\n",
        "2026-11-28T04:00:00Z stdout X text\n",
        "2026-11-28T04:00:00Z stdlog F text\n",
        "yesterday stdout F text\n",
        "{\"log\":\"cut",
    ] {
        let found = records(text);
        assert_eq!((found.len(), message(&found[0].1).as_str()), (1, text.trim_end()), "{text}");
        assert_eq!((found[0].1.time, found[0].1.stream), (None, None));
    }
    let empty = &records("2026-11-28T04:00:00Z stdout F\n")[0].1;
    assert_eq!((message(empty).as_str(), empty.stream), ("", Some(Stream::Stdout)));
}

#[test]
fn a_piece_without_an_end_does_not_hold_the_other_stream_for_long() {
    let text = "2026-11-28T04:00:00Z stdout P prompt:\n\
                2026-11-28T04:00:04Z stderr F soon\n\
                2026-11-28T04:00:05.1Z stderr F late\n\
                2026-11-28T04:00:05.2Z stderr F behind\n";
    assert_eq!(first_record(text), 3);
    let found = records(&text[..text.find("2026-11-28T04:00:05.2").expect("is there")]);
    let messages: Vec<_> = found.iter().map(|(_, record)| (message(record), record.unfinished)).collect();
    assert_eq!(
        messages,
        [("prompt:".to_owned(), true), ("soon".to_owned(), false), ("late".to_owned(), false)],
        "in the order of their ends"
    );
}

#[test]
fn a_record_ends_though_the_clock_goes_back_and_after_a_number_of_lines() {
    let back = "2026-11-28T04:00:10Z stdout P prompt:\n2026-11-28T03:59:00Z stderr F text\n";
    assert_eq!(first_record(back), 2);
    let endless = "2026-11-28T04:00:00Z stdout P .\n".repeat(2000);
    assert_eq!(first_record(&endless), 1000);
}

#[test]
fn a_carriage_return_belongs_to_the_end_of_a_line_alone() {
    let text = "2026-11-28T04:00:00Z stdout P 10%\r\n2026-11-28T04:00:00Z stdout F done\r\n";
    assert_eq!(message(&records(text)[0].1), "10%\rdone");
}

#[test]
fn the_text_of_a_long_line_is_no_line_of_its_own() {
    let text = "2026-01-01T00:00:00Z stderr F chosen by the container\n";
    let position = Position(0, text.len() as u64);
    let part = |number| Line {
        bytes: text.as_bytes(),
        whole: text.as_bytes(),
        position,
        part: Some(number),
        unfinished: false,
    };
    let (first, second) = (&lines::records(&part(1))[0].1, &lines::records(&part(2))[0].1);
    assert_eq!((first.stream, second.stream, second.time), (Some(Stream::Stderr), None, None));
    assert_eq!((message(second).as_str(), second.unfinished), (text.trim_end(), false));
}

const ID: &str = "4f1d0ef53c0e4b1e8d3f1f2e3d4c5b6a4f1d0ef53c0e4b1e8d3f1f2e3d4c5b6a";
const OTHER: &str = "aaaa0ef53c0e4b1e8d3f1f2e3d4c5b6a4f1d0ef53c0e4b1e8d3f1f2e3d4c5b6a";

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path.trim_start_matches('/'));
    fs::create_dir_all(path.parent().expect("has one")).expect("makes");
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .expect("writes");
}

fn link(root: &Path, path: &str, target: &str) {
    let path = root.join(path.trim_start_matches('/'));
    fs::create_dir_all(path.parent().expect("has one")).expect("makes");
    symlink(target, path).expect("links");
}

fn context(root: &Path) -> CollectorContext {
    let clock = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        i64::try_from(now.as_nanos()).expect("before 2262")
    };
    CollectorContext::new(root, Arc::new(clock))
}

const POD: &str = "/var/log/pods/shop_web-0_6f1d0ef5-3c0e-4b1e-8d3f-1f2e3d4c5b6a/nginx";

/// A tree as kubelet lays it out, and the file of the container's second run.
fn kubelet(root: &Path) -> String {
    put(root, &format!("{POD}/0.log"), "");
    put(root, &format!("{POD}/1.log"), "");
    link(root, &format!("/var/log/containers/web-0_shop_nginx-{OTHER}.log"), &format!("{POD}/0.log"));
    link(root, &format!("/var/log/containers/web-0_shop_nginx-{ID}.log"), &format!("{POD}/1.log"));
    link(root, "/var/log/containers/web-0_shop_nginx-..x.log", &format!("{POD}/1.log"));
    format!("{POD}/1.log")
}

fn of_pod() -> Container {
    let some = |text: &str| Some(text.to_owned());
    Container {
        id: some(ID),
        name: some("nginx"),
        image: some("registry.example.net/nginx:1.29"),
        namespace: some("shop"),
        pod: some("web-0"),
        pod_uid: some("6f1d0ef5-3c0e-4b1e-8d3f-1f2e3d4c5b6a"),
        restarts: Some(1),
    }
}

#[test]
fn the_container_of_a_pod_s_log_is_found_for_each_runtime() {
    for (path, annotation) in [
        (
            format!("/run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json"),
            "io.kubernetes.cri.image-name",
        ),
        (
            format!("/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json"),
            "io.kubernetes.cri.image-name",
        ),
        (
            format!("/run/containers/storage/overlay-containers/{ID}/userdata/config.json"),
            "io.kubernetes.cri-o.ImageName",
        ),
    ] {
        let dir = tempfile::tempdir().expect("temp dir");
        let log = kubelet(dir.path());
        put(
            dir.path(),
            &path,
            &format!(r#"{{"ociVersion":"1.2.0","annotations":{{"{annotation}":"registry.example.net/nginx:1.29"}}}}"#),
        );
        assert_eq!(*Origins::new(&context(dir.path())).of(&log), of_pod(), "{path}");
    }
}

/// CRI-O copies the annotations of a pod, which its owner writes.
#[test]
fn a_pod_does_not_choose_the_image_that_is_named() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = kubelet(dir.path());
    put(
        dir.path(),
        &format!("/run/containers/storage/overlay-containers/{ID}/userdata/config.json"),
        r#"{"annotations":{"io.kubernetes.cri.image-name":"trusted","io.kubernetes.cri-o.ImageName":"registry.example.net/nginx:1.29"}}"#,
    );
    assert_eq!(*Origins::new(&context(dir.path())).of(&log), of_pod());
}

#[test]
fn docker_s_containers_have_their_name_and_image_and_cri_dockerd_s_their_pod() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = format!("/var/lib/docker/containers/{ID}/{ID}-json.log");
    put(dir.path(), &log, "");
    put(
        dir.path(),
        &format!("/var/lib/docker/containers/{ID}/config.v2.json"),
        r#"{"ID":"x","Name":"/web","Config":{"Image":"registry.example.net/nginx:1.29","Tty":false},"State":{}}"#,
    );
    let alone = Origins::new(&context(dir.path())).of(&log).clone();
    assert_eq!((alone.name.as_deref(), alone.id.as_deref(), alone.pod), (Some("web"), Some(ID), None));
    assert_eq!(alone.image.as_deref(), Some("registry.example.net/nginx:1.29"));
    link(dir.path(), &format!("{POD}/1.log"), &log);
    assert_eq!(*Origins::new(&context(dir.path())).of(&format!("{POD}/1.log")), of_pod());
}

#[test]
fn a_path_in_another_place_gives_no_container_and_a_damaged_configuration_no_image() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = kubelet(dir.path());
    put(
        dir.path(),
        &format!("/run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json"),
        "{\"annotations\":",
    );
    let mut origins = Origins::new(&context(dir.path()));
    assert_eq!(*origins.of(&log), Container { image: None, ..of_pod() });
    for path in ["/srv/app.log", "/var/log/pods/x/y/0.log", "/-json.log", ""] {
        assert_eq!(*origins.of(path), Container::default(), "{path}");
    }
}

#[derive(Default)]
struct MemorySink {
    lines: Mutex<Vec<(String, Position, ContainerLog)>>,
    cursors: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Sink for MemorySink {
    fn put(&self, chunk: Chunk, _: &StopSignal) -> Result<(), CollectError> {
        for record in chunk.decode().expect("records") {
            let Body::ContainerLog(line) = record.body else { panic!("not of a container") };
            self.lines.lock().push((chunk.source.id.clone(), record.position, line));
        }
        assert!(chunk.dropped.is_empty(), "{:?}", chunk.dropped);
        store_cursors(&mut self.cursors.lock(), &chunk);
        Ok(())
    }

    fn has_room(&self, _: &vedette_wire::Source, _: bool) -> bool {
        true
    }

    fn report_problem(&self, _: &'static str, _: String) {}
}

/// The collector on a tree, until it is stopped.
struct Running {
    sink: Arc<MemorySink>,
    signal: StopSignal,
    thread: std::thread::JoinHandle<()>,
}

impl Running {
    fn start(root: &Path, sink: &Arc<MemorySink>) -> Self {
        Self::start_with(root, sink, None)
    }

    /// With a limit of descriptors.
    fn start_with(root: &Path, sink: &Arc<MemorySink>, open_max: Option<usize>) -> Self {
        let mut context = context(root);
        context.cursors = sink.cursors.lock().clone().into_iter().collect();
        let signal = StopSignal::default();
        let outlet = Outlet::new(Arc::clone(sink) as Arc<dyn Sink>, signal.clone());
        let settings = Settings { enabled: true, start: Start::Beginning, ..Settings::default() };
        let thread = std::thread::spawn(move || {
            let mut tailer = tailer(&settings, &context);
            if let Some(open_max) = open_max {
                tailer = tailer.with_open_max(open_max);
            }
            tailer.run(&context, &outlet).expect("no error");
        });
        Self { sink: Arc::clone(sink), signal, thread }
    }

    fn until(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.sink.lines.lock().len() < count && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.sink.lines.lock().iter().map(|(_, _, line)| message(line)).collect()
    }

    fn stop(self) {
        self.signal.stop();
        self.thread.join().expect("no panic");
    }
}

fn line(tag: &str, text: &str) -> String {
    format!("{} stdout {tag} {text}\n", jiff::Timestamp::now())
}

#[test]
fn a_restart_between_two_pieces_and_kubelet_s_rotation_lose_and_repeat_nothing() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = kubelet(dir.path());
    let sink = Arc::new(MemorySink::default());
    let agent = Running::start(dir.path(), &sink);
    put(dir.path(), &log, &(line("F", "whole") + &line("P", "first ")));
    assert_eq!(agent.until(1), ["whole"]);
    agent.stop();
    let agent = Running::start(dir.path(), &sink);
    put(dir.path(), &log, &line("F", "second"));
    assert_eq!(agent.until(2), ["whole", "first second"]);
    agent.stop();
    // Rotated twice while the agent is down: kubelet renames, and compresses all but the last.
    put(dir.path(), &log, &line("F", "before"));
    let path = |name: &str| dir.path().join(POD.trim_start_matches('/')).join(name);
    fs::rename(path("1.log"), path("1.log.20261128-040000")).expect("renames");
    let packed = fs::read(path("1.log.20261128-040000")).expect("reads");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(&packed).expect("compresses");
    fs::File::create(path("1.log.20261128-040000.gz"))
        .and_then(|mut file| file.write_all(&gz.finish()?))
        .expect("writes");
    fs::remove_file(path("1.log.20261128-040000")).expect("removes");
    put(dir.path(), &log, &line("F", "between"));
    fs::rename(path("1.log"), path("1.log.20261128-050000")).expect("renames");
    put(dir.path(), &log, &line("F", "after"));
    let agent = Running::start(dir.path(), &sink);
    let mut found = agent.until(5);
    found.sort();
    assert_eq!(found, ["after", "before", "between", "first second", "whole"]);
    agent.stop();
    let of_pod = |(_, _, line): &(String, Position, ContainerLog)| line.container.pod.as_deref() == Some("web-0");
    assert!(sink.lines.lock().iter().all(of_pod));
}

#[test]
fn a_last_piece_without_an_end_goes_when_the_file_is_quiet() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = kubelet(dir.path());
    let sink = Arc::new(MemorySink::default());
    let agent = Running::start(dir.path(), &sink);
    put(dir.path(), &log, &line("P", "The app is running!"));
    assert_eq!(agent.until(1), ["The app is running!"]);
    assert!(sink.lines.lock()[0].2.unfinished);
    put(dir.path(), &log, &line("F", "more"));
    assert_eq!(agent.until(2), ["The app is running!", "more"]);
    agent.stop();
    let lines = sink.lines.lock();
    assert_eq!(lines[0].1.1, lines[1].1.0, "the positions tile");
}

/// Open records of many containers take no more memory together than a budget; they are emitted before their time.
#[test]
fn open_records_of_many_containers_are_emitted_when_they_take_much_memory() {
    let dir = tempfile::tempdir().expect("temp dir");
    let piece = format!("{} stdout P {}\n", jiff::Timestamp::now(), "x".repeat(16 << 10));
    for number in 0..12 {
        put(dir.path(), &format!("/var/log/pods/a_job-{number}_6f1d/c/0.log"), &piece.repeat(63));
    }
    let (sink, began) = (Arc::new(MemorySink::default()), Instant::now());
    let agent = Running::start(dir.path(), &sink);
    // Eight of a megabyte fit.
    assert!(agent.until(4).len() >= 4 && began.elapsed() < Duration::from_nanos(lines::JOIN_NS.unsigned_abs()));
    assert_eq!(agent.until(12).len(), 12);
    agent.stop();
    assert!(sink.lines.lock().iter().all(|(_, _, line)| line.unfinished && line.message.len() == 63 << 14));
}

/// A file that is closed for lack of descriptors is not read before it grows.
#[test]
fn an_open_record_is_emitted_where_descriptors_are_few() {
    let dir = tempfile::tempdir().expect("temp dir");
    for number in 0..24 {
        let log = format!("/var/log/pods/a_job-{number}_6f1d/c/0.log");
        put(dir.path(), &log, "2026-11-28T04:00:00Z stdout P last words\n");
        let file = fs::File::options().write(true).open(dir.path().join(log.trim_start_matches('/'))).expect("opens");
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600)).expect("sets");
    }
    let sink = Arc::new(MemorySink::default());
    let agent = Running::start_with(dir.path(), &sink, Some(4));
    assert_eq!(agent.until(24).len(), 24);
    agent.stop();
}

#[test]
fn what_kubelet_compresses_just_now_is_no_log() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = kubelet(dir.path());
    let sink = Arc::new(MemorySink::default());
    let agent = Running::start(dir.path(), &sink);
    put(dir.path(), &log, &line("F", "whole"));
    assert_eq!(agent.until(1), ["whole"]);
    agent.stop();
    let path = |name: &str| dir.path().join(POD.trim_start_matches('/')).join(name);
    fs::rename(path("1.log"), path("1.log.20261128-040000")).expect("renames");
    put(dir.path(), &format!("{POD}/1.log.20261128-040000.tmp"), "\u{1f}\u{8b}half of an archive\n");
    put(dir.path(), &log, &line("F", "after"));
    let agent = Running::start(dir.path(), &sink);
    assert_eq!(agent.until(2), ["whole", "after"]);
    put(dir.path(), &log, &line("F", "end"));
    assert_eq!(agent.until(3), ["whole", "after", "end"]);
    agent.stop();
}

#[test]
fn a_log_with_two_names_is_read_once() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = format!("/var/lib/docker/containers/{ID}/{ID}-json.log");
    put(dir.path(), &log, "{\"log\":\"once\\n\",\"stream\":\"stdout\",\"time\":\"2026-11-28T04:00:00Z\"}\n");
    link(dir.path(), &format!("{POD}/1.log"), &log);
    let sink = Arc::new(MemorySink::default());
    let agent = Running::start(dir.path(), &sink);
    assert_eq!(agent.until(1), ["once"]);
    put(dir.path(), &log, "{\"log\":\"twice\\n\",\"stream\":\"stdout\",\"time\":\"2026-11-28T04:00:01Z\"}\n");
    assert_eq!(agent.until(2), ["once", "twice"]);
    agent.stop();
    assert_eq!(sink.lines.lock()[0].2.container.pod.as_deref(), Some("web-0"), "kubelet's name says more");
}
