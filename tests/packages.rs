//! The Debian packages on a booted Debian 12: installation, enrollment, the sandbox, reload, upgrade, removal.
//!
//! The packages are those of this build: `vedette-packaging deb --profile dev`.

use crate::{
    support::{VEDETTE, eventually, root},
    systemd_host::{Host, RootFileSystem},
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// A directory with packages of the agent, in two versions, and of the workspace; absent where they cannot be built.
pub(crate) fn packages() -> Option<&'static Path> {
    static PACKAGES: OnceLock<Option<PathBuf>> = OnceLock::new();
    PACKAGES.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    let has_tool = |tool: &&str| Command::new(tool).arg("--version").output().is_ok();
    if let Some(missing) = ["dpkg-deb", "rpmbuild", "strip"].iter().find(|tool| !has_tool(tool)) {
        println!("skipped: {missing} is not installed");
        return None;
    }
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
    let wanted = [
        ("deb", "vedette", "0.0.9"),
        ("deb", "vedette", "0.1.0"),
        ("rpm", "vedette", "0.1.0"),
        ("deb", "vedette-workspace", "0.1.0"),
    ];
    for (format, package, version) in wanted {
        let done = Command::new(Path::new(VEDETTE).with_file_name("vedette-packaging"))
            .args([format, "--profile", "dev", "--package", package, "--version", version, "--out"])
            .arg(&out)
            .output()
            .expect("cargo test --workspace has built it");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    Some(out)
}

/// A tool that `packaging/tools` installs; absent, with a message, where it did not.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let dirs = Command::new(root().join("packaging/tools")).arg("--path").output().expect("it runs");
    let dirs = String::from_utf8(dirs.stdout).expect("text");
    let found = dirs.trim().split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
    if found.is_none() {
        println!("skipped: {name} is not installed; packaging/tools installs it");
    }
    found
}

/// The agent's image; absent where it cannot be built.
pub(crate) fn image() -> Option<PathBuf> {
    tool("cargo-zigbuild")?;
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image");
    let done = Command::new(Path::new(VEDETTE).with_file_name("vedette-packaging"))
        .args(["image", "--profile", "dev", "--package", "vedette", "--version", "0.1.0", "--out"])
        .arg(&out)
        .output()
        .expect("cargo test --workspace has built it");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Some(out.join("vedette-0.1.0-x86_64.oci.tar"))
}

/// Copies the packages into the root file system of a host.
pub(crate) fn copy_to(root: &Path) {
    let to = root.join("root/packages");
    fs::create_dir_all(&to).expect("makes");
    for entry in fs::read_dir(packages().expect("they were built")).expect("lists").filter_map(Result::ok) {
        if entry.path().extension().is_some_and(|extension| extension == "deb") {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("copies");
        }
    }
}

fn install(package: &str, version: &str) -> String {
    format!("dpkg -i /root/packages/{package}_{version}_amd64.deb 2>&1")
}

/// The packaged unit grants what the collectors that are on by default need, and nothing else.
#[test]
fn the_unit_grants_what_the_collectors_need() {
    let page = fs::read_to_string(root().join("docs/collectors.md")).expect("reads");
    let off_by_default = ["syslog_listener", "container_logs"];
    let rows = page.lines().skip_while(|line| *line != "## Permissions").filter(|line| line.starts_with("| `"));
    let rows = rows.filter(|row| !off_by_default.iter().any(|id| row.starts_with(&format!("| `{id}`"))));
    let needed = rows.map(|row| row.split('|').nth(2).expect("a cell").trim().to_owned());
    let needed: BTreeSet<String> = needed.map(|cell| cell.rsplit(" or ").next().expect("one").to_owned()).collect();
    let unit = fs::read_to_string(root().join("packaging/vedette/vedette.service")).expect("reads");
    for key in ["AmbientCapabilities", "CapabilityBoundingSet"] {
        let granted = unit.lines().find_map(|line| line.strip_prefix(&format!("{key}="))).expect("it is set");
        assert_eq!(granted.split(' ').map(str::to_owned).collect::<BTreeSet<_>>(), needed, "{key}");
    }
}

/// A property of the agent's unit.
fn property(host: &Host, name: &str) -> String {
    host.must(&format!("systemctl show vedette --property={name} --value")).trim().to_owned()
}

#[test]
fn a_host_installs_enrolls_reloads_upgrades_and_removes() {
    if packages().is_none() {
        return;
    }
    let Some(host) = Host::boot_named("host-bookworm", copy_to) else { return };
    a_workspace_is_installed(&host);
    an_agent_is_installed_and_enrolls(&host);
    every_collector_works_in_the_sandbox(&host);
    a_reload_applies_what_changed_and_keeps_what_works(&host);
    a_hang_is_ended_by_the_watchdog(&host);
    an_upgrade_loses_nothing(&host);
    what_is_removed_keeps_its_state_until_it_is_purged(&host);
}

fn workspace(command: &str) -> String {
    format!("runuser -u vedette-workspace -- vedette-workspace {command} --dir /var/lib/vedette-workspace")
}

/// Rows of an answer of the packaged workspace.
fn query(host: &Host, sql: &str) -> Vec<serde_json::Value> {
    let answer = host.must(&workspace(&format!("query --log error --org acme --format json \"{sql}\"")));
    answer.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn a_workspace_is_installed(host: &Host) {
    host.must(&install("vedette-workspace", "0.1.0"));
    host.must(&workspace("init --geo europe"));
    host.must(&workspace("org add acme --tier free"));
    host.must("systemctl start vedette-workspace");
    host.must("systemctl is-active vedette-workspace");
    // Fails if the exposure is above 1.5.
    host.must("systemd-analyze security --no-pager --threshold=15 vedette-workspace.service");
}

fn an_agent_is_installed_and_enrolls(host: &Host) {
    host.must(&install("vedette", "0.0.9"));
    assert_eq!(host.must("systemctl is-enabled vedette").trim(), "enabled");
    assert_eq!(property(host, "ActiveState"), "inactive", "there is nothing to do yet");
    let token = workspace("token new --org acme");
    host.must(&format!("(umask 077; {token} > /etc/vedette/bootstrap/token)"));
    host.must("cp /var/lib/vedette-workspace/ca.pem /etc/vedette/bootstrap/");
    host.must(
        "printf 'workspace = \"https://127.0.0.1:8443\"\\nca = \"ca.pem\"\\ntoken_file = \"token\"\\n' \
         > /etc/vedette/bootstrap/bootstrap.toml",
    );
    // The workspace does not answer at first, and the supervisor waits.
    host.must("systemctl stop vedette-workspace");
    host.must("mkdir -p /run/systemd/system/vedette.service.d");
    host.must("printf '[Service]\\nWatchdogSec=2\\n' > /run/systemd/system/vedette.service.d/test.conf");
    host.must("systemctl daemon-reload && systemctl start vedette");
    let pid = property(host, "MainPID");
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert_eq!((property(host, "MainPID"), property(host, "ActiveState")), (pid, "active".to_owned()));
    host.must("rm -r /run/systemd/system/vedette.service.d && systemctl daemon-reload");
    host.must("systemctl start vedette-workspace");
    eventually("the enrollment", || {
        host.must(&workspace("agents --org acme --format json")).contains("\"active\"").then_some(())
    });
    let left = host.must("ls /etc/vedette/bootstrap");
    assert!(!left.contains("token") && !left.contains("bootstrap.toml"), "{left}");
    // Fails if the exposure is above 3.0.
    host.must("systemd-analyze security --no-pager --threshold=30 vedette.service");
}

fn every_collector_works_in_the_sandbox(host: &Host) {
    let pid = property(host, "MainPID");
    assert_eq!(
        host.must(&format!("stat -c %U /proc/{pid}/cmdline; ps -o user= -p {pid}")).lines().last(),
        Some("vedette")
    );
    host.must("logger -t probe 'through rsyslog and the journal'");
    // A file that root alone can read, and a process of root: both need a capability.
    eventually("every collector", || {
        let report = host.must("vedette status --format json");
        let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
        report["collectors"]
            .as_array()
            .expect("a list")
            .iter()
            .all(|one| {
                let (state, error) = (one["state"].as_str().unwrap_or_default(), &one["last_error"]);
                matches!(state, "running" | "disabled" | "waiting") && (error.is_null() || state == "disabled")
                    || one["id"] == "syslog" && state == "absent"
            })
            .then_some(())
    });
    eventually("the journal", || {
        let found = query(host, "SELECT count(*) AS n FROM journal WHERE app = 'probe'");
        (found[0]["n"].as_u64() > Some(0)).then_some(())
    });
    eventually("processes of root", || {
        let found = query(host, "SELECT path FROM processes WHERE pid = '1'");
        found.iter().any(|row| row["path"].as_str().is_some_and(|path| path.contains("systemd"))).then_some(())
    });
    host.must("vedette status");
    assert!(host.must("vedette check").ends_with(": ok\n"), "the agent has all permissions");
    // Root must not write where the agent's user has to.
    let refused = host.must("vedette queue verify 2>&1 && exit 1; true");
    assert!(refused.contains("runuser -u vedette"), "{refused}");
    // Narrowed to logs.
    host.must("mkdir -p /run/systemd/system/vedette.service.d");
    host.must(
        "printf '[Service]\\nAmbientCapabilities=\\nCapabilityBoundingSet=\\n' \
         > /run/systemd/system/vedette.service.d/test.conf",
    );
    host.must("systemctl daemon-reload && systemctl restart vedette");
    let checked = host.must("vedette check");
    assert!(checked.contains("collector processes: the agent lacks CAP_SYS_PTRACE: executable"), "{checked}");
    assert!(!checked.contains("collector journal"), "a group suffices: {checked}");
    host.must("rm -r /run/systemd/system/vedette.service.d && systemctl daemon-reload && systemctl restart vedette");
    // Members of the group may read the status, others may not.
    let socket = host.must("stat -c '%a %U:%G' /run/vedette /run/vedette/agent.sock");
    assert_eq!(socket.lines().collect::<Vec<_>>(), ["755 vedette:vedette", "660 vedette:vedette"]);
}

fn a_reload_applies_what_changed_and_keeps_what_works(host: &Host) {
    let pid = property(host, "MainPID");
    let logged = |text: &str| {
        let found = host.must(&format!("journalctl -u vedette --no-pager -o cat | grep -c -- '{text}' || true"));
        found.trim() != "0"
    };
    host.must(
        "mkdir -p /etc/vedette/conf.d && printf '[log]\\nlevel = \"debug\"\\n' > /etc/vedette/conf.d/10-log.toml",
    );
    host.must("systemctl reload vedette");
    eventually("the new level", || logged("the new configuration is in force").then_some(()));
    host.must("printf '[collectors.sessions]\\nenabled = false\\n' > /etc/vedette/conf.d/20-sessions.toml");
    host.must("systemctl reload vedette");
    // The command would refuse the wrong configuration; the socket is in its default place.
    let state_of = |id: &str| {
        let report: serde_json::Value =
            serde_json::from_str(&host.must("vedette status --config /dev/null --format json || echo null"))
                .expect("JSON");
        let collectors = report["collectors"].as_array().cloned().unwrap_or_default();
        collectors.into_iter().find(|one| one["id"] == id).map(|one| one["state"].to_string())
    };
    let state = |_: &Host| state_of("sessions");
    eventually("the collector to be off", || (state(host).as_deref() == Some("\"disabled\"")).then_some(()));
    host.must("printf '[collectors.sessions]\\nenabled = maybe\\n' > /etc/vedette/conf.d/20-sessions.toml");
    host.must("systemctl reload vedette");
    eventually("the refusal", || logged("the new configuration is invalid; keeping the current one").then_some(()));
    assert_eq!(state(host).as_deref(), Some("\"disabled\""), "what was in force stays");
    // What cannot be used is found when it is tried: before the queue is open, and behind that.
    for setting in ["dir = \\\"/proc/state\\\"", "socket_dir = \\\"/proc/socket\\\""] {
        let returns = || host.must("journalctl -u vedette -o cat | grep -c 'continuing with the previous one' || true");
        let before = returns();
        host.must(&format!("printf \"[state]\\n{setting}\\n\" > /etc/vedette/conf.d/20-sessions.toml"));
        host.must("systemctl reload vedette");
        eventually("the return", || (returns() != before).then_some(()));
        eventually("what was in force", || (state(host).as_deref() == Some("\"disabled\"")).then_some(()));
    }
    // Files of the system's log are read once the journal is not, and no longer than that.
    host.must("printf '[collectors.journal]\\nenabled = false\\n' > /etc/vedette/conf.d/20-sessions.toml");
    host.must("systemctl reload vedette");
    eventually("the files to be read", || (state_of("syslog").as_deref() == Some("\"running\"")).then_some(()));
    host.must("rm /etc/vedette/conf.d/20-sessions.toml && systemctl reload vedette");
    eventually("the files to be left", || (state_of("syslog").as_deref() == Some("\"absent\"")).then_some(()));
    eventually("the collector to be on", || (state(host).as_deref() == Some("\"running\"")).then_some(()));
    assert_eq!(property(host, "MainPID"), pid, "the process stayed");
}

fn a_hang_is_ended_by_the_watchdog(host: &Host) {
    assert_eq!(property(host, "WatchdogUSec"), "1min");
    host.must("mkdir -p /run/systemd/system/vedette.service.d");
    host.must("printf '[Service]\\nWatchdogSec=2\\n' > /run/systemd/system/vedette.service.d/test.conf");
    host.must("systemctl daemon-reload && systemctl restart vedette");
    let pid = property(host, "MainPID");
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert_eq!(property(host, "MainPID"), pid, "it is fed");
    host.must(&format!("kill -STOP {pid}"));
    eventually("another process", || {
        let now = property(host, "MainPID");
        (now != pid && now != "0" && property(host, "ActiveState") == "active").then_some(())
    });
    host.must("rm -r /run/systemd/system/vedette.service.d && systemctl daemon-reload");
}

fn an_upgrade_loses_nothing(host: &Host) {
    let agent = |host: &Host| host.must("vedette status --format json | grep -o '\"agent\":\"[^\"]*\"'");
    let (before, pid) = (agent(host), property(host, "MainPID"));
    host.must("printf '\\n# ours\\n' >> /etc/vedette/vedette.toml");
    // What waits in the queue goes with it.
    host.must("systemctl stop vedette-workspace && logger -t upgrade 'while nobody receives'");
    eventually("a record in the queue", || {
        let report: serde_json::Value = serde_json::from_str(&host.must("vedette status --format json")).expect("JSON");
        (report["queue"]["batches"].as_u64() > Some(0)).then_some(())
    });
    host.must(&install("vedette", "0.1.0"));
    host.must("systemctl start vedette-workspace");
    eventually("the restart", || (property(host, "ActiveState") == "active").then_some(()));
    assert_ne!(property(host, "MainPID"), pid);
    eventually("the same agent", || {
        (host.must("vedette status --format json || true").contains(before.trim().split('"').nth(3).expect("an id")))
            .then_some(())
    });
    assert!(host.must("cat /etc/vedette/vedette.toml").contains("# ours"), "the administrator's file stays");
    // A second installation changes nothing.
    host.must(&install("vedette", "0.1.0"));
    host.must("systemctl is-active vedette");
    // The administrator's choice outlasts an upgrade.
    host.must("systemctl disable --now vedette");
    host.must(&install("vedette", "0.1.0"));
    assert_eq!(host.must("systemctl is-enabled vedette || true").trim(), "disabled");
    assert_eq!(property(host, "ActiveState"), "inactive");
    host.must("systemctl mask vedette");
    host.must(&install("vedette", "0.1.0"));
    assert_eq!(host.must("systemctl is-enabled vedette || true").trim(), "masked");
    host.must("systemctl unmask vedette && systemctl enable --now vedette");
    eventually("everything to arrive", || {
        let ledger = host.must(&workspace("ledger --org acme --format json"));
        let rows: Vec<serde_json::Value> =
            ledger.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let whole = |row: &serde_json::Value| row["missing"] == 0 && row["repeated"] == 0;
        (!rows.is_empty() && rows.iter().all(whole)).then_some(())
    });
    let arrived = || query(host, "SELECT count(*) AS n FROM journal WHERE app = 'upgrade'")[0]["n"].as_u64();
    eventually("the record", || (arrived() == Some(1)).then_some(()));
    // A queue of a later format is not given to an earlier release, also by way of a removal.
    let format = "/var/lib/vedette/state/queue-format";
    host.must(&format!("echo 3 > {format}"));
    for removal in ["true", "dpkg --remove vedette"] {
        let refused = host.must(&format!("{removal}; {} && exit 1; true", install("vedette", "0.0.9")));
        assert!(refused.contains("is of a newer release"), "{refused}");
    }
    // What the agent's user can write there neither hangs an installation nor shows another file.
    host.must(&format!("rm {format}; runuser -u vedette -- mkfifo {format}"));
    host.must(&install("vedette", "0.1.0"));
    assert_eq!(host.must("dpkg-query -W -f '${Version} ${Status}' vedette"), "0.1.0 install ok installed");
    host.must(&format!("systemctl stop vedette; rm {format}; systemctl start vedette"));
}

fn what_is_removed_keeps_its_state_until_it_is_purged(host: &Host) {
    host.must("dpkg --remove vedette 2>&1");
    host.must(
        "test -e /var/lib/vedette/identity/key.pem && test -e /etc/vedette/vedette.toml && ! test -e /usr/bin/vedette",
    );
    host.must(&format!("{} && systemctl is-active vedette", install("vedette", "0.1.0")));
    host.must("dpkg --purge vedette 2>&1");
    host.must("! test -e /var/lib/vedette && ! test -e /etc/vedette/vedette.toml && ! systemctl is-active vedette");
}

#[test]
fn the_rpm_is_installed_and_removed_with_its_scriptlets() {
    let Some(packages) = packages() else { return };
    let Some(files) = RootFileSystem::mount("host-bookworm") else { return };
    let root = files.root();
    let rpm = |arguments: &[&str]| {
        // Debian's rpm asks for --force-debian where it manages no packages; the dependency on systemd is dpkg's here.
        let mut rpm = Command::new("rpm");
        rpm.arg("--root").arg(&root).args(["--force-debian", "--nodeps"]).args(arguments);
        let done = rpm.output().expect("rpm runs");
        (done.status.success(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
    };
    let package = packages.join("vedette-0.1.0-1.x86_64.rpm").display().to_string();
    let (done, message) = rpm(&["-i", &package]);
    assert!(done && !message.contains("warning"), "{message}");
    let passwd = || fs::read_to_string(root.join("etc/passwd")).expect("reads");
    assert!(passwd().contains("vedette:"), "sysusers made the user");
    let enabled = root.join("etc/systemd/system/multi-user.target.wants/vedette.service");
    assert!(enabled.symlink_metadata().is_ok() && root.join("usr/bin/vedette").exists());
    // The administrator's file stays, and state too.
    fs::write(root.join("etc/vedette/vedette.toml"), "# ours\n").expect("writes");
    fs::create_dir_all(root.join("var/lib/vedette/state")).expect("makes");
    fs::write(root.join("var/lib/vedette/state/queue-format"), "3\n").expect("writes");
    let (done, message) = rpm(&["-U", "--force", &package]);
    assert!(!done && message.contains("is of a newer release"), "{message}");
    fs::write(root.join("var/lib/vedette/state/queue-format"), "2\n").expect("writes");
    let (done, message) = rpm(&["-U", "--force", &package]);
    assert!(done, "{message}");
    assert_eq!(fs::read_to_string(root.join("etc/vedette/vedette.toml")).expect("reads"), "# ours\n");
    let (done, message) = rpm(&["-e", "vedette"]);
    assert!(done, "{message}");
    assert!(enabled.symlink_metadata().is_err() && !root.join("usr/bin/vedette").exists());
    assert!(root.join("var/lib/vedette/state").exists() && passwd().contains("vedette:"));
}
