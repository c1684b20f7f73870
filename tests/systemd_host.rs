//! A booted systemd host: sessions of logind, the journal, and dumps of systemd-coredump, with the real services.
//!
//! The host is a Debian root file system under an overlay, run by systemd-nspawn with its own network. It needs root and what
//! `.ci/prepare-host` installs; otherwise tests print why they are skipped.

use crate::support::{VEDETTE, eventually, workspace_binary};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

/// Where `.ci/prepare-host` puts a root file system.
fn root_file_system(name: &str) -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os("HOME")?).join(".cache/vedette").join(name);
    dir.join(".complete").exists().then_some(dir)
}

/// A root file system that can be changed; unmounted when dropped.
pub(crate) struct RootFileSystem {
    dir: tempfile::TempDir,
}

impl RootFileSystem {
    /// Mounts one; absent, with a message, where that is impossible.
    pub(crate) fn mount(name: &str) -> Option<Self> {
        if rustix::process::getuid().as_raw() != 0 {
            println!("skipped: booting a host needs root");
            return None;
        }
        let Some(base) = root_file_system(name) else {
            println!("skipped: there is no root file system to boot; .ci/run prepares one");
            return None;
        };
        let dir = tempfile::tempdir().expect("temp dir");
        for name in ["upper", "work", "root"] {
            fs::create_dir(dir.path().join(name)).expect("makes");
        }
        let path = |name: &str| dir.path().join(name).display().to_string();
        let options = format!("lowerdir={},upperdir={},workdir={}", base.display(), path("upper"), path("work"));
        let mounted = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options, &path("root")]).status();
        assert!(mounted.is_ok_and(|status| status.success()), "the overlay can be mounted");
        Some(Self { dir })
    }

    /// Its directory on this machine.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }
}

impl Drop for RootFileSystem {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.root()).status());
    }
}

/// A booted host; stopped when dropped.
pub(crate) struct Host {
    _files: RootFileSystem,
    nspawn: Child,
    /// Process id of its systemd on this machine.
    init: String,
}

impl Host {
    /// Boots a host with additions to its root; absent, with a message, where that is impossible.
    pub(crate) fn boot_named(name: &str, prepare: impl FnOnce(&Path)) -> Option<Self> {
        Some(Self::boot(RootFileSystem::mount(name)?, prepare))
    }

    fn boot(files: RootFileSystem, prepare: impl FnOnce(&Path)) -> Self {
        let root = files.root();
        let opt = root.join("opt");
        for binary in [Path::new(VEDETTE), workspace_binary()] {
            fs::copy(binary, opt.join(binary.file_name().expect("has a name"))).expect("copies");
        }
        // kernel.core_pattern is the machine's, not the container's, so the host must not set it at boot.
        let sysctl = root.join("etc/sysctl.d/50-coredump.conf");
        fs::create_dir_all(sysctl.parent().expect("has one")).expect("makes");
        std::os::unix::fs::symlink("/dev/null", sysctl).expect("links");
        prepare(&root);
        let boot = format!(
            "mount -t tmpfs tmpfs /run; exec systemd-nspawn --quiet --register=no --keep-unit -D {root} \
             --machine=vedette-test --private-network -b",
            root = root.display()
        );
        let console = fs::File::create(files.dir.path().join("console")).expect("makes");
        let nspawn = Command::new("unshare")
            .args(["-m", "sh", "-c", &boot])
            .stdin(Stdio::null())
            .stdout(console.try_clone().expect("clones"))
            .stderr(console)
            .spawn()
            .expect("unshare runs");
        let mut host = Self { _files: files, nspawn, init: String::new() };
        // The shell's `mount` is a child for a moment as well.
        host.init = eventually("the host's init", || {
            let is_init = |pid: &String| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "systemd")
            };
            host.children().into_iter().find(is_init)
        });
        eventually("the host's boot", || {
            let state = host.run("systemctl is-system-running");
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            matches!(state.as_str(), "running" | "degraded").then_some(())
        });
        host
    }

    fn children(&self) -> Vec<String> {
        let text = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.nspawn.id())).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// Runs a shell command in it, for at most half a minute.
    fn run(&self, script: &str) -> Output {
        Command::new("nsenter")
            .args(["-t", &self.init, "-a", "timeout", "30", "sh", "-c", script])
            .stdin(Stdio::null())
            .output()
            .expect("nsenter runs")
    }

    pub(crate) fn must(&self, script: &str) -> String {
        let output = self.run(script);
        let said = [output.stdout.clone(), output.stderr].concat();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&said));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a shell command in it; absent if it fails.
    pub(crate) fn try_run(&self, script: &str) -> Option<()> {
        self.run(script).status.success().then_some(())
    }

    pub(crate) fn query(&self, sql: &str) -> Vec<Value> {
        let sql = sql.replace('\'', "'\\''");
        let script =
            format!("/opt/vedette-workspace query --log error --org acme --dir /var/lib/ws --format json '{sql}'");
        self.must(&script).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for child in self.children() {
            drop(Command::new("kill").args(["-9", &child]).status());
        }
        drop(self.nspawn.kill());
        drop(self.nspawn.wait());
    }
}

const CONFIG: &str = "[identity]\ndir = \"/var/lib/vedette/identity\"\n[state]\ndir = \"/var/lib/vedette/state\"\n\
    [collectors.sessions]\nevery = \"1s\"\n[collectors.crash_dumps]\nevery = \"1s\"\n";

#[test]
fn sessions_journal_and_coredumps_of_a_booted_host_arrive() {
    let core_pattern = || fs::read_to_string("/proc/sys/kernel/core_pattern").expect("reads");
    let before = core_pattern();
    let Some(host) = Host::boot_named("host-bookworm", |_| ()) else { return };
    host.must("useradd -m alice && mkdir -p /var/lib/vedette");
    // Without a terminal logind would classify it as a background job.
    host.must("systemd-run --unit=alice --setenv=XDG_SESSION_CLASS=user su -l alice -c 'sleep 1000'");
    host.must(&format!("printf '{}' > /var/lib/vedette/vedette.toml", CONFIG.replace('\n', "\\n")));
    host.must("/opt/vedette-workspace init --dir /var/lib/ws --geo europe");
    host.must("/opt/vedette-workspace org add acme --tier free --dir /var/lib/ws");
    host.must("/opt/vedette-workspace token new --org acme --dir /var/lib/ws > /var/lib/token");
    host.must("systemd-run --unit=ws /opt/vedette-workspace serve --dir /var/lib/ws --listen 127.0.0.1:8443");
    let enroll = "/opt/vedette enroll --config /var/lib/vedette/vedette.toml --workspace https://127.0.0.1:8443 \
                  --ca /var/lib/ws/ca.pem --token-file /var/lib/token";
    eventually("the enrollment", || host.run(enroll).status.success().then_some(()));
    host.must("systemd-run --unit=vedette /opt/vedette run --config /var/lib/vedette/vedette.toml");
    eventually("the session", || {
        let rows = host.query("SELECT \"user\", service, session_source FROM sessions WHERE change = 'snapshot'");
        rows.iter().any(|row| row["user"] == "alice" && row["session_source"] == "logind").then_some(())
    });

    the_journal_arrives_once(&host);
    a_dump_arrives(&host);
    a_new_address_arrives(&host);
    host.must("systemctl stop alice");
    eventually("the log-out", || {
        let rows =
            host.query("SELECT login.\"user\" FROM authentication AS login WHERE kind = 'session' AND activity_id = 2");
        rows.iter().any(|row| row["user"] == "alice").then_some(())
    });
    drop(host);
    assert_eq!(core_pattern(), before, "the machine is as it was");
}

fn the_journal_arrives_once(host: &Host) {
    // Written and queried repeatedly, with restarts of the agent: each once.
    for round in 0..3 {
        host.must(&format!("for n in 1 2 3 4 5; do logger -t probe round {round} line $n; done"));
        if round == 1 {
            host.must("systemctl kill --signal=KILL vedette; systemctl reset-failed vedette");
            host.must("logger -t probe while down");
            host.must("systemd-run --unit=vedette2 /opt/vedette run --config /var/lib/vedette/vedette.toml");
        }
    }
    eventually("the journal's lines", || {
        let row = &host.query("SELECT count(*) AS n, count(DISTINCT message) AS d FROM journal WHERE app = 'probe'")[0];
        let (all, distinct) = (row["n"].as_u64()?, row["d"].as_u64()?);
        assert!(all <= 16, "a line was repeated");
        (all == 16 && distinct == 16).then_some(())
    });
    // The name of a sender that exited before journald looked is unknown; most are known.
    let sql = "SELECT transport, user_id, comm, severity, facility FROM journal WHERE app = 'probe' \
               ORDER BY comm NULLS LAST LIMIT 1";
    let probe = &host.query(sql)[0];
    assert_eq!(
        (&probe["transport"], &probe["user_id"], &probe["comm"]),
        (&"syslog".into(), &0.into(), &"logger".into())
    );
    assert_eq!((&probe["severity"], &probe["facility"]), (&"notice".into(), &"user".into()));
    // rsyslog writes the same lines to /var/log/syslog: they are not read twice, and status says why.
    assert!(host.must("cat /var/log/syslog").contains("while down"));
    assert_eq!(host.query("SELECT count(*) AS n FROM syslog")[0]["n"], 0);
    let status = host.must("/opt/vedette status --config /var/lib/vedette/vedette.toml");
    let message = status.lines().find(|line| line.starts_with("syslog")).expect("has a line");
    assert!(message.contains("absent") && message.contains("journal collector"), "{message}");
}

fn a_dump_arrives(host: &Host) {
    // The machine has its own core_pattern, so systemd-coredump is called as the kernel would, on a live process.
    host.must(
        "sleep 1000 >/dev/null 2>&1 & pid=$!; head -c 100000 /dev/zero | /lib/systemd/systemd-coredump $pid 0 0 11 $(date +%s) \
         18446744073709551615 h1",
    );
    let crash = eventually("the dump", || {
        host.query("SELECT process, signal, path, format, sha256, file FROM crashes").into_iter().next()
    });
    assert_eq!((&crash["process"], &crash["signal"]), (&"sleep".into(), &"SIGSEGV".into()));
    assert_eq!((&crash["path"], &crash["format"]), (&"/usr/bin/sleep".into(), &"systemd-coredump".into()));
    let file = crash["file"].as_str().expect("text");
    let sum = host.must(&format!("sha256sum '{file}'"));
    assert_eq!(crash["sha256"].as_str(), sum.split(' ').next());
}

fn a_new_address_arrives(host: &Host) {
    // The kernel reports a change at once; the next full poll is an hour away.
    host.must("ip addr add 198.51.100.7/24 dev lo");
    eventually("the new address", || {
        let rows = host.query("SELECT change, prefix, interface_kind FROM addresses WHERE address = '198.51.100.7'");
        let row = rows.first()?;
        assert_eq!(
            (&row["change"], &row["prefix"], &row["interface_kind"]),
            (&"start".into(), &24.into(), &"loopback".into())
        );
        Some(())
    });
}
