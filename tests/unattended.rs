//! The examples of docs/provisioning.md, verbatim, on a booted Debian host: cloud-init's user data and the Ansible tasks
//! install the files; the service enrolls at its first start and collects.

use crate::{
    packages,
    support::{eventually, root},
    systemd_host::Host,
};
use std::{fs, path::Path};

/// A code block of the page, by its first line.
fn block(begins: &str) -> String {
    let page = fs::read_to_string(root().join("docs/provisioning.md")).expect("reads");
    let from = page.find(begins).unwrap_or_else(|| panic!("the page has no {begins}"));
    let block = &page[from..];
    block[..block.find("```").expect("it ends")].to_owned()
}

/// A host with a workspace, and the agent's package installed.
fn host(prepare: impl FnOnce(&Path)) -> Option<Host> {
    packages::packages()?;
    Host::boot_named("host-provisioning", |root| {
        packages::copy_to(root);
        let conf = root.join("etc/vedette/conf.d");
        fs::create_dir_all(&conf).expect("makes");
        fs::write(conf.join("10-test.toml"), "[host]\ncloud = \"off\"\n").expect("writes");
        let commands = [
            "dpkg -i /root/packages/vedette_0.1.0_amd64.deb",
            "/opt/vedette-workspace init --geo europe --dir /var/lib/ws",
            "/opt/vedette-workspace org add acme --tier free --dir /var/lib/ws",
            "/opt/vedette-workspace token new --org acme --uses 2 --dir /var/lib/ws > /var/lib/token",
        ];
        for command in commands {
            let output = std::process::Command::new("chroot").arg(root).args(["sh", "-c", command]).output();
            let output = output.expect("chroot runs");
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        }
        prepare(root);
    })
}

fn serve(host: &Host) {
    host.must("systemd-run --unit=ws /opt/vedette-workspace serve --dir /var/lib/ws --listen 127.0.0.1:8443");
}

fn assert_enrolled(host: &Host) {
    eventually("the host to be listed", || {
        let listed = host.must("/opt/vedette-workspace agents --org acme --dir /var/lib/ws --format json");
        listed.contains("\"active\"").then_some(())
    });
    eventually("a heartbeat", || (!host.query("SELECT hostname FROM heartbeats").is_empty()).then_some(()));
    let remaining = host.must("find /etc/vedette");
    assert!(!remaining.contains("token") && !remaining.contains("bootstrap.toml"), "{remaining}");
}

const ADDRESS: &str = "https://workspace.example.net:8443";

#[test]
fn cloud_init_user_data_enrolls_a_host_at_its_first_boot() {
    let data = block("#cloud-config");
    let Some(host) = host(|root| {
        let read = |name: &str| fs::read_to_string(root.join(name)).expect("reads").trim().replace('\n', "\\n");
        let data = data.replace("-----BEGIN CERTIFICATE-----\\n…", &read("var/lib/ws/ca.pem"));
        let data = data.replace("vdt_…", &read("var/lib/token")).replace(ADDRESS, "https://localhost:8443");
        let seed = root.join("var/lib/cloud/seed/nocloud");
        fs::create_dir_all(&seed).expect("makes");
        fs::write(seed.join("user-data"), data).expect("writes");
        fs::write(seed.join("meta-data"), "instance-id: i-1\nlocal-hostname: web1\n").expect("writes");
        // A minimal Debian has no locales to set.
        fs::write(root.join("etc/cloud/cloud.cfg.d/90-test.cfg"), "locale: false\n").expect("writes");
    }) else {
        return;
    };
    serve(&host);
    assert_enrolled(&host);
    assert_eq!(host.must("stat -c %a /var/lib/vedette/identity/key.pem").trim(), "600");
    let status = host.must("cloud-init status --long || true");
    assert!(!status.contains("error"), "{status}");
}

#[test]
fn ansible_tasks_enroll_a_host() {
    let tasks = block("- ansible.builtin.copy");
    let Some(host) = host(|root| {
        let play = root.join("root/play");
        fs::create_dir_all(play.join("files")).expect("makes");
        let tasks: String = tasks.lines().map(|line| format!("    {line}\n")).collect();
        let head = "- hosts: localhost\n  connection: local\n  gather_facts: false\n  tasks:\n";
        fs::write(play.join("play.yml"), format!("{head}{tasks}")).expect("writes");
        let copy = |from: &str, to: &str| fs::copy(root.join(from), play.join("files").join(to)).expect("copies");
        copy("var/lib/ws/ca.pem", "ca.pem");
        copy("var/lib/token", "token");
        let bootstrap = block("workspace = ").replace(ADDRESS, "https://localhost:8443");
        fs::write(play.join("files/bootstrap.toml"), bootstrap).expect("writes");
    }) else {
        return;
    };
    serve(&host);
    let play = "cd /root/play && LC_ALL=C.UTF-8 ansible-playbook -i localhost, play.yml 2>&1";
    let message = host.must(play);
    assert!(message.contains("failed=0"), "{message}");
    assert_enrolled(&host);
}
