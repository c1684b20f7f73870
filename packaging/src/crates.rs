//! The crates that a program is built of: their list as an SBOM, and their licences.

use crate::{Arch, Libc, Release, manifest::Package, run};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

/// Beginnings of the names of files with a licence, in lower case.
const LICENCES: [&str; 5] = ["licen", "copying", "copyright", "notice", "unlicense"];

/// Rust's name of the platform.
pub(crate) fn triple(arch: Arch, libc: Libc) -> &'static str {
    match (arch, libc) {
        (Arch::X86_64, Libc::Gnu) => "x86_64-unknown-linux-gnu",
        (Arch::X86_64, Libc::Static) => "x86_64-unknown-linux-musl",
        (Arch::Aarch64, Libc::Gnu) => "aarch64-unknown-linux-gnu",
        (Arch::Aarch64, Libc::Static) => "aarch64-unknown-linux-musl",
    }
}

/// What cargo(1) knows of the repository's crates and their dependencies.
///
/// # Errors
/// cargo fails.
pub(crate) fn metadata(release: &Release) -> Result<Value> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&release.root).args(["metadata", "--format-version=1", "--locked"]);
    Ok(serde_json::from_str(&run::run(cargo.args(["--filter-platform", triple(release.arch, Libc::Gnu)]))?)?)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The crates that a program is built of, as `cargo metadata` shows them, without build and test dependencies; its own first.
///
/// # Errors
/// cargo cannot list them.
pub(crate) fn crates(package: &Package, release: &Release, libc: Libc) -> Result<Vec<Value>> {
    let metadata = metadata(release)?;
    // What is built with the features of this program, rather than with those of the whole repository.
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&release.root).args(["tree", "--locked", "--edges=normal", "--prefix=none", "--format={p}"]);
    let tree = run::run(cargo.args(["--package", &package.cargo, "--target", triple(release.arch, libc)]))?;
    let built: BTreeSet<(&str, &str)> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?.trim_start_matches('v')))
        })
        .collect();
    let (own, others): (Vec<Value>, Vec<Value>) = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|found| {
            built.contains(&(found["name"].as_str().unwrap_or(""), found["version"].as_str().unwrap_or("")))
        })
        .cloned()
        .partition(|found| found["name"] == package.cargo.as_str());
    if own.is_empty() {
        bail!("the workspace has no package {}", package.cargo);
    }
    Ok([own, others].concat())
}

/// CycloneDX 1.5.
///
/// # Errors
/// None that are known; JSON of text.
pub(crate) fn bill_of_materials(package: &Package, release: &Release, crates: &[Value]) -> Result<String> {
    let component = |found: &Value| {
        let (name, version) = (text(&found["name"]), text(&found["version"]));
        let mut component = json!({
            "type": "library", "bom-ref": format!("pkg:cargo/{name}@{version}"), "name": name, "version": version,
            "purl": format!("pkg:cargo/{name}@{version}"), "scope": "required",
        });
        if let Some(license) = found["license"].as_str() {
            component["licenses"] = json!([{"expression": license.replace('/', " OR ")}]);
        }
        component
    };
    let components: Vec<Value> = crates.iter().skip(1).map(component).collect();
    let bill = json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": {"type": "application", "name": package.name, "version": release.version}},
        "components": components,
    });
    Ok(format!("{}\n", serde_json::to_string_pretty(&bill)?))
}

/// The texts of the licences of others' crates, each once, with the crates that have it.
///
/// # Errors
/// A crate's directory cannot be read.
pub(crate) fn licences(crates: &[Value]) -> Result<String> {
    let mut by_text: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut without = Vec::new();
    for found in crates.iter().filter(|found| !found["source"].is_null()) {
        let name = format!("{} {} ({})", text(&found["name"]), text(&found["version"]), text(&found["license"]));
        let manifest = text(&found["manifest_path"]);
        let dir = Path::new(&manifest).parent().context("a path of a manifest has no directory")?;
        let mut has_text = false;
        for entry in fs::read_dir(dir)?.collect::<std::io::Result<Vec<_>>>()? {
            let is_licence = |file: &str| LICENCES.iter().any(|begin| file.to_lowercase().starts_with(begin));
            if entry.file_type()?.is_file() && is_licence(&entry.file_name().to_string_lossy()) {
                let licence = String::from_utf8_lossy(&fs::read(entry.path())?).trim().replace("\r\n", "\n");
                by_text.entry(licence).or_default().insert(name.clone());
                has_text = true;
            }
        }
        if !has_text {
            without.push(name);
        }
    }
    let line = "-".repeat(80);
    let mut out = String::from("Licences of the crates that this program is built of.\n");
    if !without.is_empty() {
        out.push_str("\nCrates that carry no text of their licence:\n");
        without.iter().for_each(|name| out.push_str(&format!("  {name}\n")));
    }
    for (licence, names) in by_text {
        let names: Vec<String> = names.into_iter().collect();
        out.push_str(&format!("\n{line}\n{}\n{line}\n\n{licence}\n", names.join("\n")));
    }
    Ok(out)
}
