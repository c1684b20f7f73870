#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

use super::{
    glob::{Expansion, Pattern},
    *,
};
use std::{
    io::Read,
    os::unix::fs::{PermissionsExt, chown, lchown, symlink},
};

struct Host {
    dir: tempfile::TempDir,
    root: Root,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = Root::open(dir.path()).expect("opens");
        Self { dir, root }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    fn put(&self, path: &str, text: &str) {
        std::fs::create_dir_all(self.at(path).parent().expect("has one")).expect("makes");
        std::fs::write(self.at(path), text).expect("writes");
    }

    fn link(&self, target: &str, path: &str) {
        std::fs::create_dir_all(self.at(path).parent().expect("has one")).expect("makes");
        symlink(target, self.at(path)).expect("links");
    }

    fn expand(&self, pattern: &str) -> (Vec<String>, Vec<String>) {
        let mut expansion = Expansion::default();
        let named = expansion.expand(&self.root, &Pattern::new(pattern).expect("a pattern"));
        let problems = expansion.problems.iter().map(|(path, err)| format!("{}: {err}", path.display())).collect();
        (named.iter().map(|named| named.path.to_string_lossy().into_owned()).collect(), problems)
    }
}

fn text(file: io::Result<File>) -> Result<String, String> {
    let mut out = String::new();
    file.and_then(|mut file| file.read_to_string(&mut out)).map_err(|err| err.to_string())?;
    Ok(out)
}

/// Reads by the kernel's call and component by component; both must agree.
fn read(host: &Host, path: &str) -> Result<String, String> {
    let path = Path::new(path);
    let walked = text(host.root.walk(path).and_then(|found| found.read()));
    let found = text(host.root.read(path));
    assert_eq!(found.is_ok(), walked.is_ok(), "{}: {found:?} {walked:?}", path.display());
    found
}

#[test]
fn no_link_leads_out_of_the_root() {
    let host = Host::new();
    host.put("/var/log/app.log", "of the host");
    host.put("/etc/hostname", "host");
    for (target, link) in [
        ("/var/log/app.log", "/absolute"),
        ("../../../../../../var/log/app.log", "/a/b/upwards"),
        ("/var/log", "/logs"),
        ("/etc/hostname", "/var/name"),
    ] {
        host.link(target, link);
    }
    for path in ["/absolute", "/a/b/upwards", "/logs/app.log", "/var/log/../log/app.log", "/../../var/log/app.log"] {
        assert_eq!(read(&host, path).as_deref(), Ok("of the host"), "{path}");
    }
    // Exists on this machine and not on the host.
    host.link("/etc/passwd", "/outside");
    host.link("/proc/self/root/etc/passwd", "/magic");
    for path in ["/outside", "/magic", "/etc/passwd", "/../../../../../../etc/passwd"] {
        assert!(read(&host, path).is_err(), "{path}");
    }
    host.link("/loop2", "/loop1");
    host.link("/loop1", "/loop2");
    assert!(read(&host, "/loop1").expect_err("loops").contains("symbolic links"));
    assert_eq!(host.root.find(Path::new("/logs/app.log")).expect("is there").path(), Path::new("/var/log/app.log"));
}

fn is_log(host: &Host, path: &str) -> Result<(), String> {
    host.root.log(Path::new(path)).map(drop).map_err(|err| err.to_string())
}

#[test]
fn a_link_is_followed_only_where_nobody_else_could_have_made_it() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let (eve, bob) = (1234, 4321);
    let host = Host::new();
    host.put("/etc/shadow", "root:secret");
    host.put("/home/eve/real.log", "x");
    host.put("/home/bob/private", "x");
    host.put("/var/log/pods/0.log", "x");
    for (target, link) in [
        ("/etc/shadow", "/home/eve/x.log"),
        ("real.log", "/home/eve/own.log"),
        ("/home/bob/private", "/home/eve/bob.log"),
        ("/home/eve/own.log", "/home/eve/twice.log"),
        ("/var/log/pods/0.log", "/var/log/containers/c.log"),
        ("/home/eve/x.log", "/var/log/through.log"),
        ("/etc", "/home/eve/dir"),
    ] {
        host.link(target, link);
    }
    let own = |path: &str, uid: u32| std::os::unix::fs::lchown(host.at(path), Some(uid), Some(uid)).expect("chowns");
    for path in ["", "/real.log", "/x.log", "/own.log", "/bob.log", "/twice.log", "/dir"] {
        own(&format!("/home/eve{path}"), eve);
    }
    own("/home/bob", bob);
    own("/home/bob/private", bob);
    for path in ["/home/eve/own.log", "/home/eve/twice.log", "/var/log/containers/c.log", "/home/eve/real.log"] {
        assert_eq!(is_log(&host, path), Ok(()), "{path}");
    }
    for (path, why) in [
        ("/home/eve/x.log", "the link belongs to user 1234"),
        ("/home/eve/bob.log", "the link belongs to user 1234"),
        ("/var/log/through.log", "the link belongs to user 1234"),
        ("/home/eve/dir/shadow", "the link belongs to user 1234"),
    ] {
        let refused = is_log(&host, path).expect_err(path);
        assert!(refused.contains(why) && refused.contains("name the target"), "{path}: {refused}");
    }
    // Root's own link, in a directory where others can add names.
    let mode = |path: &str, mode: u32| {
        std::fs::set_permissions(host.at(path), std::fs::Permissions::from_mode(mode)).expect("sets");
    };
    mode("/var/log/containers", 0o1777);
    assert!(is_log(&host, "/var/log/containers/c.log").expect_err("refused").contains("writable by everybody"));
    mode("/var/log/containers", 0o775);
    chown(host.at("/var/log/containers"), Some(0), Some(99)).expect("chowns");
    assert_eq!(is_log(&host, "/var/log/containers/c.log"), Ok(()), "the group cannot make a link of root's");
    lchown(host.at("/var/log/containers/c.log"), Some(1234), None).expect("chowns");
    chown(host.at("/var/log/pods/0.log"), Some(1234), None).expect("chowns");
    assert!(is_log(&host, "/var/log/containers/c.log").expect_err("refused").contains("writable by group 99"));
    chown(host.at("/var/log/pods/0.log"), Some(1234), Some(99)).expect("chowns");
    assert_eq!(is_log(&host, "/var/log/containers/c.log"), Ok(()), "the group may read the file anyhow");
    // A hard link, where the kernel allows it to anyone (fs.protected_hardlinks = 0).
    std::fs::hard_link(host.at("/etc/shadow"), host.at("/home/eve/hard.log")).expect("links");
    assert!(is_log(&host, "/home/eve/hard.log").expect_err("refused").contains("hard link"));
    assert_eq!(is_log(&host, "/etc/shadow"), Ok(()));
}

#[test]
fn special_files_and_the_kernel_s_file_systems_are_no_logs() {
    let host = Host::new();
    rustix::fs::mknodat(CWD, host.at("fifo"), rustix::fs::FileType::Fifo, Mode::from(0o600), 0).expect("makes");
    std::fs::create_dir(host.at("dir")).expect("makes");
    for path in ["/fifo", "/dir"] {
        assert_eq!(is_log(&host, path), Err("it is not a regular file".to_owned()), "{path}");
    }
    let machine = Root::open(Path::new("/")).expect("opens");
    for path in ["/proc/version", "/proc/self/status", "/sys/kernel/uevent_seqnum", "/proc/../proc/version"] {
        let refused = machine.log(Path::new(path)).expect_err(path).to_string();
        assert!(refused.contains("kernel file system") || refused.contains("not a regular file"), "{path}: {refused}");
    }
    host.put("/proc/of-a-fixture", "x");
    assert!(is_log(&host, "/proc/of-a-fixture").expect_err("refused").contains("no log"));
}

#[test]
fn patterns_name_what_they_say_and_descend_no_links() {
    let host = Host::new();
    for path in ["/var/log/a.log", "/var/log/b.log.1", "/var/log/app/out.log", "/var/log/app/deep/er/out.log"] {
        host.put(path, "x");
    }
    host.link("..", "/var/log/app/up");
    host.link("../deep", "/var/log/app/deep/again");
    host.link("a.log", "/var/log/link.log");
    let named = |pattern: &str| {
        let (named, problems) = host.expand(pattern);
        assert!(problems.is_empty(), "{pattern}: {problems:?}");
        named
    };
    assert_eq!(named("/var/log/*.log"), ["/var/log/a.log", "/var/log/link.log"]);
    assert_eq!(named("/var/log/a.log"), ["/var/log/a.log"]);
    assert_eq!(named("/var/log/*/out.log"), ["/var/log/app/out.log"]);
    assert_eq!(named("/var/log/**/out.log"), ["/var/log/app/deep/er/out.log", "/var/log/app/out.log"]);
    assert_eq!(named("/**/a.log"), ["/var/log/a.log"]);
    for nothing in ["/nowhere/*.log", "/var/log/a.log/*", "/var/log/app", "/var/log/ap[p]"] {
        assert_eq!(named(nothing), [""; 0], "{nothing}");
    }
    for wrong in ["relative/*", "/a/{b,c}.log", "/a/../b", "/a/**", "/", "/a/[", "/***"] {
        Pattern::new(wrong).expect_err(wrong);
    }
    let pattern = Pattern::new("/var/log/**/out.log").expect("a pattern");
    assert!(pattern.matches(Path::new("/var/log/app/deep/out.log")) && !pattern.matches(Path::new("/var/log/a.log")));
    let doubled = Pattern::new("/var//log/./*.log").expect("a pattern");
    assert!(doubled.matches(Path::new("/var/log/a.log")), "as it is expanded");
    let pattern = Pattern::new("/var/log/*.log").expect("a pattern");
    assert!(!pattern.matches(Path::new("/var/log/app/out.log")));
}

#[test]
fn a_name_that_is_not_utf_8_is_found() {
    let host = Host::new();
    let name = OsStr::from_bytes(b"caf\xe9.log");
    std::fs::write(host.dir.path().join(name), "x").expect("writes");
    let mut expansion = Expansion::default();
    let named = expansion.expand(&host.root, &Pattern::new("/*.log").expect("a pattern"));
    assert_eq!(named[0].path.as_os_str().as_bytes(), b"/caf\xe9.log");
    assert_eq!(text(host.root.read(&named[0].path)).as_deref(), Ok("x"));
}

#[test]
fn what_cannot_be_listed_is_said() {
    if rustix::process::getuid().is_root() {
        // Root can list anything: an untrusted link to a directory is a problem all the same.
        let host = Host::new();
        host.put("/etc/a.log", "x");
        host.link("/etc", "/home/eve/dir");
        std::os::unix::fs::lchown(host.at("/home/eve/dir"), Some(1234), None).expect("chowns");
        let (named, problems) = host.expand("/home/eve/dir/*.log");
        assert!(named.is_empty() && problems[0].contains("belongs to user 1234"), "{problems:?}");
        return;
    }
    let host = Host::new();
    host.put("/closed/a.log", "x");
    std::fs::set_permissions(host.at("/closed"), std::fs::Permissions::from_mode(0o000)).expect("sets");
    let (named, problems) = host.expand("/closed/*.log");
    std::fs::set_permissions(host.at("/closed"), std::fs::Permissions::from_mode(0o700)).expect("sets");
    assert!(named.is_empty() && problems[0].contains("denied"), "{problems:?}");
}

#[test]
fn an_expansion_has_a_bound() {
    let host = Host::new();
    let deep = format!("/deep{}", "/d".repeat(200));
    host.put(&format!("{deep}/a.log"), "x");
    let (named, problems) = host.expand("/deep/**/a.log");
    assert!(named.is_empty() && problems[0].contains("directories deep"), "{problems:?}");
    for number in 0..300 {
        host.put(&format!("/d/{number}"), "");
    }
    let mut expansion = Expansion::default();
    let pattern = Pattern::new("/d/*").expect("a pattern");
    assert_eq!(expansion.expand(&host.root, &pattern).len(), 300);
    let mut expansion = Expansion::with_bound(100);
    assert!(expansion.expand(&host.root, &pattern).len() < 100);
    assert!(expansion.problems[0].1.to_string().contains("name fewer directories"), "{:?}", expansion.problems);
}
