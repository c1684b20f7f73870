//! Compiles the program of a package.

use crate::{
    Libc, Profile, Release,
    crates::{metadata, triple},
    manifest::Package,
    run,
};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Maximum size of a shipped program in bytes.
const PROGRAM_BYTES_MAX: usize = 16 << 20;
/// Variable of the crash points, which only builds of tests have.
const CRASH_POINT: &[u8] = b"VEDETTE_FAILPOINT";
/// The oldest C library that shipped programs run with.
const GLIBC: (u32, u32) = (2, 17);

/// Compiles the program; its path.
///
/// # Errors
/// A tool is missing, the compiler fails, or the agent is too large.
pub(crate) fn program(package: &Package, release: &Release, profile: Profile, libc: Libc) -> Result<PathBuf> {
    match (profile, libc) {
        (Profile::Dev, Libc::Gnu) => dev(package, release),
        (Profile::Dev, Libc::Static) => strip(package, release, &build(package, release, "dev", libc)?),
        (Profile::Dist, libc) => {
            let path = build(package, release, "dist", libc)?;
            let program = fs::read(&path)?;
            if package.name == "vedette" && program.len() > PROGRAM_BYTES_MAX {
                bail!("{} has {} bytes, more than {PROGRAM_BYTES_MAX}", path.display(), program.len());
            }
            if program.windows(CRASH_POINT.len()).any(|window| window == CRASH_POINT) {
                bail!("{} has failpoints, which are for tests; build it without them", path.display());
            }
            let symbols = run::output("readelf", [OsStr::new("--dyn-syms"), OsStr::new("--wide"), path.as_os_str()])?;
            if let Some(newest) = newest_glibc(&symbols).filter(|newest| *newest > GLIBC) {
                bail!("{} needs glibc {}.{}", path.display(), newest.0, newest.1);
            }
            Ok(path)
        }
    }
}

/// The program as tests use it, stripped: the one beside this program.
fn dev(package: &Package, release: &Release) -> Result<PathBuf> {
    if std::env::consts::ARCH != release.arch.name() {
        bail!("profile dev builds only for this machine's architecture");
    }
    let built = std::env::current_exe()?.with_file_name(&package.program);
    if !built.exists() {
        bail!("{} is not built; run cargo build --workspace", built.display());
    }
    strip(package, release, &built)
}

fn strip(package: &Package, release: &Release, built: &Path) -> Result<PathBuf> {
    let stripped = release.out.join(format!(".{}.stripped", package.program));
    run::run(Command::new("strip").arg("-o").arg(&stripped).arg(built))?;
    Ok(stripped)
}

/// Builds a program as it is shipped: linked by zig against an old C library or a static one, with the list of its crates inside.
fn build(package: &Package, release: &Release, profile: &str, libc: Libc) -> Result<PathBuf> {
    let triple = triple(release.arch, libc);
    let target = match libc {
        Libc::Gnu => format!("{triple}.{}.{}", GLIBC.0, GLIBC.1),
        Libc::Static => triple.to_owned(),
    };
    let metadata = metadata(release)?;
    let target_dir = PathBuf::from(
        metadata["target_directory"].as_str().context("cargo metadata does not name the target directory")?,
    );
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&release.root).args(["auditable", "zigbuild", "--locked", "--profile", profile]);
    cargo.args(["--package", &package.cargo, "--target", &target]);
    // The same bytes wherever the repository and the registry are.
    let registry = registry(&metadata)?;
    let places = [(&release.root, "/vedette"), (&target_dir, "/target"), (&registry, "/registry")];
    let flags = places.map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()));
    cargo.env("RUSTFLAGS", flags.join(" "));
    let prefixes = places.map(|(from, to)| format!("-ffile-prefix-map={}={to}", from.display()));
    cargo.env("CFLAGS", format!("{} {}", c_flags(release)?, prefixes.join(" ")));
    cargo.env("SOURCE_DATE_EPOCH", &release.epoch);
    let tools = run::output(&release.root.join("packaging/tools").display().to_string(), ["--path"])?;
    cargo.env("PATH", format!("{}:{}", tools.trim(), std::env::var("PATH").unwrap_or_default()));
    run::run(&mut cargo).context(
        "packaging/tools installs what is missing: cargo-auditable, cargo-zigbuild, zig and the library of the target",
    )?;
    let dir = if profile == "dev" { "debug" } else { profile };
    Ok(target_dir.join(triple).join(dir).join(&package.program))
}

/// Directory of the registry's crates, which the manifest of any of them names.
fn registry(metadata: &Value) -> Result<PathBuf> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let of_registry = packages.filter(|package| !package["source"].is_null());
    let manifest = of_registry.filter_map(|package| package["manifest_path"].as_str()).next();
    let dir = manifest.and_then(|manifest| Path::new(manifest).ancestors().nth(2));
    Ok(dir.context("no crate comes from a registry")?.to_owned())
}

/// `CFLAGS` of `.cargo/config.toml`, which the environment's replace.
fn c_flags(release: &Release) -> Result<String> {
    let config: toml::Table = fs::read_to_string(release.root.join(".cargo/config.toml"))?.parse()?;
    let flags = config.get("env").and_then(|env| env.get("CFLAGS")).and_then(toml::Value::as_str);
    Ok(flags.context(".cargo/config.toml does not set CFLAGS")?.to_owned())
}

/// The newest version of glibc that the symbols of a program name, as readelf(1) prints them: `malloc@GLIBC_2.2.5`.
fn newest_glibc(symbols: &str) -> Option<(u32, u32)> {
    let versions = symbols.split("@GLIBC_").skip(1).filter_map(|rest| {
        let mut numbers = rest.split(|letter: char| !letter.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    });
    versions.max()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_newest_version_of_glibc_is_found() {
        let symbols = " 5: 0 FUNC GLOBAL DEFAULT UND malloc@GLIBC_2.2.5 (2)\n 6: 0 FUNC GLOBAL DEFAULT UND x@GLIBC_2.17 (4)\n\
                       7: 0 FUNC GLOBAL DEFAULT UND y@GLIBC_2.9 (5)\n";
        assert_eq!(super::newest_glibc(symbols), Some((2, 17)));
        assert_eq!(super::newest_glibc("no library"), None);
    }
}
