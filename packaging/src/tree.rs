//! The tree of a package: its files as they are installed.

use crate::{
    Libc, Release, crates,
    manifest::{Form, Package},
    run,
};
use anyhow::{Context, Result, bail};
use base64::prelude::{BASE64_STANDARD, Engine};
use flate2::{Compression, write::GzEncoder};
use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// A file of the tree.
#[derive(Debug)]
pub(crate) struct Installed {
    /// Path on the host.
    pub(crate) path: String,
    pub(crate) mode: u32,
    pub(crate) conffile: bool,
}

/// A directory with the files of a package.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) root: PathBuf,
    /// Sorted by path.
    pub(crate) files: Vec<Installed>,
    /// For files that a format needs beside the tree.
    pub(crate) scratch: PathBuf,
}

impl Tree {
    /// Collects the files of a package below `scratch`, which is emptied first.
    ///
    /// # Errors
    /// A file of the manifest does not exist; the program does not run.
    pub(crate) fn build(
        package: &Package,
        release: &Release,
        program: &Path,
        (form, scratch): (Form, &Path),
    ) -> Result<Self> {
        if scratch.exists() {
            fs::remove_dir_all(scratch)?;
        }
        let (root, made) = (scratch.join("tree"), scratch.join("made"));
        fs::create_dir_all(&root)?;
        fs::create_dir_all(&made)?;
        if form == Form::Packages {
            print_documents(release, program, &made)?;
        }
        list_crates(package, release, form, &made)?;
        let mut tree = Self { root, files: Vec::new(), scratch: scratch.to_owned() };
        for file in package.files.iter().filter(|file| file.form == form || file.form == Form::All) {
            let sources = match file.source.split_once(':') {
                Some(("bin", _)) => vec![program.to_owned()],
                Some(("made", name)) => matching(&made, name)?,
                _ => vec![release.root.join(&file.source)],
            };
            for source in sources {
                let name = source.file_name().unwrap_or_default().to_string_lossy();
                let path = if file.to.ends_with('/') { format!("{}{name}", file.to) } else { file.to.clone() };
                let mode = u32::from_str_radix(&file.mode, 8).with_context(|| format!("{path}: mode {}", file.mode))?;
                tree.install(&source, path, (mode, file.conffile, file.gzip))?;
            }
        }
        tree.add_copyright(package, release)?;
        if form == Form::Packages {
            tree.add_changelog(package, release)?;
        }
        tree.files.sort_by(|one, other| one.path.cmp(&other.path));
        if let Some(twice) = tree.files.windows(2).find(|pair| pair[0].path == pair[1].path) {
            bail!("{} is in package {} twice", twice[0].path, package.name);
        }
        set_times(&tree.root, &release.epoch)?;
        Ok(tree)
    }

    fn install(&mut self, source: &Path, path: String, (mode, conffile, gzip): (u32, bool, bool)) -> Result<()> {
        let bytes = fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
        self.put(path, bytes, (mode, conffile, gzip))
    }

    fn put(&mut self, path: String, bytes: Vec<u8>, (mode, conffile, gzip): (u32, bool, bool)) -> Result<()> {
        let (path, bytes) =
            if gzip { (format!("{path}.gz"), packed(&bytes, Compression::best())?) } else { (path, bytes) };
        let to = self.root.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("below the root"))?;
        fs::write(&to, bytes)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
        self.files.push(Installed { path, mode, conffile });
        Ok(())
    }

    /// Copyright, as Debian policy 12.5 asks for.
    fn add_copyright(&mut self, package: &Package, release: &Release) -> Result<()> {
        let dir = format!("/usr/share/doc/{}", package.name);
        let mit = fs::read_to_string(release.root.join("LICENSE-MIT"))?;
        let indented =
            mit.lines().map(|line| if line.trim().is_empty() { " .".to_owned() } else { format!(" {line}") });
        let copyright = format!(
            "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: Vedette\n\
             Source: https://github.com/vedette-project/vedette\n\nFiles: *\nCopyright: The Vedette project\n\
             License: Expat or Apache-2.0\n\nLicense: Expat\n{}\n\nLicense: Apache-2.0\n On Debian systems, the text is in \
             /usr/share/common-licenses/Apache-2.0.\n",
            indented.collect::<Vec<_>>().join("\n")
        );
        self.put(format!("{dir}/copyright"), copyright.into_bytes(), (0o644, false, false))
    }

    /// Changelog, as Debian policy 12.7 asks for.
    fn add_changelog(&mut self, package: &Package, release: &Release) -> Result<()> {
        let dir = format!("/usr/share/doc/{}", package.name);
        let date = run::output("date", ["-u", "-R", "-d", &format!("@{}", release.epoch)])?;
        let changelog = format!(
            "{} ({}) unstable; urgency=medium\n\n  * Release {}.\n\n -- The Vedette project <packages@vedette.example>  {}",
            package.name, release.version, release.version, date
        );
        self.put(format!("{dir}/changelog"), changelog.into_bytes(), (0o644, false, true))
    }

    /// Directories of the package's own, which no other package is likely to have; sorted.
    pub(crate) fn own_directories(&self, package: &Package) -> Vec<String> {
        let mut out: Vec<String> = self
            .files
            .iter()
            .filter_map(|file| Path::new(&file.path).parent().map(|dir| dir.display().to_string()))
            .filter(|dir| Path::new(dir).file_name().is_some_and(|name| *name == *package.name))
            .collect();
        out.sort();
        out.dedup();
        out
    }
}

/// gzip without name and time, so that the same text gives the same bytes.
pub(crate) fn packed(bytes: &[u8], level: Compression) -> Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), level);
    gzip.write_all(bytes)?;
    Ok(gzip.finish()?)
}

/// Files of a directory that a name with at most one `*` at its end selects.
fn matching(dir: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let Some(prefix) = name.strip_suffix("/*") else { return Ok(vec![dir.join(name)]) };
    let mut out = Vec::new();
    for entry in fs::read_dir(dir.join(prefix))? {
        out.push(entry?.path());
    }
    out.sort();
    Ok(out)
}

/// Writes the SBOM, the licences, and Mozilla's root certificates for where there is no system that has them.
fn list_crates(package: &Package, release: &Release, form: Form, made: &Path) -> Result<()> {
    fs::write(made.join("ca-certificates.crt"), root_certificates())?;
    let crates = crates::crates(package, release, if form == Form::Image { Libc::Static } else { Libc::Gnu })?;
    fs::write(made.join("sbom.cdx.json"), crates::bill_of_materials(package, release, &crates)?)?;
    fs::write(made.join("licences"), crates::licences(&crates)?)?;
    Ok(())
}

/// PEM (RFC 7468).
fn root_certificates() -> String {
    let pem = |certificate: &[u8]| {
        let text = BASE64_STANDARD.encode(certificate);
        let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    };
    webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().map(|certificate| pem(certificate)).collect()
}

/// Lets the program print its man pages and completions.
fn print_documents(release: &Release, program: &Path, made: &Path) -> Result<()> {
    for dir in ["man", "completions"] {
        fs::create_dir_all(made.join(dir))?;
    }
    let native = std::env::consts::ARCH == release.arch.name();
    let command = || {
        if native {
            return Command::new(program);
        }
        // From libc6-arm64-cross and qemu-user-static.
        let mut command = Command::new(format!("qemu-{}-static", release.arch.name()));
        command.arg("-L").arg(format!("/usr/{}-linux-gnu", release.arch.name())).arg(program);
        command
    };
    run::run(command().args(["man", "--dir"]).arg(made.join("man")))?;
    for shell in ["bash", "zsh", "fish"] {
        let script = run::run(command().args(["completions", shell]))?;
        fs::write(made.join("completions").join(shell), script)?;
    }
    Ok(())
}

/// Gives every file and directory the same time.
fn set_times(root: &Path, epoch: &str) -> Result<()> {
    let time = format!("@{epoch}");
    run::run(Command::new("find").arg(root).args(["-exec", "touch", "--no-dereference", "--date", &time, "{}", "+"]))?;
    Ok(())
}
