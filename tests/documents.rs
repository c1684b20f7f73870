//! docs/install.md and docs/operations.md: every indented command, in order, on a booted host with the packages of this build.

use crate::{
    packages,
    support::{eventually, root},
    systemd_host::Host,
};
use std::fs;

/// Indented blocks of a page, each a script.
fn scripts(page: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("docs").join(page)).expect("reads");
    let (mut out, mut framed): (Vec<String>, bool) = (Vec::new(), false);
    let mut is_open = false;
    for line in text.lines() {
        framed ^= line.starts_with("```");
        match line.strip_prefix("    ").filter(|_| !framed) {
            Some(command) => {
                if !is_open {
                    out.push(String::new());
                }
                out.last_mut().expect("pushed above").push_str(&format!("{command}\n"));
                is_open = true;
            }
            None => is_open = false,
        }
    }
    out
}

fn run(host: &Host, page: &str) {
    let scripts = scripts(page);
    assert!(scripts.len() > 2, "{page} has commands");
    for script in scripts {
        if script.contains("query --org") {
            eventually("records", || {
                (host.must(&format!("cd /root/packages; {script}")).lines().count() > 2).then_some(())
            });
        } else if script.contains("vedette status")
            || script.contains("vedette health")
            || script.contains("systemctl reload")
        {
            // The agent starts within a moment.
            eventually("the agent's answer", || host.try_run(&format!("set -e; cd /root/packages\n{script}")));
        } else {
            host.must(&format!("set -e; cd /root/packages\n{script}"));
        }
    }
}

#[test]
fn the_commands_of_install_and_operations_work() {
    if packages::packages().is_none() {
        return;
    }
    let Some(host) = Host::boot_named("host-bookworm", |root| {
        packages::copy_to(root);
        let conf = root.join("etc/vedette/conf.d");
        fs::create_dir_all(&conf).expect("makes");
        fs::write(conf.join("10-test.toml"), "[host]\ncloud = \"off\"\n").expect("writes");
        // The names that a moved workspace has.
        fs::write(root.join("etc/hosts"), "127.0.0.1 localhost old.example.net new.example.net\n").expect("writes");
    }) else {
        return;
    };
    run(&host, "install.md");
    run(&host, "operations.md");
    host.must("! test -e /var/lib/vedette && ! test -e /var/lib/vedette-workspace");
}
