//! Installation, enrollment, reload, upgrade and removal.

use crate::{Scene, eventually, host::on_machine};
use anyhow::{Result, ensure};
use std::fs;

/// Exposure in tenths that `systemd-analyze security` may give the agent.
const EXPOSURE_MAX: u32 = 30;

/// Runs apt-get(8) with the release's repository alone: the host has no other network than to the workspace.
fn apt(scene: &Scene, arguments: &str) -> Result<String> {
    let only = "-o Dir::Etc::sourcelist=/etc/apt/sources.list.d/vedette.list -o Dir::Etc::sourceparts=-";
    scene.host.must_within(&format!("DEBIAN_FRONTEND=noninteractive apt-get -q -y {only} {arguments} 2>&1"), 120)
}

pub(crate) fn install(scene: &mut Scene) -> Result<String> {
    on_machine(&format!("cp -r {} {}", scene.packages.display(), scene.host.root().join("srv/repository").display()))?;
    scene.host.must(
        "chmod -R a+rX /srv/repository && cp /srv/repository/vedette.asc /usr/share/keyrings/ && \
         echo 'deb [signed-by=/usr/share/keyrings/vedette.asc] file:/srv/repository/apt stable main' \
         > /etc/apt/sources.list.d/vedette.list",
    )?;
    apt(scene, "update")?;
    let oldest = scene.host.must("apt-cache madison vedette | awk '{print $3}' | tail -1")?;
    apt(scene, &format!("install vedette={}", oldest.trim()))?;
    ensure!(scene.host.property("UnitFileState")? == "enabled", "the unit is not enabled");
    ensure!(scene.host.property("ActiveState")? == "inactive", "there is nothing to do yet");
    // Its status says whether the threshold is exceeded.
    let analysis = format!("systemd-analyze security --no-pager --threshold={EXPOSURE_MAX} vedette.service");
    let exposure = scene.host.must(&analysis)?;
    let last = exposure.lines().last().unwrap_or_default();
    let figure = last.split(':').nth(1).unwrap_or_default().trim();
    Ok(format!("exposure {}", figure.split_whitespace().next().unwrap_or_default()))
}

/// Bootstrap with token and CA among the service's credentials, and a start.
pub(crate) fn enroll(scene: &mut Scene) -> Result<String> {
    let dir = scene.host.root().join("etc/vedette");
    fs::create_dir_all(dir.join("conf.d"))?;
    // A file is read besides the journal, so that both are tried; these hosts have no cloud.
    let config = "[host]\ncloud = \"off\"\n[collectors.syslog]\npaths = [\"/var/log/syslog\"]\n[collectors.processes]\nevery = \"1s\"\n\
                  [collectors.sessions]\nevery = \"1s\"\n[collectors.crash_dumps]\nevery = \"1s\"\n";
    fs::write(dir.join("conf.d/10-hosts.toml"), config)?;
    let bootstrap = format!("workspace = \"{}\"\nca = \"ca.pem\"\ntoken_file = \"token\"\n", scene.workspace.url());
    fs::write(dir.join("bootstrap/bootstrap.toml"), bootstrap)?;
    for (name, text) in [("ca.pem", scene.workspace.ca()?), ("token", scene.workspace.token()?)] {
        fs::write(scene.host.root().join("root").join(name), text)?;
    }
    scene.host.must(
        "mkdir -p /run/systemd/system/vedette.service.d && chmod 0600 /root/token && \
         printf '[Service]\\nLoadCredential=token:/root/token\\nLoadCredential=ca.pem:/root/ca.pem\\n' \
         > /run/systemd/system/vedette.service.d/bootstrap.conf && systemctl daemon-reload && systemctl start vedette",
    )?;
    eventually("the enrollment", || {
        Ok(scene.workspace.agents()?.first().filter(|agent| agent["state"] == "active").map(drop))
    })?;
    let name = scene.host.must("hostname")?;
    eventually("the host's record", || {
        let rows = scene.workspace.query("SELECT hostname FROM hosts")?;
        Ok(rows.iter().any(|row| row["hostname"] == name.trim()).then_some(()))
    })?;
    scene
        .host
        .must("rm -r /run/systemd/system/vedette.service.d /root/token /root/ca.pem && systemctl daemon-reload")?;
    scene.host.must("systemctl restart vedette && test ! -e /etc/vedette/bootstrap/bootstrap.toml")?;
    // The credential is not the agent's to delete.
    scene.host.must("! journalctl -u vedette --no-pager | grep 'cannot delete'")?;
    let checked = eventually("the check", || scene.host.must("vedette status > /dev/null && vedette check").map(Some))?;
    ensure!(checked.ends_with(": ok\n"), "permissions are missing: {checked}");
    Ok(String::new())
}

pub(crate) fn reload(scene: &mut Scene) -> Result<String> {
    let pid = scene.host.property("MainPID")?;
    scene.host.must(
        "printf '[collectors.sessions]\\nenabled = false\\n' > /etc/vedette/conf.d/20-test.toml && systemctl reload vedette",
    )?;
    let state = |wanted: &str| {
        eventually(&format!("sessions to be {wanted}"), || {
            let status = scene.host.status()?;
            let mut collectors = status["collectors"].as_array().into_iter().flatten();
            Ok(collectors.any(|one| one["id"] == "sessions" && one["state"] == wanted).then_some(()))
        })
    };
    state("disabled")?;
    scene.host.must("rm /etc/vedette/conf.d/20-test.toml && systemctl reload vedette")?;
    state("running")?;
    ensure!(scene.host.property("MainPID")? == pid, "the process was replaced");
    Ok(String::new())
}

pub(crate) fn upgrade(scene: &mut Scene) -> Result<String> {
    let count = scene.of(300, 60);
    let before = scene.host.status()?["agent"].clone();
    scene.host.log_slowly("upgrade", count, "0.05")?;
    apt(scene, "install --only-upgrade vedette")?;
    ensure!(scene.host.must("dpkg-query -W -f '${Version}' vedette")? == "0.1.0", "it was not upgraded");
    eventually("the new release", || Ok((scene.host.property("ActiveState")? == "active").then_some(())))?;
    scene.workspace.has_lines("journal", "upgrade", count)?;
    ensure!(scene.host.status()?["agent"] == before, "it is another agent");
    Ok(format!("{count} lines"))
}

pub(crate) fn remove(scene: &mut Scene) -> Result<String> {
    scene.host.must(
        "dpkg --remove vedette 2>&1 && test -e /var/lib/vedette/identity/key.pem && ! test -e /usr/bin/vedette",
    )?;
    scene.host.must("dpkg --purge vedette 2>&1 && ! test -e /etc/vedette && ! test -e /var/lib/vedette/identity")?;
    let left = scene.host.must(
        "find / -xdev -newer /etc/hostname -name '*vedette*' -not -path '/root/*' -not -path '/var/log/*' \
                                -not -path '/var/lib/dpkg/*' -not -path '/var/lib/systemd/*' -not -path '/srv/*' -not -path '/etc/apt/*' -not -path '/usr/share/keyrings/*' 2>/dev/null || true",
    )?;
    let left: Vec<&str> = left.lines().filter(|path| *path != "/var/lib/vedette").collect();
    ensure!(left.is_empty(), "purge leaves {left:?}");
    Ok(String::new())
}
