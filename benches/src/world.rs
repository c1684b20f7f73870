//! A workspace and an enrolled agent in a scratch directory, as real processes.

use crate::peer::Peer;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

/// The agent's organization.
pub const ORG: &str = "bench";
/// Another organization.
const OTHER: &str = "other";

/// User and system time of a process, fields 14 and 15 of `/proc/PID/stat`.
///
/// # Errors
/// There is no such process.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    Ok(time_and_nice(&format!("/proc/{pid}/stat"))?.0)
}

/// User and system time of this process's children that have ended, fields 16 and 17 of `/proc/self/stat`.
///
/// # Errors
/// `/proc` is not mounted.
pub fn children_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let rest = stat.rsplit_once(')').context("/proc/PID/stat has no name")?.1;
    let ticks: Option<f64> = rest.split_whitespace().skip(13).take(2).map(|text| text.parse::<f64>().ok()).sum();
    Ok(ticks.context("/proc/PID/stat has no times")? / rustix::param::clock_ticks_per_second() as f64)
}

/// User and system time, and nice value (field 19), of a process or a thread (proc_pid_stat(5)).
fn time_and_nice(path: &str) -> Result<(f64, i64)> {
    let stat = fs::read_to_string(path)?;
    let rest = stat.rsplit_once(')').context("/proc/PID/stat has no name")?.1;
    let field = |at: usize| rest.split_whitespace().nth(at).and_then(|text| text.parse::<f64>().ok());
    let ticks = field(11).zip(field(12)).map(|(user, system)| user + system).context("/proc/PID/stat has no times")?;
    let nice = field(16).context("/proc/PID/stat has no nice value")?;
    Ok((ticks / rustix::param::clock_ticks_per_second() as f64, nice as i64))
}

/// Resident set of a process, `VmRSS` of `/proc/PID/status` (proc_pid_status(5)).
///
/// # Errors
/// There is no such process.
pub fn rss_bytes(pid: u32) -> Result<u64> {
    of_status(pid, "VmRSS:")
}

/// Peak resident set of a process, `VmHWM` of `/proc/PID/status` (proc_pid_status(5)).
///
/// # Errors
/// There is no such process.
pub fn peak_bytes(pid: u32) -> Result<u64> {
    of_status(pid, "VmHWM:")
}

fn of_status(pid: u32, key: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("status has no {key}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// Killed by its id when dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts a command with its messages in a file.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
        Ok(Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?))
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends SIGKILL and waits.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        drop(self.0.kill());
        self.0.wait()?;
        Ok(())
    }

    /// Sends SIGTERM and waits.
    ///
    /// # Errors
    /// It does not end within 30 s.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.ended(Duration::from_secs(30))?.context("the agent does not end")
    }

    /// Waits for the end, up to a limit.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn ended(&mut self, most: Duration) -> Result<Option<ExitStatus>> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if began.elapsed() >= most {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A workspace, and a directory for an agent.
#[derive(Debug)]
pub struct World {
    dir: tempfile::TempDir,
    serve: Option<Process>,
}

/// Path of a program beside this one.
///
/// # Errors
/// It is not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.exists() {
        bail!("{} is not there; build it with `cargo build --release --workspace`", path.display());
    }
    Ok(path)
}

impl World {
    /// A serving workspace, and an enrolled agent with additional configuration.
    ///
    /// # Errors
    /// A program fails.
    pub fn new(config: &str) -> Result<Self> {
        let world = Self::serving()?;
        world.configure(config)?;
        world.enroll(&format!("https://{}", world.address()?))?;
        Ok(world)
    }

    /// A serving workspace with one organization.
    ///
    /// # Errors
    /// A program fails.
    pub fn serving() -> Result<Self> {
        let mut world = Self { dir: tempfile::tempdir()?, serve: None };
        world.workspace(&["init", "--geo", "europe"])?;
        world.workspace(&["org", "add", ORG, "--tier", "free"])?;
        fs::write(world.path("token"), world.workspace(&["token", "new", "--org", ORG])?)?;
        world.serve("127.0.0.1:0")?;
        Ok(world)
    }

    /// A path in the scratch directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the agent's configuration.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn configure(&self, more: &str) -> Result<()> {
        let (identity, state) = (self.path("identity"), self.path("state"));
        let text = format!("[identity]\ndir = {identity:?}\n[state]\ndir = {state:?}\n[host]\ncloud = \"off\"\n{more}");
        Ok(fs::write(self.path("vedette.toml"), text)?)
    }

    /// Serves at an address, or at a free port.
    ///
    /// # Errors
    /// It does not start within 20 s.
    pub fn serve(&mut self, listen: &str) -> Result<()> {
        self.serve_with(listen, &[])
    }

    /// Serves with additional arguments.
    ///
    /// # Errors
    /// It does not start within 20 s.
    pub fn serve_with(&mut self, listen: &str, more: &[&str]) -> Result<()> {
        drop(fs::remove_file(self.path("address")));
        let mut command = Command::new(binary("vedette-workspace")?);
        command.arg("serve").args(more).args(["--listen", listen, "--dir"]).arg(self.path("workspace"));
        command.arg("--address-file").arg(self.path("address"));
        self.serve = Some(Process::start(&mut command, &self.path("workspace.log"))?);
        let began = Instant::now();
        while self.address().is_err() {
            if began.elapsed() > Duration::from_secs(20) {
                bail!("the workspace does not start: {}", fs::read_to_string(self.path("workspace.log"))?);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Kills the workspace with SIGKILL.
    pub fn stop_serving(&mut self) {
        self.serve = None;
    }

    /// Peak resident set of the workspace since its start.
    ///
    /// # Errors
    /// It does not serve.
    pub fn serve_peak_bytes(&self) -> Result<u64> {
        peak_bytes(self.serve.as_ref().context("the workspace does not run")?.id())
    }

    /// A simulated agent of another organization; `name` is its identity directory.
    ///
    /// # Errors
    /// Messages of the programs.
    pub fn other(&self, name: &str) -> Result<Peer> {
        // It may exist already.
        drop(self.workspace(&["org", "add", OTHER, "--tier", "free"]));
        fs::write(self.path("other-token"), self.workspace(&["token", "new", "--org", OTHER])?)?;
        let (url, set) =
            (format!("https://{}", self.address()?), format!("identity.dir={}", self.path(name).display()));
        self.enroll_with(&url, "other-token", &["--set", &set])?;
        Ok(Peer::at(&self.path(name), url))
    }

    /// Address of the workspace.
    ///
    /// # Errors
    /// It does not serve.
    pub fn address(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path("address"))?)
    }

    /// Enrolls at an URL.
    ///
    /// # Errors
    /// Messages of the agent.
    pub fn enroll(&self, url: &str) -> Result<()> {
        self.enroll_with(url, "token", &[])
    }

    /// Enrolls again with another token; the key stays.
    ///
    /// # Errors
    /// Messages of the agent.
    pub fn enroll_again(&self, url: &str) -> Result<()> {
        fs::write(self.path("token"), self.workspace(&["token", "new", "--org", ORG])?)?;
        self.enroll_with(url, "token", &["--again"])
    }

    fn enroll_with(&self, url: &str, token: &str, more: &[&str]) -> Result<()> {
        let (ca, token) = (self.path("workspace/ca.pem"), self.path(token));
        let enrolled = Command::new(binary("vedette")?)
            .args(["enroll", "--workspace", url, "--config"])
            .arg(self.path("vedette.toml"))
            .arg("--ca")
            .arg(ca)
            .arg("--token-file")
            .arg(token)
            .args(more)
            .output()?;
        if !enrolled.status.success() {
            bail!("{}", String::from_utf8_lossy(&enrolled.stderr));
        }
        Ok(())
    }

    /// Runs the agent.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self) -> Result<Process> {
        self.run_with(&[])
    }

    /// Runs the agent with environment variables.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run_with(&self, variables: &[(&str, &str)]) -> Result<Process> {
        let mut command = Command::new(binary("vedette")?);
        command.args(["run", "--config"]).arg(self.path("vedette.toml")).envs(variables.iter().copied());
        Process::start(&mut command, &self.path("agent.log"))
    }

    /// Runs a command of the agent.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn vedette(&self, arguments: &[&str]) -> Result<Output> {
        let config = self.path("vedette.toml");
        Ok(Command::new(binary("vedette")?).args(arguments).arg("--config").arg(config).output()?)
    }

    /// Status of the agent; absent before it answers.
    ///
    /// # Errors
    /// The answer cannot be read.
    pub fn status(&self) -> Result<Option<Value>> {
        let output = self.vedette(&["status", "--json"])?;
        Ok(if output.status.success() { Some(serde_json::from_slice(&output.stdout)?) } else { None })
    }

    /// Runs a command of the workspace that must succeed.
    ///
    /// # Errors
    /// Its messages.
    pub fn workspace(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(binary("vedette-workspace")?);
        let output = command.args(arguments).arg("--dir").arg(self.path("workspace")).output()?;
        if !output.status.success() {
            bail!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs a query; returns one JSON object per row.
    ///
    /// # Errors
    /// Messages of the workspace.
    pub fn query(&self, sql: &str) -> Result<Vec<Value>> {
        self.query_of(ORG, sql)
    }

    /// Runs a query for the other organization.
    ///
    /// # Errors
    /// Messages of the workspace.
    pub fn query_other(&self, sql: &str) -> Result<Vec<Value>> {
        self.query_of(OTHER, sql)
    }

    fn query_of(&self, organization: &str, sql: &str) -> Result<Vec<Value>> {
        rows(&self.workspace(&["query", "--log", "error", "--org", organization, "--format", "json", sql])?)
    }

    /// The ledger, one account per collector.
    ///
    /// # Errors
    /// Messages of the workspace.
    pub fn ledger(&self) -> Result<Vec<Value>> {
        rows(&self.workspace(&["ledger", "--org", ORG, "--format", "json"])?)
    }

    /// Processor time of the workspace.
    ///
    /// # Errors
    /// It does not serve.
    pub fn serve_cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.serve.as_ref().context("the workspace does not run")?.id())
    }

    /// Processor time of the workspace's low-priority threads, which materialise; ended threads do not count.
    ///
    /// # Errors
    /// It does not serve.
    pub fn materialise_cpu_seconds(&self) -> Result<f64> {
        let pid = self.serve.as_ref().context("the workspace does not run")?.id();
        let mut sum = 0.0;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end meanwhile.
            if let Ok((time, 1..)) = time_and_nice(&task?.path().join("stat").display().to_string()) {
                sum += time;
            }
        }
        Ok(sum)
    }

    /// Directory of the landing store.
    pub fn landing(&self) -> PathBuf {
        self.path("workspace/landing")
    }
}

fn rows(text: &str) -> Result<Vec<Value>> {
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// A process that sleeps.
///
/// # Errors
/// It cannot be started.
pub fn sleeper() -> Result<Process> {
    let child = Command::new("sleep").arg("600").stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    Ok(Process(child))
}
