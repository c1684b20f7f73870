//! The agent's image as a container on a booted host: what the daemonset gives it, run by crun(1).
//!
//! The container has its own mount, process, host name and IPC namespaces and the node's network, the host's root at `/host`
//! read-only, a state directory of the node, and the two capabilities of its program's file.

use crate::{
    packages,
    support::{eventually, root},
    systemd_host::Host,
};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};

/// User and group of the image.
const USER: u32 = 65532;
const WORKSPACE: &str = "/opt/vedette-workspace";
const CONTAINER_ID: &str = "4f1d0ef53c0e4b1e8d3f1f2e3d4c5b6a4f1d0ef53c0e4b1e8d3f1f2e3d4c5b6a";
const POD: &str = "/var/log/pods/shop_web-0_6f1d0ef5-3c0e-4b1e-8d3f-1f2e3d4c5b6a/nginx";

fn done(command: &mut Command) {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Unpacks the image into a bundle for an OCI runtime below a host's root; absent where the tools are missing.
fn unpack(bundle: &Path) -> Option<()> {
    let has = |tool: &&str| Command::new(tool).arg("--version").output().is_ok();
    if let Some(missing) = ["skopeo", "umoci"].iter().find(|tool| !has(tool)) {
        println!("skipped: {missing} is not installed");
        return None;
    }
    let image = packages::image()?;
    let dir = tempfile::tempdir().expect("temp dir");
    let layout = dir.path().join("layout");
    let from = format!("oci-archive:{}", image.display());
    done(Command::new("skopeo").args(["--insecure-policy", "copy", &from, &format!("oci:{}:i", layout.display())]));
    done(Command::new("umoci").args(["unpack", "--image"]).arg(format!("{}:i", layout.display())).arg(bundle));
    Some(())
}

/// The runtime's configuration as the daemonset's pod asks for it.
fn configure(bundle: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let text = fs::read_to_string(bundle.join("config.json")).expect("umoci wrote it");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    let process = &mut config["process"];
    process["terminal"] = false.into();
    process["noNewPrivileges"] = false.into();
    process.as_object_mut().expect("an object").remove("rlimits");
    let bounding = ["CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE"];
    process["capabilities"] =
        json!({"bounding": bounding, "effective": [], "permitted": [], "inheritable": [], "ambient": []});
    config["root"]["readonly"] = true.into();
    config["hostname"] = "vedette-x7k2p".into();
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    config["linux"] = json!({"namespaces": namespaces});
    let bind = |from: &str, to: &str, options: &[&str]| {
        let options: Vec<&str> = ["rbind"].iter().chain(options).copied().collect();
        json!({"destination": to, "source": from, "type": "bind", "options": options})
    };
    let mounts = config["mounts"].as_array_mut().expect("a list");
    mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    mounts.extend([
        bind("/", "/host", &["ro", "rslave"]),
        bind("/var/lib/vedette-node", "/var/lib/vedette", &["rw"]),
        bind("/srv/bootstrap", "/etc/vedette/bootstrap", &["ro"]),
        bind("/srv/conf.d", "/etc/vedette/conf.d", &["ro"]),
        json!({"destination": "/run/vedette", "source": "tmpfs", "type": "tmpfs", "options": ["mode=1777", "size=1m"]}),
    ]);
    change(&mut config);
    let file = bundle.join(name);
    fs::write(file, config.to_string()).expect("writes");
}

fn crun(command: &str) -> String {
    format!("crun --cgroup-manager=disabled {command}")
}

fn start(host: &Host, id: &str) {
    // As kubelet prepares a node: the init container runs as root with CAP_CHOWN alone.
    host.must(&crun(&format!("run --no-new-keyring --bundle /opt/bundle --config /opt/bundle/state.json {id}-state")));
    host.must(&format!(
        "systemd-run --unit={id} {}",
        crun(&format!("run --no-new-keyring --bundle /opt/bundle --config /opt/bundle/agent.json {id}"))
    ));
}

fn query(host: &Host, sql: &str) -> Vec<Value> {
    host.query(sql)
}

fn agents(host: &Host) -> Vec<Value> {
    let list = host.must(&format!("{WORKSPACE} agents --org acme --format json --dir /var/lib/ws"));
    list.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn the_image_observes_the_host_that_it_runs_on() {
    let mut unpacked = None;
    let prepare = |host: &Path| {
        let bundle = host.join("opt/bundle");
        unpacked = unpack(&bundle);
        if unpacked.is_none() {
            return;
        }
        configure(&bundle, "agent.json", |_| ());
        configure(&bundle, "state.json", |config| {
            let process = &mut config["process"];
            process["user"] = json!({"uid": 0, "gid": 0});
            process["args"] =
                json!(["/usr/bin/vedette", "create-state", "--owner", "65532:65532", "--set", "host.root=/"]);
            let capabilities = ["CAP_CHOWN"];
            process["capabilities"] =
                json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
        });
        kubelet(host);
    };
    let Some(host) = Host::boot_named("host-bookworm", prepare) else { return };
    if unpacked.is_none() {
        return;
    }
    a_workspace_listens(&host);
    start(&host, "pod-one");
    eventually("the enrollment", || (agents(&host).first()?["state"] == "active").then_some(()));
    the_host_is_seen_not_the_container(&host);
    it_is_not_root(&host);
    container_logs_have_their_pod(&host);
    it_stays_the_same_agent(&host);
}

/// A node as kubelet and containerd lay it out, with a container that has written a line.
fn kubelet(host: &Path) {
    let put = |path: &str, text: &str| {
        let path = host.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().expect("has one")).expect("makes");
        fs::write(path, text).expect("writes");
    };
    put(&format!("{POD}/0.log"), "");
    fs::create_dir_all(host.join("var/log/containers")).expect("makes");
    let link = host.join(format!("var/log/containers/web-0_shop_nginx-{CONTAINER_ID}.log"));
    std::os::unix::fs::symlink(format!("{POD}/0.log"), link).expect("links");
    put(
        "/srv/conf.d/10-chart.toml",
        "[collectors.container_logs]\nenabled = true\nstart = \"beginning\"\n[collectors.processes]\nevery = \"1s\"\n",
    );
    put("/srv/bootstrap/.keep", "");
    fs::create_dir_all(host.join("var/lib/vedette-node")).expect("makes");
}

fn a_workspace_listens(host: &Host) {
    host.must(&format!("{WORKSPACE} init --dir /var/lib/ws --geo europe"));
    host.must(&format!("{WORKSPACE} init --if-missing --dir /var/lib/ws --geo europe"));
    host.must(&format!("{WORKSPACE} org add acme --tier free --dir /var/lib/ws"));
    host.must(&format!("systemd-run --unit=ws {WORKSPACE} serve --dir /var/lib/ws --listen 127.0.0.1:8443"));
    host.must(&format!("{WORKSPACE} token new --org acme --uses 5 --dir /var/lib/ws > /srv/bootstrap/token"));
    host.must(&format!("{WORKSPACE} ca --dir /var/lib/ws > /srv/bootstrap/ca.pem"));
    // The ConfigMap of the chart.
    let manifests = fs::read_to_string(root().join("packaging/kubernetes/vedette.yaml")).expect("reads");
    let lines = manifests.lines().skip_while(|line| line.trim() != "bootstrap.toml: |").skip(1);
    let text: String =
        lines.take_while(|line| line.starts_with("    ")).map(|line| format!("{}\n", line.trim())).collect();
    let text = text.replace("https://workspace.example.net:8443", "https://127.0.0.1:8443");
    assert!(text.contains("token_file = \"token\""), "{text}");
    host.must(&format!("printf '{}' > /srv/bootstrap/bootstrap.toml", text.replace('\n', "\\n")));
    // As kubelet mounts a secret for the pod's group.
    host.must(&format!("chgrp {USER} /srv/bootstrap/* && chmod 0440 /srv/bootstrap/*"));
    host.must(&format!(
        "mkdir -p /run/containerd/io.containerd.runtime.v2.task/k8s.io/{CONTAINER_ID} && chmod 0700 /run/containerd && \
         printf '{{\"annotations\":{{\"io.kubernetes.cri.image-name\":\"registry.example.net/nginx:1.29\"}}}}' \
         > /run/containerd/io.containerd.runtime.v2.task/k8s.io/{CONTAINER_ID}/config.json"
    ));
}

fn the_host_is_seen_not_the_container(host: &Host) {
    host.must("useradd -u 4242 carol && logger -t probe 'journal of the host'");
    host.must("systemd-run --unit=carol --uid=carol sleep 1000");
    let name = host.must("hostname").trim().to_owned();
    let machine = host.must("cat /etc/machine-id").trim().to_owned();
    let facts =
        eventually("the host's facts", || query(host, "SELECT hostname, machine_id FROM hosts").into_iter().next());
    assert_eq!((facts["hostname"].as_str(), facts["machine_id"].as_str()), (Some(&*name), Some(&*machine)));
    eventually("a process of a user of the host", || {
        let rows = query(host, "SELECT \"user\", path FROM processes WHERE name = 'sleep'");
        rows.iter().any(|row| row["user"] == "carol" && row["path"] == "/usr/bin/sleep").then_some(())
    });
    eventually("the journal", || {
        let rows = query(host, "SELECT count(*) AS n FROM journal WHERE app = 'probe'");
        (rows[0]["n"].as_u64() == Some(1)).then_some(())
    });
    // systemd-coredump is called as the kernel would call it, on a live process.
    host.must(
        "sleep 1000 >/dev/null 2>&1 & pid=$!; head -c 100000 /dev/zero | /lib/systemd/systemd-coredump $pid 0 0 11 $(date +%s) \
         18446744073709551615 h1",
    );
    let crash = eventually("the dump", || query(host, "SELECT process, sha256 FROM crashes").into_iter().next());
    assert!(crash["process"] == "sleep" && crash["sha256"].is_string(), "{crash}");
}

fn it_is_not_root(host: &Host) {
    let status = host.must(&crun("exec --user 65532:65532 pod-one /usr/bin/vedette status --format json"));
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let enabled = |collector: &&Value| collector["state"] != "disabled";
    for collector in status["collectors"].as_array().expect("a list").iter().filter(enabled) {
        assert!(collector["missing_permissions"].as_array().is_none_or(Vec::is_empty), "{collector}");
    }
    host.must(&crun("exec --user 65532:65532 pod-one /usr/bin/vedette health"));
    let pid = host.must(&format!("{} | grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*'", crun("state pod-one")));
    let facts = host.must(&format!("cat /proc/{}/status", pid.trim()));
    let field =
        |name: &str| facts.lines().find_map(|line| line.strip_prefix(name)).expect("is there").trim().to_owned();
    assert_eq!(field("Uid:"), ["65532"; 4].join("\t"));
    assert_eq!((field("CapEff:"), field("CapBnd:")), ("0000000000080004".to_owned(), "0000000000080004".to_owned()));
    // With no capability at all it starts, and says what it lacks: `docker run` without options.
    let none = "sed 's/\"CAP_DAC_READ_SEARCH\",\"CAP_SYS_PTRACE\"//' /opt/bundle/agent.json \
                | sed 's/\"args\":\\[[^]]*\\]/\"args\":[\"\\/usr\\/bin\\/vedette\",\"check\",\"--set\",\"state.socket_dir=\\/tmp\"]/' > /opt/bundle/none.json";
    host.must(none);
    let checked = host.must(&crun("run --no-new-keyring --bundle /opt/bundle --config /opt/bundle/none.json without"));
    assert!(checked.contains("this user lacks CAP_SYS_PTRACE"), "{checked}");
}

fn container_logs_have_their_pod(host: &Host) {
    host.must(&format!(
        "stamp=$(date -u +%Y-%m-%dT%H:%M:%S.%NZ); printf '%s stdout P first \\n%s stdout F second\\n' $stamp $stamp >> {POD}/0.log"
    ));
    let line = eventually("the container's line", || {
        query(host, "SELECT message, namespace, pod, container, image, stream FROM container_logs").into_iter().next()
    });
    assert_eq!(
        line,
        json!({"message": "first second", "namespace": "shop", "pod": "web-0", "container": "nginx",
               "image": "registry.example.net/nginx:1.29", "stream": "stdout"})
    );
}

/// A pod that is replaced: another container with the same state on the node.
fn it_stays_the_same_agent(host: &Host) {
    let before = agents(host);
    host.must(&crun("kill pod-one TERM"));
    eventually("the end of the pod", || {
        host.must("systemctl is-active pod-one || true").starts_with("inactive").then_some(())
    });
    start(host, "pod-two");
    host.must("logger -t probe 'seen by the second pod'");
    eventually("a record of the second pod", || {
        let rows = query(host, "SELECT count(*) AS n FROM journal WHERE message = 'seen by the second pod'");
        (rows[0]["n"].as_u64() == Some(1)).then_some(())
    });
    let after = agents(host);
    assert_eq!((before.len(), after.len()), (1, 1), "{after:?}");
    assert_eq!(before[0]["agent"], after[0]["agent"]);
    eventually("everything to arrive", || {
        let ledger = host.must(&format!("{WORKSPACE} ledger --org acme --format json --dir /var/lib/ws"));
        let mut rows = ledger.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        rows.all(|row| row["missing"] == 0 && row["repeated"] == 0).then_some(())
    });
}
