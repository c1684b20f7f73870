//! A booted host: a root file system of a distribution under an overlay, run by systemd-nspawn(1) in a network namespace whose cable
//! ends on this machine. One at a time: two would share their control groups, and `systemctl kill` fails in both.

use crate::eventually;
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// Size of the volume with the agent's state.
const STATE_VOLUME: &str = "192M";

pub(crate) struct Host {
    dir: tempfile::TempDir,
    nspawn: Child,
    /// Process id of its systemd on this machine.
    init: String,
    /// Network namespace, and this machine's end of its cable.
    namespace: String,
    cable: String,
    pub(crate) boot_time: Duration,
}

/// Runs a command of this machine.
pub(crate) fn on_machine(command: &str) -> Result<String> {
    let output = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Host {
    /// Boots a host.
    pub(crate) fn boot(base: &Path) -> Result<Self> {
        let began = Instant::now();
        let dir = tempfile::tempdir()?;
        for name in ["upper", "work", "root"] {
            fs::create_dir(dir.path().join(name))?;
        }
        let at = dir.path().display().to_string();
        let root = dir.path().join("root");
        on_machine(&format!(
            "mount -t overlay overlay -o lowerdir={},upperdir={at}/upper,workdir={at}/work {at}/root",
            base.display()
        ))?;
        // kernel.core_pattern is the machine's, so the host must not set it at boot.
        fs::create_dir_all(root.join("etc/sysctl.d"))?;
        std::os::unix::fs::symlink("/dev/null", root.join("etc/sysctl.d/50-coredump.conf"))?;
        fs::create_dir_all(root.join("var/log/journal"))?;
        // Thousands of lines within a second are not an accident here.
        fs::create_dir_all(root.join("etc/systemd/journald.conf.d"))?;
        fs::write(root.join("etc/systemd/journald.conf.d/hosts.conf"), "[Journal]\nRateLimitIntervalSec=0\n")?;
        // A volume of its own, so that it can be filled.
        on_machine(&format!(
            "truncate -s {STATE_VOLUME} {at}/state && mkfs.ext4 -q {at}/state && mkdir -p {at}/root/var/lib/vedette && \
             mount -o loop {at}/state {at}/root/var/lib/vedette && rmdir {at}/root/var/lib/vedette/lost+found"
        ))?;
        let number = std::process::id() % 200;
        let (namespace, cable) = (format!("vedette-host-{number}"), format!("vdh{number}"));
        on_machine(&format!(
            "ip netns add {namespace} && ip link add {cable} type veth peer name host0 netns {namespace} && \
             ip addr add 10.214.{number}.1/24 dev {cable} && ip link set {cable} up && \
             ip -n {namespace} addr add 10.214.{number}.2/24 dev host0 && ip -n {namespace} link set host0 up && \
             ip -n {namespace} link set lo up"
        ))?;
        let nspawn = start(dir.path(), &namespace)?;
        let mut host = Self { dir, nspawn, init: String::new(), namespace, cable, boot_time: Duration::ZERO };
        host.wait_for_boot()?;
        host.boot_time = began.elapsed();
        Ok(host)
    }

    /// Reboots it.
    pub(crate) fn reboot(&mut self) -> Result<()> {
        self.must("systemctl --no-block reboot")?;
        // systemd-nspawn ends with a status that asks its service manager for another start.
        eventually("the end of the host", || Ok(self.nspawn.try_wait()?))?;
        self.nspawn = start(self.dir.path(), &self.namespace)?;
        self.wait_for_boot()
    }

    /// Waits until systemd has booted.
    fn wait_for_boot(&mut self) -> Result<()> {
        let nspawn = self.nspawn.id();
        let is_init =
            |pid: &String| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "systemd");
        self.init = eventually("the host's init", || {
            let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children"))?;
            Ok(children.split_whitespace().map(str::to_owned).find(is_init))
        })?;
        eventually("the host's boot", || {
            let state = self.run("systemctl is-system-running", 30)?;
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            Ok(matches!(state.as_str(), "running" | "degraded").then_some(()))
        })
    }

    /// Process id of its systemd on this machine.
    pub(crate) fn init(&self) -> &str {
        &self.init
    }

    /// Its root directory on this machine.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// This machine's end of the cable, and its address.
    pub(crate) fn cable(&self) -> &str {
        &self.cable
    }

    pub(crate) fn machine_address(&self) -> String {
        format!("10.214.{}.1", self.cable.trim_start_matches("vdh"))
    }

    /// Runs a shell command in it, for at most a number of seconds.
    fn run(&self, script: &str, seconds: u64) -> Result<Output> {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init, "-a", "timeout", &seconds.to_string(), "sh", "-c", script]);
        Ok(command.stdin(Stdio::null()).output()?)
    }

    /// Runs a shell command in it; its standard output.
    pub(crate) fn must(&self, script: &str) -> Result<String> {
        self.must_within(script, 60)
    }

    pub(crate) fn must_within(&self, script: &str, seconds: u64) -> Result<String> {
        let output = self.run(script, seconds)?;
        let text = String::from_utf8_lossy(&[output.stdout.clone(), output.stderr].concat()).trim().to_owned();
        if !output.status.success() {
            bail!("{script}: {text} ({})", output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A property of the agent's unit.
    pub(crate) fn property(&self, name: &str) -> Result<String> {
        Ok(self.must(&format!("systemctl show vedette --property={name} --value"))?.trim().to_owned())
    }

    /// The agent's status.
    pub(crate) fn status(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.must("vedette status --format json")?)?)
    }

    /// Writes lines `TAG 1` to `TAG COUNT`, one message each, with the tag as their program.
    pub(crate) fn log(&self, tag: &str, count: u64) -> Result<()> {
        self.must_within(&format!("seq -f '{tag} %.0f' 1 {count} | logger -t {tag}"), 300).map(drop)
    }

    /// Number of lines of a program that its syslog daemon wrote: journald forwards no more than the daemon takes.
    pub(crate) fn lines_in_syslog(&self, tag: &str) -> Result<u64> {
        // The daemon writes what it has received.
        std::thread::sleep(Duration::from_secs(1));
        let count = self.must(&format!("zgrep -hE ' {tag}(\\[[0-9]+\\])?: {tag} ' /var/log/syslog* | wc -l"))?;
        Ok(count.trim().parse()?)
    }

    /// Starts a writer of lines as a unit.
    pub(crate) fn log_slowly(&self, tag: &str, count: u64, pause: &str) -> Result<()> {
        self.must(&format!(
            "systemd-run --quiet --unit={tag} sh -c 'for n in $(seq 1 {count}); do echo {tag} $n; sleep {pause}; done | logger -t {tag}'"
        ))
        .map(drop)
    }

    pub(crate) fn name(&self) -> Result<String> {
        let text = self.must(". /etc/os-release; echo $PRETTY_NAME")?;
        Ok(text.trim().to_owned())
    }

    pub(crate) fn systemd(&self) -> Result<String> {
        let text = self.must("systemctl --version | head -1")?;
        Ok(text.split_whitespace().nth(1).context("a version")?.to_owned())
    }

    /// What a person would look at first.
    pub(crate) fn diagnosis(&self) -> String {
        let commands = "vedette status 2>&1 | head -40; journalctl -u vedette --no-pager -o cat | tail -15; systemctl --failed --no-pager";
        self.must(commands).unwrap_or_else(|err| err.to_string())
    }
}

/// Starts systemd-nspawn in a network namespace.
fn start(dir: &Path, namespace: &str) -> Result<Child> {
    let console = fs::OpenOptions::new().create(true).append(true).open(dir.join("console"))?;
    let boot = format!(
        "mount -t tmpfs tmpfs /run; exec systemd-nspawn --quiet --register=no --keep-unit -D {}/root --machine=host -b",
        dir.display()
    );
    // ip-netns(8) would mount another /sys, without the control groups.
    let nspawn = Command::new("nsenter")
        .args([&format!("--net=/run/netns/{namespace}"), "unshare", "-m", "sh", "-c", &boot])
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console)
        .spawn()?;
    Ok(nspawn)
}

impl Drop for Host {
    fn drop(&mut self) {
        if !self.init.is_empty() {
            drop(Command::new("kill").args(["-9", &self.init]).status());
        }
        drop(self.nspawn.kill());
        drop(self.nspawn.wait());
        let root = self.root();
        for path in [root.join("var/lib/vedette"), root] {
            drop(Command::new("umount").arg("-l").arg(path).status());
        }
        drop(Command::new("ip").args(["netns", "del", &self.namespace]).status());
        drop(Command::new("ip").args(["link", "del", &self.cable]).stderr(Stdio::null()).status());
    }
}
