//! A workspace and an agent in a temporary directory, as real processes.

use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};
use vedette_benches::peer::Peer;

/// The agent's binary.
pub(crate) const VEDETTE: &str = env!("CARGO_BIN_EXE_vedette");

/// The workspace's binary beside it. Built in the same profile if it is absent or outdated, which happens when tests of a
/// single package are run.
pub(crate) fn workspace_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let path = Path::new(VEDETTE).with_file_name("vedette-workspace");
        let release = VEDETTE.contains("/release/").then_some("--release");
        if !path.exists() || is_older_than_its_sources(&path) {
            let mut cargo = Command::new(env!("CARGO"));
            // Variables that cargo set for this test would cause a full rebuild.
            for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO_PKG_")) {
                cargo.env_remove(name);
            }
            for name in ["CARGO", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "LD_LIBRARY_PATH", "OUT_DIR"] {
                cargo.env_remove(name);
            }
            let status =
                cargo.args(["test", "--workspace", "--no-run", "--quiet"]).args(release).current_dir(root()).status();
            assert!(status.is_ok_and(|status| status.success()), "vedette-workspace can be built");
        }
        path
    })
}

/// Whether a source file of the workspace, except tests, is newer than the binary.
fn is_older_than_its_sources(binary: &Path) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let (built, root) = (changed(binary), root());
    let mut dirs: Vec<PathBuf> = ["wire/src", "lake/src", "workspace/src"].map(|dir| root.join(dir)).into();
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())) {
            if path.is_dir() {
                dirs.push(path);
            } else if !path.ends_with("tests.rs") && changed(&path) > built {
                return true;
            }
        }
    }
    false
}

/// The repository. Cargo runs tests in the package's directory; a path from compile time may be of another clone with the same
/// target directory.
pub(crate) fn root() -> PathBuf {
    fs::canonicalize("..").expect("the repository is there")
}

/// Waits until something is true; a watchdog ends a test that would wait for ever.
pub(crate) fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(Duration::from_secs(60), what, look)
}

/// As [`eventually`], with another limit.
pub(crate) fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A process that is killed by its id when dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("log opens");
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("starts"))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends SIGTERM; returns the time until a successful exit.
    pub(crate) fn terminate(&mut self) -> Duration {
        let began = Instant::now();
        let killed = Command::new("kill").arg(self.0.id().to_string()).status();
        assert!(killed.is_ok_and(|status| status.success()));
        let status = eventually("the end of a process", || self.0.try_wait().expect("can be waited for"));
        assert!(status.success(), "{status}");
        began.elapsed()
    }

    /// Sends SIGINT to a program that ends with it.
    pub(crate) fn interrupt(&mut self) {
        let sent = Command::new("kill").args(["-INT", &self.0.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()));
        eventually("the end of a process", || self.0.try_wait().expect("can be waited for"));
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("can be killed");
        self.0.wait().expect("can be waited for");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A workspace with one organization, and a directory for one agent.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) serve: Option<Process>,
}

pub(crate) const ORG: &str = "acme";

impl World {
    /// A new workspace that serves.
    pub(crate) fn new() -> Self {
        Self::with_names(&[])
    }

    /// As `new`, with other names in the server certificate.
    pub(crate) fn with_names(names: &[&str]) -> Self {
        let mut world = Self { dir: tempfile::tempdir().expect("temp dir"), serve: None };
        let mut init = vec!["init", "--geo", "europe"];
        init.extend(names.iter().flat_map(|name| ["--name", name]));
        world.workspace(&init);
        world.workspace(&["org", "add", ORG, "--tier", "free"]);
        fs::create_dir(world.path("log")).expect("makes");
        world.write_config("");
        world.serve("127.0.0.1:0");
        world
    }

    /// A secondary workspace, created with these arguments, that serves.
    pub(crate) fn second(init: &[&str]) -> Self {
        let mut world = Self { dir: tempfile::tempdir().expect("temp dir"), serve: None };
        world.workspace(&[&["init", "--geo", "europe"], init].concat());
        world.serve("127.0.0.1:0");
        world
    }

    /// A simulated agent with this identity directory.
    pub(crate) fn peer(&self, identity: &str) -> Peer {
        Peer::at(&self.path(identity), self.url())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the agent's configuration, with an addition.
    pub(crate) fn write_config(&self, more: &str) {
        let dir = self.dir.path().display();
        let text = format!(
            "[identity]\ndir = \"{dir}/identity\"\n\n[state]\ndir = \"{dir}/state\"\n\n\
             [host]\ncloud = \"off\"\n\n\
             [collectors.syslog]\npaths = [\"{dir}/log/*.log\"]\nstart = \"beginning\"\n{more}"
        );
        fs::write(self.path("vedette.toml"), text).expect("writes");
    }

    /// Serves at an address or a free port.
    pub(crate) fn serve(&mut self, listen: &str) {
        self.serve_with(listen, &[]);
    }

    /// Serves with additional arguments.
    pub(crate) fn serve_with(&mut self, listen: &str, more: &[&str]) {
        self.serve_under(&[], listen, more);
    }

    /// Serves as a child of another program.
    pub(crate) fn serve_under(&mut self, program: &[&str], listen: &str, more: &[&str]) {
        let address = self.path("address");
        drop(fs::remove_file(&address));
        let mut command = match program {
            [] => Command::new(workspace_binary()),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(workspace_binary());
                command
            }
        };
        command.args(["serve", "--listen", listen, "--dir"]).arg(self.path("workspace"));
        command.arg("--address-file").arg(&address).args(more);
        self.serve = Some(Process::start(&mut command, &self.path("workspace.log")));
        eventually("the workspace's address", || fs::read_to_string(&address).ok());
    }

    pub(crate) fn address(&self) -> String {
        fs::read_to_string(self.path("address")).expect("the workspace serves")
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address())
    }

    pub(crate) fn workspace_output(&self, arguments: &[&str]) -> Output {
        let dir = self.path("workspace");
        Command::new(workspace_binary()).args(arguments).arg("--dir").arg(dir).output().expect("runs")
    }

    /// Runs a command of the workspace that must succeed.
    pub(crate) fn workspace(&self, arguments: &[&str]) -> String {
        let output = self.workspace_output(arguments);
        let status = output.status;
        assert!(status.success(), "{arguments:?}: {status}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Runs a query.
    pub(crate) fn query(&self, sql: &str) -> Vec<Value> {
        let answer = self.workspace(&["query", "--log", "error", "--org", ORG, "--format", "json", sql]);
        answer.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
    }

    /// The workspace's ledger, for all collectors.
    pub(crate) fn ledger(&self) -> Vec<Value> {
        let accounts = self.workspace(&["ledger", "--org", ORG, "--format", "json"]);
        accounts.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
    }

    pub(crate) fn count(&self, from: &str) -> u64 {
        self.query(&format!("SELECT count(*) AS n FROM {from}"))[0]["n"].as_u64().expect("a number")
    }

    /// Changes the control store directly; false without python3.
    pub(crate) fn control_sql(&self, sql: &str) -> bool {
        let script = "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit()";
        self.control_store(script, sql).is_ok_and(|output| output.status.success())
    }

    /// Number of rows of the control store in `from`: a table with an optional condition.
    pub(crate) fn control_count(&self, from: &str) -> u64 {
        let script = "import sqlite3,sys; print(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchone()[0])";
        let output = self.control_store(script, &format!("SELECT count(*) FROM {from}")).expect("python3 runs");
        let count = String::from_utf8(output.stdout).expect("UTF-8");
        count.trim().parse().unwrap_or_else(|_| panic!("{from}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    fn control_store(&self, script: &str, sql: &str) -> std::io::Result<Output> {
        let store = self.path("workspace/control.sqlite");
        Command::new("python3").args(["-c", script]).arg(store).arg(sql).output()
    }

    /// Writes a new token to a file.
    pub(crate) fn token(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, self.workspace(&["token", "new", "--org", ORG])).expect("writes");
        path
    }

    pub(crate) fn vedette(&self, arguments: &[&str]) -> Output {
        let config = self.path("vedette.toml");
        Command::new(VEDETTE).args(arguments).arg("--config").arg(config).output().expect("runs")
    }

    /// Enrolls with given parts.
    pub(crate) fn enroll_with(&self, url: &str, ca: &Path, token: &Path) -> Output {
        let (ca, token) = (ca.display().to_string(), token.display().to_string());
        self.vedette(&["enroll", "--workspace", url, "--ca", &ca, "--token-file", &token])
    }

    /// Enrolls.
    pub(crate) fn enroll(&self) {
        let output = self.enroll_with(&self.url(), &self.path("workspace/ca.pem"), &self.token("token"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) fn run(&self) -> Process {
        let mut command = Command::new(VEDETTE);
        command.args(["run", "--config"]).arg(self.path("vedette.toml"));
        Process::start(&mut command, &self.path("agent.log"))
    }

    /// Runs the agent as nobody, since root can read everything.
    pub(crate) fn run_unprivileged(&self) -> Process {
        if rustix::process::getuid().as_raw() != 0 {
            return self.run();
        }
        let (binary, nobody) = (self.path("vedette"), 65_534);
        fs::copy(VEDETTE, &binary).expect("copies");
        // Not the logs: the test decides on their permissions.
        fs::create_dir_all(self.path("state")).expect("makes");
        for path in [self.dir.path().to_owned(), self.path("state"), self.path("identity")] {
            let names = fs::read_dir(&path).expect("lists").filter_map(|entry| Some(entry.ok()?.path()));
            let files = names.filter(|path| path.is_file());
            for path in files.chain([path.clone()]) {
                std::os::unix::fs::chown(path, Some(nobody), Some(nobody)).expect("root may");
            }
        }
        let mut command = Command::new(binary);
        command.args(["run", "--config"]).arg(self.path("vedette.toml"));
        std::os::unix::process::CommandExt::uid(&mut command, nobody);
        std::os::unix::process::CommandExt::gid(&mut command, nobody);
        Process::start(&mut command, &self.path("agent.log"))
    }

    /// A collector's last problem.
    pub(crate) fn last_error(&self, id: &str) -> Option<String> {
        let status = self.status();
        let found = status["collectors"].as_array()?.iter().find(|collector| collector["id"] == id)?;
        found["last_error"].as_str().map(str::to_owned)
    }

    /// Status of the agent, once it answers.
    pub(crate) fn status(&self) -> Value {
        let output = eventually("an answer of the agent", || {
            let output = self.vedette(&["status", "--json"]);
            output.status.success().then_some(output)
        });
        serde_json::from_slice(&output.stdout).expect("one object")
    }

    /// The agent's log so far.
    pub(crate) fn agent_log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    pub(crate) fn append(&self, name: &str, text: &str) {
        use std::io::Write;
        let path = self.path("log").join(name);
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).expect("opens");
        file.write_all(text.as_bytes()).expect("writes");
    }
}

/// Standard error of a command that must fail with a code.
pub(crate) fn refusal(output: &Output, code: i32) -> String {
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{message}{}", String::from_utf8_lossy(&output.stdout));
    message
}
