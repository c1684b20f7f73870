//! Builds the packages: `cargo run -p vedette-packaging -- all`.
//!
//! `manifest.toml` is the only list of files. dpkg-deb(1), rpmbuild(8) and tar(1) make the formats of packages; this program
//! compiles, collects a tree, writes what they need, and makes the container image.

#![expect(clippy::print_stdout, reason = "the paths of the packages are its answer")]
#![expect(clippy::disallowed_methods, reason = "what it writes can be made again")]

mod compile;
mod crates;
mod deb;
mod image;
mod manifest;
mod rpm;
mod run;
mod tarball;
mod tree;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use manifest::{Form, Manifest, Package};
use std::path::{Path, PathBuf};
use tree::Tree;

/// Builds packages of the agent and of the workspace.
#[derive(Debug, Parser)]
#[command(name = "vedette-packaging")]
struct Arguments {
    /// Format of the packages.
    format: Format,
    /// Processor architecture.
    #[arg(long, default_value = "x86_64")]
    arch: Arch,
    /// Output directory.
    #[arg(long, default_value = "target/packages")]
    out: PathBuf,
    /// Packages to build [default: all].
    #[arg(long = "package", value_name = "NAME")]
    packages: Vec<String>,
    /// Cargo profile: `dist` is what is shipped, `dev` is quick to build and only for tests on this machine.
    #[arg(long, default_value = "dist")]
    profile: Profile,
    /// Version of the packages [default: that of the workspace].
    #[arg(long)]
    version: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Deb,
    Rpm,
    Tar,
    Image,
    All,
}

/// A processor architecture by Rust's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Arch {
    #[value(name = "x86_64")]
    X86_64,
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    /// Rust's and rpm's name.
    fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// Debian's name.
    fn debian(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::Aarch64 => "arm64",
        }
    }
}

/// The C library of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Libc {
    /// glibc of the host.
    Gnu,
    /// musl, inside of the program.
    Static,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Profile {
    Dist,
    Dev,
}

/// What all packages of a run share.
struct Release {
    version: String,
    arch: Arch,
    /// Time of the last commit, seconds UTC: the time of every file in a package.
    epoch: String,
    /// Root of the repository.
    root: PathBuf,
    out: PathBuf,
    /// Built as it is shipped, rather than for a test.
    is_shipped: bool,
}

/// The repository that this runs in. A path from compile time may be that of another clone with the same target directory.
fn root() -> Result<PathBuf> {
    let here = std::env::current_dir()?;
    let root = here.ancestors().find(|dir| dir.join("packaging/manifest.toml").is_file());
    root.map(Path::to_owned).with_context(|| format!("{} is not in the repository", here.display()))
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let root = root()?;
    std::fs::create_dir_all(&arguments.out)?;
    let release = Release {
        version: arguments.version.unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
        arch: arguments.arch,
        epoch: run::output("git", ["-C", &root.display().to_string(), "log", "-1", "--format=%ct"])?.trim().to_owned(),
        root,
        out: arguments.out.canonicalize()?,
        is_shipped: arguments.profile == Profile::Dist,
    };
    let manifest = Manifest::load(&release.root)?;
    let selected = |package: &&Package| arguments.packages.is_empty() || arguments.packages.contains(&package.name);
    let packages: Vec<&Package> = manifest.packages.iter().filter(selected).collect();
    if packages.is_empty() {
        bail!("the manifest has no package named {}", arguments.packages.join(", "));
    }
    for package in packages {
        for path in build(package, &release, arguments.format, arguments.profile)? {
            println!("{}\t{} bytes", path.display(), std::fs::metadata(&path)?.len());
        }
    }
    Ok(())
}

/// Builds a package in one format or all; the paths.
fn build(package: &Package, release: &Release, format: Format, profile: Profile) -> Result<Vec<PathBuf>> {
    let wants = |wanted: Format| format == wanted || format == Format::All;
    let scratch = release.out.join(format!(".{}-{}", package.name, release.arch.name()));
    let mut made = Vec::new();
    if format != Format::Image {
        let program = compile::program(package, release, profile, Libc::Gnu)?;
        let tree = Tree::build(package, release, &program, (Form::Packages, &scratch))?;
        if wants(Format::Deb) {
            made.push(deb::build(package, release, &tree)?);
        }
        if wants(Format::Rpm) {
            made.push(rpm::build(package, release, &tree)?);
        }
        if wants(Format::Tar) {
            made.push(tarball::build(package, release, &tree)?);
        }
    }
    if wants(Format::Image) {
        let program = compile::program(package, release, profile, Libc::Static)?;
        let tree = Tree::build(package, release, &program, (Form::Image, &scratch))?;
        made.push(image::build(package, release, &tree)?);
    }
    std::fs::remove_dir_all(&scratch)?;
    Ok(made)
}
