//! deb(5), by dpkg-deb(1).

use crate::{
    Release,
    manifest::{Package, StoredFormat},
    run,
    tree::Tree,
};
use anyhow::Result;
use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

pub(crate) fn build(package: &Package, release: &Release, tree: &Tree) -> Result<PathBuf> {
    let control = tree.root.join("DEBIAN");
    fs::create_dir(&control)?;
    let put = |name: &str, text: String, mode: u32| -> Result<()> {
        fs::write(control.join(name), text)?;
        Ok(fs::set_permissions(control.join(name), fs::Permissions::from_mode(mode))?)
    };
    put("control", control_file(package, release, tree)?, 0o644)?;
    let conffiles = tree.files.iter().filter(|file| file.conffile).map(|file| format!("{}\n", file.path));
    put("conffiles", conffiles.collect(), 0o644)?;
    put("md5sums", sums(tree)?, 0o644)?;
    for (name, script) in [
        ("preinst", preinst(package)),
        ("postinst", POSTINST.to_owned()),
        ("prerm", PRERM.to_owned()),
        ("postrm", POSTRM.to_owned()),
    ] {
        let script = script.replace("@NAME@", &package.name).replace("@UNIT@", &package.unit);
        put(name, script.replace("@STATE@", &package.state.join(" ")), 0o755)?;
    }
    let path = release.out.join(format!("{}_{}_{}.deb", package.name, release.version, release.arch.debian()));
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.env("SOURCE_DATE_EPOCH", &release.epoch);
    // Packages of tests are built quickly.
    let compression: &[&str] = if release.is_shipped { &["-Zxz"] } else { &["-Zgzip", "-z1"] };
    run::run(dpkg.args(["--build", "--root-owner-group"]).args(compression).arg(&tree.root).arg(&path))?;
    fs::remove_dir_all(control)?;
    Ok(path)
}

fn control_file(package: &Package, release: &Release, tree: &Tree) -> Result<String> {
    let mut bytes = 0;
    for file in &tree.files {
        bytes += fs::metadata(tree.root.join(file.path.trim_start_matches('/')))?.len();
    }
    let description = package.description.trim().lines().map(|line| format!(" {line}\n")).collect::<String>();
    Ok(format!(
        "Package: {}\nVersion: {}\nArchitecture: {}\nMaintainer: The Vedette project <packages@vedette.example>\n\
         Installed-Size: {}\nDepends: {}\nSection: admin\nPriority: optional\n\
         Homepage: https://github.com/vedette-project/vedette\nDescription: {}\n{description}",
        package.name,
        release.version,
        release.arch.debian(),
        bytes.div_ceil(1024),
        // The oldest C library that the programs are linked against.
        [&["libc6 (>= 2.17)".to_owned()][..], &package.deb_depends].concat().join(", "),
        package.summary,
    ))
}

fn sums(tree: &Tree) -> Result<String> {
    let mut sums = Command::new("md5sum");
    sums.current_dir(&tree.root);
    for file in tree.files.iter().filter(|file| !file.conffile) {
        sums.arg(file.path.trim_start_matches('/'));
    }
    run::run(&mut sums)
}

/// Refuses a downgrade that could not read what is stored.
fn preinst(package: &Package) -> String {
    format!("{PREINST}{}", downgrade_checks(&package.formats, &package.name))
}

/// Shell code that exits with an error if a file names a newer format. Its directory belongs to the service's user, so it is read as
/// that user, and what is not a small number is ignored: whoever can write there can delete the state anyway.
pub(crate) fn downgrade_checks(formats: &[StoredFormat], user: &str) -> String {
    let checks = formats.iter().map(|StoredFormat { path, newest }| {
        CHECK.replace("@PATH@", path).replace("@NEWEST@", &newest.to_string()).replace("@USER@", user)
    });
    checks.collect()
}

const CHECK: &str = r#"format=
if getent passwd @USER@ >/dev/null; then
  format=$(runuser -u @USER@ -- timeout 5 head -c 8 @PATH@ 2>/dev/null || true)
fi
case "$format" in
  '' | *[!0-9]*) ;;
  *)
    if [ "$format" -gt @NEWEST@ ]; then
      echo "@NAME@: @PATH@ is of a newer release, which this one cannot read; keep the newer release" >&2
      exit 1
    fi
    ;;
esac
"#;

const PREINST: &str = r#"#!/bin/sh
set -e
# For postinst, which cannot tell an installation over the configuration of a removed package from an upgrade.
if [ "$1" = install ]; then
  touch /run/@NAME@.installed || true
fi
"#;

const POSTINST: &str = r#"#!/bin/sh
set -e
case "$1" in
  configure | abort-upgrade | abort-deconfigure | abort-remove) ;;
  *) exit 0 ;;
esac
systemd-sysusers @NAME@.conf
# In an image that is being built there may be no /proc; the boot makes the directories then.
systemd-tmpfiles --create @NAME@.conf || true
# Enables the unit at the first installation, and leaves the administrator's choice after that.
deb-systemd-helper unmask @UNIT@ >/dev/null || true
if deb-systemd-helper --quiet was-enabled @UNIT@; then
  deb-systemd-helper enable @UNIT@ >/dev/null || true
else
  deb-systemd-helper update-state @UNIT@ >/dev/null || true
fi
if [ "$1" != abort-upgrade ] && [ -d /run/systemd/system ]; then
  systemctl --system daemon-reload >/dev/null || true
  # An upgrade restarts a service that runs. An installation starts it; the unit's conditions say whether there is anything to do.
  if [ -e /run/@NAME@.installed ] || [ "$1" = abort-remove ]; then action=start; else action=try-restart; fi
  deb-systemd-invoke "$action" @UNIT@ >/dev/null || true
fi
rm -f /run/@NAME@.installed
"#;

const PRERM: &str = r#"#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  deb-systemd-invoke stop @UNIT@ >/dev/null || true
fi
"#;

const POSTRM: &str = r#"#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl --system daemon-reload >/dev/null || true
fi
if [ "$1" = purge ]; then
  if command -v deb-systemd-helper >/dev/null; then
    deb-systemd-helper purge @UNIT@ >/dev/null || true
  fi
  # State and configuration; the user stays, as its files elsewhere would belong to nobody. A mount point stays, empty.
  for dir in @STATE@; do
    [ ! -d "$dir" ] || find "$dir" -xdev -depth -mindepth 1 -delete
    rmdir "$dir" 2>/dev/null || true
  done
fi
"#;
