//! Log-ins, failed log-ins and log-outs told of by log messages of OpenSSH, sudo, su, login and PAM.
//!
//! One log-in makes several lines; only one of them counts: `Accepted … for` of sshd rather than the PAM line behind
//! it, the PAM line for the other services.
//!
//! ```text
//! sshd       Accepted publickey for alice from 192.0.2.7 port 51514 ssh2: ED25519 SHA256:…
//! sshd       Failed password for invalid user admin from 192.0.2.7 port 51514 ssh2
//! sudo       pam_unix(sudo:session): session opened for user root(uid=0) by alice(uid=1000)
//! login      pam_unix(login:session): session closed for user alice
//! su         pam_unix(su:auth): authentication failure; logname= uid=1000 … user=root
//! ```

use crate::ocsf::{Event, object};
use serde_json::json;

/// OCSF 3002 activity: log on.
pub const LOGON: u8 = 1;
/// OCSF 3002 activity: log off.
pub const LOGOFF: u8 = 2;
/// OCSF 3002 activity: account switch (sudo, su).
pub const SWITCH: u8 = 7;

/// What a message tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// OCSF activity.
    pub activity: u8,
    /// The user who logs in, or whom the account is switched to.
    pub user: String,
    /// Whether it succeeded.
    pub success: bool,
    /// Address that it came from.
    pub source: Option<String>,
    /// Port that it came from.
    pub port: Option<u16>,
    /// Service: `sshd`, `sudo`, `su`, `login`.
    pub service: String,
    /// `password`, `publickey`, …
    pub method: Option<String>,
    /// The account that switches.
    pub by: Option<String>,
}

/// Recognise a message; most are not about log-ins, which the first comparison finds out.
pub fn recognise(app: &str, message: &str) -> Option<Login> {
    match app {
        "sshd" | "sshd-session" => sshd(message).or_else(|| pam(message)),
        "sudo" | "su" | "login" | "su-l" | "gdm-password" | "gdm-password]" | "lightdm" | "cron" | "CRON" => {
            pam(message)
        }
        _ => None,
    }
}

/// Whether a path is a program of the system that logs users in.
pub fn is_login_program(path: &str) -> bool {
    let Some((dir, name)) = path.rsplit_once('/') else { return false };
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/lib/openssh", "/usr/libexec", "/usr/libexec/openssh"];
    let programs = ["sshd", "sshd-session", "sshd-auth", "sudo", "su", "login", "gdm-session-worker", "lightdm"];
    system.contains(&dir) && programs.contains(&name)
}

fn sshd(message: &str) -> Option<Login> {
    let (success, rest) = match message.strip_prefix("Accepted ") {
        Some(rest) => (true, rest),
        None => (false, message.strip_prefix("Failed ")?),
    };
    let (method, rest) = rest.split_once(" for ")?;
    let rest = rest.strip_prefix("invalid user ").unwrap_or(rest);
    // A user name may hold blanks; the address is behind the last " from ".
    let (user, rest) = rest.rsplit_once(" from ")?;
    let mut words = rest.split(' ');
    let source = words.next()?.to_owned();
    let port = (words.next() == Some("port")).then(|| words.next()?.trim_end_matches(':').parse().ok()).flatten();
    Some(Login {
        activity: LOGON,
        user: user.to_owned(),
        success,
        source: Some(source),
        port,
        service: "sshd".to_owned(),
        method: Some(method.to_owned()),
        by: None,
    })
}

fn pam(message: &str) -> Option<Login> {
    let rest = message.strip_prefix("pam_unix(")?;
    let (module, rest) = rest.split_once("): ")?;
    let (service, kind) = module.split_once(':')?;
    // cron opens a session each time a job runs: not a log-in.
    if service == "cron" {
        return None;
    }
    let switch = matches!(service, "sudo" | "su" | "su-l");
    let name = |text: &str| text.split(['(', ' ']).next().unwrap_or_default().to_owned();
    let (activity, success, user, by) = if let Some(rest) = rest.strip_prefix("session opened for user ") {
        if service == "sshd" {
            return None;
        }
        let by = rest.split_once(" by ").map(|(_, by)| name(by)).filter(|by| !by.is_empty());
        (if switch { SWITCH } else { LOGON }, true, name(rest), by)
    } else if let Some(rest) = rest.strip_prefix("session closed for user ") {
        (LOGOFF, true, name(rest), None)
    } else if kind == "auth" && rest.starts_with("authentication failure;") && service != "sshd" {
        let field = |key: &str| rest.split(' ').find_map(|word| word.strip_prefix(key)).map(str::to_owned);
        (if switch { SWITCH } else { LOGON }, false, field("user=")?, field("ruser=").filter(|by| !by.is_empty()))
    } else {
        return None;
    };
    let service = service.to_owned();
    Some(Login { activity, user, success, source: None, port: None, service, method: None, by })
}

impl Login {
    /// The attributes of class 3002.
    pub(super) fn render(&self, event: &mut Event) {
        event.set("user", json!({"name": self.user}));
        event.set("service", json!({"name": self.service}));
        event.set("status_id", if self.success { 1 } else { 2 });
        event.set("is_remote", self.source.is_some());
        event.set("auth_protocol", self.method.clone());
        event.set("auth_protocol_id", self.method.as_ref().map(|_| 99));
        event.set("src_endpoint", object([("ip", json!(self.source)), ("port", json!(self.port))]));
        if let Some(by) = &self.by {
            event.set("actor", json!({"user": {"name": by}}));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(app: &str, message: &str, expected: Option<(u8, &str, bool, Option<&str>)>) {
        let login = recognise(app, message);
        let found = login.as_ref().map(|l| (l.activity, l.user.as_str(), l.success, l.source.as_deref()));
        assert_eq!(found, expected, "{app}: {message}");
    }

    #[test]
    fn only_programs_of_the_system_log_in() {
        for path in ["/usr/sbin/sshd", "/usr/lib/openssh/sshd-session", "/usr/bin/sudo", "/bin/login"] {
            assert!(is_login_program(path), "{path}");
        }
        for path in ["/usr/bin/logger", "/tmp/sshd", "/home/eve/usr/sbin/sshd", "sshd", "/usr/sbin/../../tmp/sshd"] {
            assert!(!is_login_program(path), "{path}");
        }
        let forged = crate::body::Journal {
            message: "Accepted password for root from 203.0.113.9 port 1 ssh2".to_owned(),
            identifier: Some("sshd".to_owned()),
            comm: Some("sshd".to_owned()),
            exe: Some("/usr/bin/logger".to_owned()),
            uid: Some(0),
            ..crate::body::Journal::default()
        };
        let class = |journal: &crate::body::Journal| crate::body::Observation::class(journal);
        assert_eq!(class(&forged), crate::ocsf::Class::BaseEvent);
        let gone = crate::body::Journal { exe: None, ..forged.clone() };
        assert_eq!(class(&gone), crate::ocsf::Class::Authentication);
        assert_eq!(class(&crate::body::Journal { uid: Some(1000), ..gone }), crate::ocsf::Class::BaseEvent);
        let real = crate::body::Journal { exe: Some("/usr/sbin/sshd".to_owned()), ..forged };
        assert_eq!(class(&real), crate::ocsf::Class::Authentication);
    }

    #[test]
    fn log_ins_are_recognised_once() {
        check(
            "sshd",
            "Accepted publickey for alice from 192.0.2.7 port 51514 ssh2: ED25519 SHA256:abc",
            Some((LOGON, "alice", true, Some("192.0.2.7"))),
        );
        check(
            "sshd-session",
            "Failed password for invalid user a from b from 2001:db8::1 port 22 ssh2",
            Some((LOGON, "a from b", false, Some("2001:db8::1"))),
        );
        check("sshd", "pam_unix(sshd:session): session opened for user alice(uid=1000) by (uid=0)", None);
        check("sshd", "pam_unix(sshd:session): session closed for user alice", Some((LOGOFF, "alice", true, None)));
        check(
            "sudo",
            "pam_unix(sudo:session): session opened for user root(uid=0) by alice(uid=1000)",
            Some((SWITCH, "root", true, None)),
        );
        check(
            "su",
            "pam_unix(su:auth): authentication failure; logname=a uid=1000 euid=0 tty=pts/0 ruser=a rhost=  user=root",
            Some((SWITCH, "root", false, None)),
        );
        check("CRON", "pam_unix(cron:session): session opened for user root(uid=0) by (uid=0)", None);
        check("nginx", "Accepted publickey for alice from 192.0.2.7 port 51514 ssh2", None);
        check("sshd", "Accepted", None);
        check("sshd", "Server listening on 0.0.0.0 port 22.", None);
    }
}
