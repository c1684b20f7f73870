//! A workspace and an enrolled agent in a scratch directory, as real processes.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// User and system time of a process so far, fields 14 and 15 of `/proc/PID/stat`.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(')').context("stat has a name")?.1;
    let field = |at: usize| rest.split_whitespace().nth(at).and_then(|text| text.parse::<f64>().ok());
    let ticks = field(11).zip(field(12)).map(|(user, system)| user + system).context("stat has times")?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// Ended by its own id when dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub(crate) struct World {
    dir: tempfile::TempDir,
    serve: Process,
}

fn binary(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.exists() {
        bail!("{} is not there; build it with `cargo build --release --workspace`", path.display());
    }
    Ok(path)
}

impl World {
    /// A workspace that serves, and an agent that is enrolled with this behind its configuration.
    pub(crate) fn new(config: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        let workspace = |arguments: &[&str]| -> Result<Vec<u8>> {
            let output = Command::new(binary("vedette-workspace")?)
                .args(arguments)
                .arg("--dir")
                .arg(at("workspace"))
                .output()?;
            if !output.status.success() {
                bail!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            }
            Ok(output.stdout)
        };
        workspace(&["init", "--geo", "europe"])?;
        workspace(&["org", "add", "bench", "--tier", "free"])?;
        fs::write(at("token"), workspace(&["token", "new", "--org", "bench"])?)?;
        let text = format!("[identity]\ndir = {:?}\n[state]\ndir = {:?}\n{config}", at("identity"), at("state"));
        fs::write(at("vedette.toml"), text)?;
        let serve = start(
            Command::new(binary("vedette-workspace")?)
                .args(["serve", "--listen", "127.0.0.1:0", "--dir"])
                .arg(at("workspace"))
                .arg("--address-file")
                .arg(at("address")),
            &at("workspace.log"),
        )?;
        let began = Instant::now();
        let address = loop {
            if let Ok(address) = fs::read_to_string(at("address")) {
                break address;
            }
            if began.elapsed() > Duration::from_secs(20) {
                bail!("the workspace does not start: {}", fs::read_to_string(at("workspace.log"))?);
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let enrolled = Command::new(binary("vedette")?)
            .args(["enroll", "--workspace", &format!("https://{address}"), "--config"])
            .arg(at("vedette.toml"))
            .arg("--ca")
            .arg(at("workspace/ca.pem"))
            .arg("--token-file")
            .arg(at("token"))
            .output()?;
        if !enrolled.status.success() {
            bail!("{}", String::from_utf8_lossy(&enrolled.stderr));
        }
        Ok(Self { dir, serve })
    }

    pub(crate) fn run(&self) -> Result<Process> {
        let config = self.dir.path().join("vedette.toml");
        start(
            Command::new(binary("vedette")?).args(["run", "--config"]).arg(config),
            &self.dir.path().join("agent.log"),
        )
    }

    /// The agent's status; absent before it answers.
    pub(crate) fn status(&self) -> Result<Option<Value>> {
        let config = self.dir.path().join("vedette.toml");
        let output = Command::new(binary("vedette")?).args(["status", "--json", "--config"]).arg(config).output()?;
        Ok(if output.status.success() { Some(serde_json::from_slice(&output.stdout)?) } else { None })
    }

    /// One JSON object a row.
    pub(crate) fn query(&self, sql: &str) -> Result<String> {
        let output = Command::new(binary("vedette-workspace")?)
            .args(["query", "--log", "error", "--org", "bench", "--format", "json", sql, "--dir"])
            .arg(self.dir.path().join("workspace"))
            .output()?;
        if !output.status.success() {
            bail!("{sql}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    pub(crate) fn serve_cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.serve.id())
    }

    pub(crate) fn landing(&self) -> PathBuf {
        self.dir.path().join("workspace/landing")
    }
}

/// A process that does nothing.
pub(crate) fn sleeper() -> Result<Process> {
    let child = Command::new("sleep").arg("600").stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    Ok(Process(child))
}

fn start(command: &mut Command, log: &Path) -> Result<Process> {
    let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
    Ok(Process(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?))
}
