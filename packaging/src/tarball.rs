//! tar.gz: the tree as it is installed, for hosts without a package manager.

use crate::{Release, manifest::Package, run, tree::Tree};
use anyhow::Result;
use std::{path::PathBuf, process::Command};

pub(crate) fn build(package: &Package, release: &Release, tree: &Tree) -> Result<PathBuf> {
    let name = format!("{}-{}-linux-{}.tar.gz", package.name, release.version, release.arch.name());
    let path = release.out.join(name);
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--format=gnu", "--owner=root:0", "--group=root:0", "--mode=u+w,go-w"]);
    tar.arg(format!("--mtime=@{}", release.epoch)).args(["--use-compress-program", "gzip -9n"]);
    run::run(tar.arg("--file").arg(&path).arg("--directory").arg(&tree.root).arg("."))?;
    Ok(path)
}
