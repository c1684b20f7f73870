//! Compiles the program of a package, and lists what it is made of.

use crate::{Arch, Profile, Release, manifest::Package, run};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Maximum size of a shipped program in bytes.
const PROGRAM_BYTES_MAX: usize = 16 << 20;
/// Variable of the crash points, which only builds of tests have.
const CRASH_POINT: &[u8] = b"VEDETTE_FAILPOINT";
/// The oldest C library that shipped programs run with.
const GLIBC: &str = "2.17";

/// Compiles the program; its path.
///
/// # Errors
/// A tool is missing, the compiler fails, or the agent is too large.
pub(crate) fn program(package: &Package, release: &Release, profile: Profile) -> Result<PathBuf> {
    match profile {
        Profile::Dev => dev(package, release),
        Profile::Dist => {
            let path = dist(package, release)?;
            let program = fs::read(&path)?;
            if package.name == "vedette" && program.len() > PROGRAM_BYTES_MAX {
                bail!("{} has {} bytes, more than {PROGRAM_BYTES_MAX}", path.display(), program.len());
            }
            if program.windows(CRASH_POINT.len()).any(|window| window == CRASH_POINT) {
                bail!("{} has the crash points of the tests", path.display());
            }
            Ok(path)
        }
    }
}

/// The program as tests use it, stripped: the one beside this program.
fn dev(package: &Package, release: &Release) -> Result<PathBuf> {
    if std::env::consts::ARCH != release.arch.name() {
        bail!("profile dev is of this machine's architecture alone");
    }
    let built = std::env::current_exe()?.with_file_name(&package.program);
    if !built.exists() {
        bail!("{} is not built; run cargo build --workspace", built.display());
    }
    let stripped = release.out.join(format!(".{}.stripped", package.program));
    run::run(Command::new("strip").arg("-o").arg(&stripped).arg(&built))?;
    Ok(stripped)
}

/// The program as it is shipped: linked by zig against an old C library, with the list of its crates inside.
fn dist(package: &Package, release: &Release) -> Result<PathBuf> {
    let triple = triple(release.arch);
    let metadata = metadata(release)?;
    let target = PathBuf::from(metadata["target_directory"].as_str().context("cargo metadata names the directory")?);
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&release.root).args(["auditable", "zigbuild", "--locked", "--profile", "dist"]);
    cargo.args(["--package", &package.cargo, "--target", &format!("{triple}.{GLIBC}")]);
    // The same bytes wherever the repository and the registry are.
    let registry = registry(&metadata)?;
    let places = [(&release.root, "/vedette"), (&target, "/target"), (&registry, "/registry")];
    let flags = places.map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()));
    cargo.env("RUSTFLAGS", flags.join(" "));
    let prefixes = places.map(|(from, to)| format!("-ffile-prefix-map={}={to}", from.display()));
    cargo.env("CFLAGS", format!("{} {}", c_flags(release)?, prefixes.join(" ")));
    cargo.env("SOURCE_DATE_EPOCH", &release.epoch);
    run::run(&mut cargo).context(
        "packaging/tools installs what is missing: cargo-auditable, cargo-zigbuild, zig and the library of the target",
    )?;
    Ok(target.join(triple).join("dist").join(&package.program))
}

fn triple(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "x86_64-unknown-linux-gnu",
        Arch::Aarch64 => "aarch64-unknown-linux-gnu",
    }
}

/// Directory of the registry's crates, which the manifest of any of them names.
fn registry(metadata: &Value) -> Result<PathBuf> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let of_registry = packages.filter(|package| !package["source"].is_null());
    let manifest = of_registry.filter_map(|package| package["manifest_path"].as_str()).next();
    let dir = manifest.and_then(|manifest| Path::new(manifest).ancestors().nth(2));
    Ok(dir.context("no crate is of the registry")?.to_owned())
}

/// `CFLAGS` of `.cargo/config.toml`, which the environment's replace.
fn c_flags(release: &Release) -> Result<String> {
    let config: toml::Table = fs::read_to_string(release.root.join(".cargo/config.toml"))?.parse()?;
    let flags = config.get("env").and_then(|env| env.get("CFLAGS")).and_then(toml::Value::as_str);
    Ok(flags.context(".cargo/config.toml sets CFLAGS")?.to_owned())
}

fn metadata(release: &Release) -> Result<Value> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&release.root).args(["metadata", "--format-version=1", "--locked"]);
    Ok(serde_json::from_str(&run::run(cargo.args(["--filter-platform", triple(release.arch)]))?)?)
}

/// The crates that a program is built of, as CycloneDX 1.5: those that it depends on, without build and test dependencies.
///
/// # Errors
/// cargo cannot list them.
pub(crate) fn bill_of_materials(package: &Package, release: &Release) -> Result<String> {
    let metadata = metadata(release)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
    let edges: BTreeMap<String, Vec<String>> = list(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| {
            let is_normal =
                |dependency: &Value| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
            let dependencies =
                list(&node["deps"]).into_iter().filter(is_normal).map(|dependency| text(&dependency["pkg"]));
            (text(&node["id"]), dependencies.collect())
        })
        .collect();
    let root = packages.iter().find(|(_, found)| found["name"] == package.cargo.as_str()).map(|(id, _)| id.clone());
    let root = root.with_context(|| format!("the workspace has no package {}", package.cargo))?;
    let (mut seen, mut next) = (BTreeSet::new(), vec![root.clone()]);
    while let Some(id) = next.pop() {
        if seen.insert(id.clone()) {
            next.extend(edges.get(&id).cloned().unwrap_or_default());
        }
    }
    let component = |id: &String| {
        let (name, version) = (text(&packages[id]["name"]), text(&packages[id]["version"]));
        let mut component = json!({
            "type": "library", "bom-ref": format!("pkg:cargo/{name}@{version}"), "name": name, "version": version,
            "purl": format!("pkg:cargo/{name}@{version}"), "scope": "required",
        });
        if let Some(license) = packages[id]["license"].as_str() {
            component["licenses"] = json!([{"expression": license.replace('/', " OR ")}]);
        }
        component
    };
    let components: Vec<Value> = seen.iter().filter(|id| **id != root).map(component).collect();
    let bill = json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": {"type": "application", "name": package.name, "version": release.version}},
        "components": components,
    });
    Ok(format!("{}\n", serde_json::to_string_pretty(&bill)?))
}
