//! The agent's image as a container on a booted host, run by crun(1) as the rendered DaemonSet asks for it: its arguments, users,
//! capabilities, mounts and configuration. The container has its own mount, process, host name and IPC namespaces, and the node's
//! network.

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

/// An object of packaging/kubernetes/vedette.yaml by its kind; absent where no YAML parser is installed.
fn manifest(kind: &str) -> Option<Value> {
    let validate = packages::tool("kubernetes-validate")?;
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let mut python = Command::new(validate.with_file_name("python"));
    let output = python.args(["-c", script]).arg(root().join("packaging/kubernetes/vedette.yaml")).output();
    let objects: Vec<Value> = serde_json::from_slice(&output.expect("starts").stdout).expect("JSON");
    objects.into_iter().find(|object| object["kind"] == kind)
}

/// Where the test has what a volume of the pod holds.
fn source(volume: &Value) -> String {
    match volume["name"].as_str().expect("a name") {
        "bootstrap" => "/srv/bootstrap".to_owned(),
        "config" => "/srv/conf.d".to_owned(),
        _ => volume["hostPath"]["path"].as_str().expect("a path on the node").to_owned(),
    }
}

fn mount(pod: &Value, mount: &Value) -> Value {
    let mut volumes = pod["volumes"].as_array().expect("a list").iter();
    let volume = volumes.find(|volume| volume["name"] == mount["name"]).expect("the volume");
    let to = &mount["mountPath"];
    if volume["emptyDir"].is_object() {
        return json!({"destination": to, "source": "tmpfs", "type": "tmpfs", "options": ["mode=1777", "size=1m"]});
    }
    let mut options = vec!["rbind", if mount["readOnly"] == true { "ro" } else { "rw" }];
    options.extend((mount["mountPropagation"] == "HostToContainer").then_some("rslave"));
    json!({"destination": to, "source": source(volume), "type": "bind", "options": options})
}

/// Writes the runtime's configuration of a container of the pod, as kubelet and containerd make it.
fn configure(bundle: &Path, name: &str, (pod, container): (&Value, &Value), change: impl FnOnce(&mut Value)) {
    let text = fs::read_to_string(bundle.join("config.json")).expect("umoci wrote it");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    let security = &container["securityContext"];
    let of_either = |key: &str| if security[key].is_null() { &pod["securityContext"][key] } else { &security[key] };
    let process = &mut config["process"];
    process["terminal"] = false.into();
    process["user"] = json!({"uid": of_either("runAsUser"), "gid": of_either("runAsGroup")});
    let arguments = container["args"].as_array().expect("a list").iter().cloned();
    process["args"] = std::iter::once(json!("/usr/bin/vedette")).chain(arguments).collect();
    process["noNewPrivileges"] = (security["allowPrivilegeEscalation"] == false).into();
    process.as_object_mut().expect("an object").remove("rlimits");
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    let added = security["capabilities"]["add"].as_array().expect("a list").iter();
    let added: Vec<String> = added.map(|name| format!("CAP_{}", name.as_str().expect("text"))).collect();
    // Only root has them without its file's.
    let held = if *of_either("runAsUser") == 0 { added.clone() } else { Vec::new() };
    process["capabilities"] = json!({"bounding": added, "effective": held, "permitted": held});
    config["root"]["readonly"] = security["readOnlyRootFilesystem"].clone();
    config["hostname"] = "vedette-x7k2p".into();
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    config["linux"] = json!({"namespaces": namespaces});
    let mounts = config["mounts"].as_array_mut().expect("a list");
    mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    mounts.extend(container["volumeMounts"].as_array().expect("a list").iter().map(|one| mount(pod, one)));
    change(&mut config);
    fs::write(bundle.join(name), config.to_string()).expect("writes");
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
        let Some(daemonset) = manifest("DaemonSet") else {
            unpacked = None;
            return;
        };
        let pod = &daemonset["spec"]["template"]["spec"];
        assert!(pod["hostNetwork"] == true, "the container shares the node's network here");
        configure(&bundle, "agent.json", (pod, &pod["containers"][0]), |_| ());
        configure(&bundle, "state.json", (pod, &pod["initContainers"][0]), |_| ());
        // As `docker run` without options: no capability.
        configure(&bundle, "none.json", (pod, &pod["containers"][0]), |config| {
            config["process"]["capabilities"] = json!({});
            config["process"]["args"] = json!(["/usr/bin/vedette", "check", "--set", "state.socket_dir=/tmp"]);
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
    let config = manifest("ConfigMap").expect("there is one")["data"].clone();
    put("/srv/conf.d/10-chart.toml", config["10-chart.toml"].as_str().expect("text"));
    put("/srv/conf.d/20-test.toml", "[collectors.processes]\nevery = \"1s\"\n");
    put("/srv/bootstrap/.keep", "");
    // hostPath, DirectoryOrCreate
    fs::create_dir_all(host.join("var/lib/vedette")).expect("makes");
}

fn a_workspace_listens(host: &Host) {
    host.must(&format!("{WORKSPACE} init --dir /var/lib/ws --geo europe"));
    host.must(&format!("{WORKSPACE} init --if-missing --dir /var/lib/ws --geo europe"));
    host.must(&format!("{WORKSPACE} org add acme --tier free --dir /var/lib/ws"));
    host.must(&format!("systemd-run --unit=ws {WORKSPACE} serve --dir /var/lib/ws --listen 127.0.0.1:8443"));
    host.must(&format!("{WORKSPACE} token new --org acme --uses 5 --dir /var/lib/ws > /srv/bootstrap/token"));
    host.must(&format!("{WORKSPACE} ca --dir /var/lib/ws > /srv/bootstrap/ca.pem"));
    let config = manifest("ConfigMap").expect("there is one")["data"].clone();
    let text = config["bootstrap.toml"].as_str().expect("text");
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
        eventually("the host's facts", || host.query("SELECT hostname, machine_id FROM hosts").into_iter().next());
    assert_eq!((facts["hostname"].as_str(), facts["machine_id"].as_str()), (Some(&*name), Some(&*machine)));
    eventually("a process of a user of the host", || {
        let rows = host.query("SELECT \"user\", path FROM processes WHERE name = 'sleep'");
        rows.iter().any(|row| row["user"] == "carol" && row["path"] == "/usr/bin/sleep").then_some(())
    });
    eventually("the journal", || {
        let rows = host.query("SELECT count(*) AS n FROM journal WHERE app = 'probe'");
        (rows[0]["n"].as_u64() == Some(1)).then_some(())
    });
    // systemd-coredump is called as the kernel would call it, on a live process.
    host.must(
        "sleep 1000 >/dev/null 2>&1 & pid=$!; head -c 100000 /dev/zero | /lib/systemd/systemd-coredump $pid 0 0 11 $(date +%s) \
         18446744073709551615 h1",
    );
    let crash = eventually("the dump", || host.query("SELECT process, sha256 FROM crashes").into_iter().next());
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
    // With no capability at all it starts, and says what it lacks.
    let checked = host.must(&crun("run --no-new-keyring --bundle /opt/bundle --config /opt/bundle/none.json without"));
    assert!(checked.contains("this user lacks CAP_SYS_PTRACE"), "{checked}");
}

fn container_logs_have_their_pod(host: &Host) {
    host.must(&format!(
        "stamp=$(date -u +%Y-%m-%dT%H:%M:%S.%NZ); printf '%s stdout P first \\n%s stdout F second\\n' $stamp $stamp >> {POD}/0.log"
    ));
    let line = eventually("the container's line", || {
        host.query("SELECT message, namespace, pod, container, image, stream FROM container_logs").into_iter().next()
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
        let rows = host.query("SELECT count(*) AS n FROM journal WHERE message = 'seen by the second pod'");
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
