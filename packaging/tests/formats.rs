//! The packages, as their formats' own tools see them.

#![expect(clippy::print_stdout, reason = "a skipped test says why")]

mod support;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};
use support::{packaging, tool, try_run};

fn run(command: &mut Command) -> String {
    try_run(command).unwrap_or_else(|text| panic!("{command:?}: {text}"))
}

fn is_installed(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

/// Packages of the agent in all formats; absent where the tools are not installed.
fn packages() -> Option<&'static Path> {
    static PACKAGES: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let has_tools = ["dpkg-deb", "rpmbuild", "strip"].into_iter().all(is_installed);
        has_tools.then(|| build(Path::new(env!("CARGO_TARGET_TMPDIR")).join("formats")))
    };
    PACKAGES.get_or_init(build).as_deref()
}

fn build(out: PathBuf) -> PathBuf {
    for format in ["deb", "rpm", "tar"] {
        run(Command::new(env!("CARGO_BIN_EXE_vedette-packaging"))
            .args([format, "--profile", "dev", "--package", "vedette", "--out"])
            .arg(&out));
    }
    out
}

/// The image of the agent; absent where the tools are not installed.
fn image(name: &str) -> Option<PathBuf> {
    tool("cargo-zigbuild")?;
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    run(Command::new(env!("CARGO_BIN_EXE_vedette-packaging"))
        .args(["image", "--profile", "dev", "--package", "vedette", "--out"])
        .arg(&out));
    Some(file(&out, ".oci.tar"))
}

fn file(dir: &Path, extension: &str) -> PathBuf {
    let mut files = std::fs::read_dir(dir).expect("lists").map(|entry| entry.expect("an entry").path());
    files.find(|path| path.to_string_lossy().ends_with(extension)).expect("it is built")
}

#[test]
fn the_same_files_are_in_every_format() {
    let Some(dir) = packages() else { return };
    let normal = |text: String| {
        let lines = text.lines().map(|line| line.trim_start_matches('.').trim_start_matches('/').to_owned());
        // Directories of the system are in deb and tar alone.
        let mut files: Vec<String> = lines.filter(|line| !line.is_empty() && !line.ends_with('/')).collect();
        files.sort();
        files
    };
    let tar = normal(run(Command::new("tar").arg("-tf").arg(file(dir, ".tar.gz"))));
    let contents = run(Command::new("dpkg-deb").arg("-c").arg(file(dir, ".deb")));
    let paths = contents.lines().filter_map(|line| line.split_whitespace().nth(5)).collect::<Vec<_>>().join("\n");
    assert_eq!(normal(paths), tar);
    let rpm = normal(run(Command::new("rpm").args(["-qlp"]).arg(file(dir, ".rpm"))));
    let own_directories = ["etc/vedette", "usr/share/doc/vedette"];
    assert_eq!(rpm.into_iter().filter(|path| !own_directories.contains(&path.as_str())).collect::<Vec<_>>(), tar);
    for needed in [
        "usr/bin/vedette",
        "etc/vedette/vedette.toml",
        "usr/share/man/man1/vedette.1.gz",
        "usr/share/doc/vedette/sbom.cdx.json",
    ] {
        assert!(tar.iter().any(|path| path == needed), "{needed}");
    }
}

#[test]
fn two_builds_give_the_same_bytes() {
    let Some(dir) = packages() else { return };
    let again = build(Path::new(env!("CARGO_TARGET_TMPDIR")).join("formats-again"));
    for extension in [".deb", ".rpm", ".tar.gz"] {
        let bytes = |dir| std::fs::read(file(dir, extension)).expect("reads");
        assert!(bytes(dir) == bytes(&again), "{extension} differs");
    }
}

#[test]
fn lintian_and_rpmlint_find_no_fault() {
    let Some(dir) = packages() else { return };
    if is_installed("lintian") {
        let text =
            run(Command::new("lintian").args(["--allow-root", "--fail-on", "error,warning"]).arg(file(dir, ".deb")));
        assert!(!text.contains("W: ") && !text.contains("E: "), "{text}");
    }
    if is_installed("rpmlint") {
        let output = Command::new("rpmlint").arg(file(dir, ".rpm")).output().expect("starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // Tests do not sign. Units belong below /usr/lib. Debian's rpmlint asks for bzip2 and knows no SPDX names.
        let known = [
            "no-signature",
            "only-non-binary-in-usr-lib",
            "invalid-license",
            "manpage-not-compressed",
            "no-manual-page-for-binary",
        ];
        let faults: Vec<&str> = text
            .lines()
            .filter(|line| line.contains(" E: ") || line.contains(" W: "))
            .filter(|line| !known.iter().any(|known| line.contains(known)))
            .collect();
        assert!(faults.is_empty(), "{faults:?}");
    }
}

#[test]
fn scripts_are_clean() {
    let Some(dir) = packages() else { return };
    if !is_installed("shellcheck") {
        return;
    }
    let control = dir.join("control");
    run(Command::new("dpkg-deb").arg("-e").arg(file(dir, ".deb")).arg(&control));
    for script in ["preinst", "postinst", "prerm", "postrm"] {
        run(Command::new("shellcheck").arg(control.join(script)));
    }
    for script in ["tools", "release", "kubernetes/render"] {
        run(Command::new("shellcheck").arg(packaging().join(script)));
    }
}

#[test]
fn the_sbom_lists_what_the_program_is_built_of() {
    let Some(dir) = packages() else { return };
    let mut tar = Command::new("tar");
    let text = run(tar.arg("-xOf").arg(file(dir, ".tar.gz")).arg("./usr/share/doc/vedette/sbom.cdx.json"));
    let bill: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((bill["bomFormat"].as_str(), bill["specVersion"].as_str()), (Some("CycloneDX"), Some("1.5")));
    let components = bill["components"].as_array().expect("a list");
    let names: Vec<&str> = components.iter().filter_map(|component| component["name"].as_str()).collect();
    for needed in ["tokio", "rustls", "vedette-wire", "redb"] {
        assert!(names.contains(&needed), "{needed}");
    }
    assert!(!names.contains(&"proptest") && !names.contains(&"datafusion"), "of tests, of another program");
}

/// Read by the tools of containers: skopeo parses and copies the image, umoci unpacks its layer.
#[test]
fn the_image_has_the_program_certificates_and_licences_and_a_user_with_few_rights() {
    let Some(image) = image("image") else { return };
    if !is_installed("skopeo") || !is_installed("umoci") || !is_installed("getcap") {
        return;
    }
    let dir = tempfile::tempdir().expect("temp dir");
    let layout = dir.path().join("layout");
    let (from, to) = (format!("oci-archive:{}", image.display()), format!("oci:{}:image", layout.display()));
    run(Command::new("skopeo").args(["--insecure-policy", "copy", &from, &to]));
    let config = run(Command::new("skopeo").args(["--insecure-policy", "inspect", "--config", &from]));
    let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/usr/bin/vedette"]));
    if !is_root() {
        println!("skipped: unpacking owners and capabilities needs root");
        return;
    }
    let bundle = dir.path().join("bundle");
    run(Command::new("umoci").args(["unpack", "--image"]).arg(format!("{}:image", layout.display())).arg(&bundle));
    let root = bundle.join("rootfs");
    let listed = run(Command::new("find").arg(&root).args(["-type", "f", "-printf", "%m %U:%G /%P\\n"]));
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    assert_eq!(
        listed,
        [
            "644 0:0 /etc/ssl/certs/ca-certificates.crt",
            "644 0:0 /etc/vedette/vedette.toml",
            "644 0:0 /usr/share/doc/vedette/copyright",
            "644 0:0 /usr/share/doc/vedette/licences.gz",
            "644 0:0 /usr/share/doc/vedette/sbom.cdx.json",
            "755 0:0 /usr/bin/vedette",
        ]
    );
    let owned = run(Command::new("find").arg(&root).args(["-uid", "65532", "-printf", "%m /%P\\n"]));
    let mut owned: Vec<&str> = owned.lines().collect();
    owned.sort_unstable();
    assert_eq!(owned, ["700 /etc/vedette/bootstrap", "700 /run/vedette", "700 /var/lib/vedette"]);
    let capabilities = run(Command::new("getcap").arg(root.join("usr/bin/vedette")));
    assert!(capabilities.trim().ends_with("cap_dac_read_search,cap_sys_ptrace=p"), "{capabilities}");
    // Nothing but the image: no library, no shell.
    let version = run(Command::new("chroot").arg(&root).args(["/usr/bin/vedette", "version"]));
    assert!(version.starts_with("vedette "), "{version}");
    let certificates = std::fs::read_to_string(root.join("etc/ssl/certs/ca-certificates.crt")).expect("reads");
    assert!(certificates.matches("BEGIN CERTIFICATE").count() > 100);
    let licences = run(Command::new("gzip").args(["-dc"]).arg(root.join("usr/share/doc/vedette/licences.gz")));
    assert!(["tokio ", "rustls ", "redb "].iter().all(|name| licences.contains(name)), "licences of the crates");
    let again = self::image("image-again").expect("it was built");
    assert!(std::fs::read(image).expect("reads") == std::fs::read(again).expect("reads"), "two builds differ");
}

fn is_root() -> bool {
    run(Command::new("id").arg("-u")).trim() == "0"
}
