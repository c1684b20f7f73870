//! rpm, by rpmbuild(8).

use crate::{Release, deb::downgrade_checks, manifest::Package, run, tree::Tree};
use anyhow::{Context, Result};
use std::{fs, path::PathBuf, process::Command};

pub(crate) fn build(package: &Package, release: &Release, tree: &Tree) -> Result<PathBuf> {
    let top = tree.scratch.join("rpm");
    fs::create_dir_all(&top)?;
    let spec = top.join(format!("{}.spec", package.name));
    fs::write(&spec, spec_file(package, release, tree)?)?;
    let mut rpmbuild = Command::new("rpmbuild");
    rpmbuild.env("SOURCE_DATE_EPOCH", &release.epoch).args(["-bb", "--quiet", "--target"]).arg(release.arch.name());
    for (name, value) in [
        ("_topdir", top.display().to_string()),
        // The same bytes wherever and whenever it is built.
        ("_buildhost", "localhost".to_owned()),
        ("use_source_date_epoch_as_buildtime", "1".to_owned()),
        ("clamp_mtime_to_source_date_epoch", "1".to_owned()),
        // Read by rpm 4.11 and later.
        ("_binary_payload", if release.is_shipped { "w6.xzdio" } else { "w1.gzdio" }.to_owned()),
        ("_binary_filedigest_algorithm", "8".to_owned()),
        // The programs are stripped and linked as they are.
        ("__os_install_post", "%{nil}".to_owned()),
        ("debug_package", "%{nil}".to_owned()),
        ("_build_id_links", "none".to_owned()),
    ] {
        rpmbuild.arg("--define").arg(format!("{name} {value}"));
    }
    run::run(rpmbuild.arg(&spec))?;
    let name = format!("{}-{}-1.{}.rpm", package.name, version(release), release.arch.name());
    let built = top.join("RPMS").join(release.arch.name()).join(&name);
    let path = release.out.join(name);
    fs::copy(&built, &path).with_context(|| format!("rpmbuild made no {}", built.display()))?;
    Ok(path)
}

/// A summary as rpm writes it; Debian's begins in lower case.
fn capitalized(summary: &str) -> String {
    let mut letters = summary.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// A version as rpm writes it: without hyphens.
fn version(release: &Release) -> String {
    release.version.replace('-', "~")
}

fn spec_file(package: &Package, release: &Release, tree: &Tree) -> Result<String> {
    let requires: String = package.rpm_requires.iter().map(|name| format!("Requires: {name}\n")).collect();
    let dirs = tree.own_directories(package).into_iter().map(|dir| format!("%dir %attr(0755, root, root) {dir}\n"));
    let files = tree.files.iter().map(|file| {
        let kind = match file {
            file if file.conffile => "%config(noreplace) ",
            file if file.path.starts_with("/usr/share/doc/") || file.path.starts_with("/usr/share/man/") => "%doc ",
            _ => "",
        };
        format!("{kind}%attr({:04o}, root, root) {}\n", file.mode, file.path)
    });
    let date = run::output("date", ["-u", "+%a %b %d %Y", "-d", &format!("@{}", release.epoch)])?;
    let scripts = SCRIPTS
        .replace("@FORMATS@", &downgrade_checks(&package.formats, &package.name))
        .replace("@NAME@", &package.name)
        .replace("@UNIT@", &package.unit);
    Ok(format!(
        "Name: {}\nVersion: {}\nRelease: 1\nSummary: {}\nRequires(pre): coreutils, util-linux\n\
         Requires(post): systemd\nLicense: MIT OR Apache-2.0\nGroup: System Environment/Daemons\n\
         Packager: The Vedette project <packages@vedette.example>\n\
         URL: https://github.com/vedette-project/vedette\nAutoReqProv: no\n{requires}\n%description\n{}\n\n\
         %install\ncp -a {}/. %{{buildroot}}/\n\n{scripts}\n%files\n{}{}\n%changelog\n\
         * {} The Vedette project <packages@vedette.example> - {}-1\n- Release {}.\n",
        package.name,
        version(release),
        capitalized(&package.summary),
        package.description.trim(),
        tree.root.display(),
        dirs.collect::<String>(),
        files.collect::<String>(),
        date.trim(),
        version(release),
        release.version,
    ))
}

/// The first argument is the number of installed versions when the scriptlet ends: 1 at an installation, 0 at a removal.
const SCRIPTS: &str = r#"%pre
@FORMATS@exit 0

%post
systemd-sysusers @NAME@.conf || :
systemd-tmpfiles --create @NAME@.conf || :
if [ "$1" -eq 1 ]; then
  # Enabled by the package's preset, unless the administrator's says otherwise.
  systemctl --no-reload preset @UNIT@ >/dev/null 2>&1 || :
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload >/dev/null 2>&1 || :
  if [ "$1" -eq 1 ] && systemctl --quiet is-enabled @UNIT@ 2>/dev/null; then
    systemctl start @UNIT@ >/dev/null 2>&1 || :
  fi
fi

%preun
if [ "$1" -eq 0 ]; then
  systemctl --no-reload disable @UNIT@ >/dev/null 2>&1 || :
  if [ -d /run/systemd/system ]; then
    systemctl stop @UNIT@ >/dev/null 2>&1 || :
  fi
fi

%postun
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload >/dev/null 2>&1 || :
  if [ "$1" -ge 1 ]; then
    systemctl try-restart @UNIT@ >/dev/null 2>&1 || :
  fi
fi
"#;
