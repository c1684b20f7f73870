//! Log-ins, failed log-ins and log-outs in messages of OpenSSH, sudo, su, login and PAM.
//!
//! One log-in logs several lines and is counted once: `Accepted … for` of sshd rather than the PAM line that follows it,
//! the PAM line for other services.
//!
//! ```text
//! sshd       Accepted publickey for alice from 192.0.2.7 port 51514 ssh2: ED25519 SHA256:…
//! sshd       Failed password for invalid user admin from 192.0.2.7 port 51514 ssh2
//! sudo       pam_unix(sudo:session): session opened for user root(uid=0) by alice(uid=1000)
//! login      pam_unix(login:session): session closed for user alice
//! su         pam_unix(su:auth): authentication failure; logname= uid=1000 … ruser=alice rhost=  user=root
//! ```
//!
//! A peer chooses its user name, the id in its certificate and its host name. None of these may become another field: a
//! message is parsed from its fixed ends, and a field with two possible readings is absent.

use crate::{
    column::{Column, Value, boolean, integer, text},
    ocsf::{Event, object},
};
use core::net::IpAddr;
use serde_json::json;

/// OCSF 3002 activity: log on.
pub const LOGON: u8 = 1;
/// OCSF 3002 activity: log off.
pub const LOGOFF: u8 = 2;
/// OCSF 3002 activity: account switch (sudo, su).
pub const SWITCH: u8 = 7;

/// A log-in, a log-out or an account switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// OCSF activity.
    pub activity: u8,
    /// User who logs in, or target account of a switch; absent where the message names none.
    pub user: Option<String>,
    /// Success; absent for a log-out.
    pub success: Option<bool>,
    /// Source address or host name.
    pub source: Option<String>,
    /// Source port.
    pub port: Option<u16>,
    /// Service: `sshd`, `sudo`, `su`, `login`.
    pub service: String,
    /// `password`, `publickey`, …
    pub method: Option<String>,
    /// Account that switches to another.
    pub by: Option<String>,
}

/// Columns of kinds that report log-ins, in the order of [`values`].
pub(super) const COLUMNS: [Column; 6] = [
    text("login_user", "user who logs in, or whom sudo or su switches to; any local user may have such a line written"),
    text("login_source", "address or host name that the log-in came from"),
    integer("login_port", "port that it came from"),
    boolean("login_success", "whether it succeeded; null for a log-out"),
    text("login_by", "account behind a switch by sudo or su; null where a user logs in"),
    text("login_method", "how the user was authenticated: `password`, `publickey`, …"),
];

/// Values of [`COLUMNS`].
pub(super) fn values(login: Option<Login>) -> [Value<'static>; COLUMNS.len()] {
    let Some(login) = login else { return [const { Value::Null }; COLUMNS.len()] };
    let Login { user, source, port, success, by, method, .. } = login;
    [user.into(), source.into(), port.into(), success.into(), by.into(), method.into()]
}

/// Count and inner message of a repeated message: `message repeated 5 times: [ … ]` of rsyslog; `last message repeated 5 times`
/// of other daemons, which has no inner message.
pub(super) fn repeated(message: &str) -> Option<(u64, &str)> {
    let (count, rest) = match message.strip_prefix("message repeated ") {
        Some(rest) => rest.split_once(" times: [")?,
        None => (message.strip_prefix("last message repeated ")?.strip_suffix(" times")?, ""),
    };
    let inner = rest.strip_suffix(']').unwrap_or(rest);
    Some((count.parse().ok()?, inner.strip_prefix(' ').unwrap_or(inner)))
}

/// Recognises a log-in message. Most messages fail the first comparison.
pub fn recognise(app: &str, message: &str) -> Option<Login> {
    let message = repeated(message).map_or(message, |(_, message)| message);
    // gdm logs as `gdm-password]`.
    match app.trim_end_matches(']') {
        "sshd" | "sshd-session" | "sshd-auth" => sshd(message).or_else(|| pam(message)),
        "sudo" | "sudo-i" | "sudo-rs" | "su" | "su-l" | "su-rs" | "login" | "lightdm" | "sddm" | "cron" | "CRON" => {
            pam(message)
        }
        app if app.starts_with("gdm-") => pam(message),
        _ => None,
    }
}

/// Directories of system programs; ordinary users cannot write there.
const SYSTEM: [&str; 4] = ["/usr/", "/bin/", "/sbin/", "/lib/"];
/// Directories where a daemon installs programs, users' own among them: a program there must also run as root.
const STORES: [&str; 2] = ["/nix/store/", "/gnu/store/"];
/// Programs that log users in.
const PROGRAMS: [&str; 11] = [
    "sshd",
    "sshd-session",
    "sshd-auth",
    "sudo",
    "sudo-rs",
    "su",
    "su-rs",
    "login",
    "gdm-session-worker",
    "lightdm",
    "sddm-helper",
];

/// Whether a path, as the kernel names it, is a system program that logs users in. The kernel appends ` (deleted)` when the
/// file was replaced (proc_pid_exe(5)).
pub fn is_login_program(path: &str, uid: Option<u32>) -> bool {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let Some((dir, name)) = path.rsplit_once('/') else { return false };
    let is_plain = !dir.split('/').any(|part| part == "..");
    let is_system = SYSTEM.iter().any(|system| path.starts_with(system)) && !path.starts_with("/usr/local/");
    let is_stored = uid == Some(0) && STORES.iter().any(|store| path.starts_with(store));
    is_plain && (is_system || is_stored) && PROGRAMS.contains(&name)
}

/// `Accepted|Failed METHOD for [invalid user ]USER from ADDRESS port PORT ssh2[: KEY]` (auth_log of OpenSSH's auth.c).
fn sshd(message: &str) -> Option<Login> {
    let (success, rest) = match message.strip_prefix("Accepted ") {
        Some(rest) => (true, rest),
        None => (false, message.strip_prefix("Failed ")?),
    };
    let (method, rest) = rest.split_once(' ')?;
    let rest = rest.strip_prefix("for ")?;
    let (is_known, rest) = rest.strip_prefix("invalid user ").map_or((true, rest), |rest| (false, rest));
    let mut readings = rest.match_indices(" from ").filter_map(|(at, from)| {
        let (user, rest) = (&rest[..at], &rest[at + from.len()..]);
        let (source, rest) = rest.split_once(" port ")?;
        let (port, key) = rest.split_once(" ssh2").unwrap_or((rest, ""));
        let is_end = key.is_empty() || key.strip_prefix(": ").is_some_and(is_key);
        (is_end && !source.contains(' ')).then_some((user, source, port.parse::<u16>().ok()?))
    });
    let first = readings.next()?;
    // An account name cannot contain this text, so the first reading holds whatever a certificate's id contains.
    let is_sure = is_known || readings.next().is_none();
    let (user, source, port) =
        if is_sure { (Some(first.0), address(first.1), Some(first.2)) } else { (None, None, None) };
    Some(Login {
        activity: LOGON,
        user: user.map(str::to_owned),
        success: Some(success),
        source,
        port,
        service: "sshd".to_owned(),
        method: Some(method.to_owned()),
        by: None,
    })
}

/// The text after `ssh2: `: a Kerberos principal, or `TYPE FINGERPRINT`; a certificate adds `ID … (serial N) CA TYPE
/// FINGERPRINT`, a host adds `, client user "…", client host "…"`.
fn is_key(text: &str) -> bool {
    let Some((kind, rest)) = text.split_once(' ') else { return !text.is_empty() };
    let Some((fingerprint, rest)) = rest.split_once(' ') else { return !kind.is_empty() && !rest.is_empty() };
    if fingerprint.ends_with(',') {
        return rest.starts_with("client user \"") && rest.ends_with('"');
    }
    let serial = rest.strip_prefix("ID ").and_then(|rest| rest.rsplit_once(" (serial "));
    let authority = serial.and_then(|(_, rest)| rest.split_once(") CA "));
    authority.is_some_and(|(number, key)| {
        number.bytes().all(|byte| byte.is_ascii_digit()) && key.split(' ').take(3).count() == 2
    })
}

/// An address or a host name; sshd and PAM write `UNKNOWN` for none.
fn address(text: &str) -> Option<String> {
    let is_name = !text.is_empty() && text != "UNKNOWN" && !text.contains(|letter: char| letter.is_whitespace());
    is_name.then(|| text.to_owned())
}

/// Services that open sessions without a log-in: jobs, user services, log-in screens.
const NOBODY: [&str; 10] = [
    "cron",
    "crond",
    "anacron",
    "atd",
    "systemd-user",
    "gdm-launch-environment",
    "lightdm-greeter",
    "lightdm-autologin-greeter",
    "sddm-greeter",
    "runuser",
];
/// Services that switch accounts.
const SWITCHES: [&str; 5] = ["sudo", "sudo-i", "su", "su-l", "su-rs"];

/// `pam_unix(SERVICE:TYPE): …` (pam_unix(8)).
fn pam(message: &str) -> Option<Login> {
    let rest = message.strip_prefix("pam_unix(")?;
    let (module, rest) = rest.split_once("): ")?;
    let (service, kind) = module.split_once(':')?;
    if NOBODY.contains(&service) {
        return None;
    }
    let switch = SWITCHES.contains(&service);
    let activity = if switch { SWITCH } else { LOGON };
    let mut login = Login {
        activity,
        user: None,
        success: Some(true),
        source: None,
        port: None,
        service: service.to_owned(),
        method: None,
        by: None,
    };
    if let Some(rest) = rest.strip_prefix("session opened for user ") {
        if service == "sshd" {
            return None;
        }
        let (user, by) = opened(rest);
        login.user = user;
        // Root's own programs open sessions that are not switches.
        login.by = by.filter(|_| switch);
    } else if let Some(rest) = rest.strip_prefix("session closed for user ") {
        (login.activity, login.success) = (LOGOFF, None);
        login.user = name(rest);
    } else if kind == "auth"
        && service != "sshd"
        && let Some(fields) = rest.strip_prefix("authentication failure; ")
    {
        let failure = Failure::read(fields)?;
        login.success = Some(false);
        login.source = failure.host.and_then(address);
        let by = failure.by.map(str::to_owned).filter(|by| !by.is_empty());
        if service.starts_with("sudo") {
            // sudo asks for the caller's password, and does not log the target account here.
            login.by = by.or_else(|| failure.user.map(str::to_owned));
        } else {
            login.user = failure.user.map(str::to_owned);
            login.by = by.filter(|_| switch);
        }
    } else {
        return None;
    }
    Some(login)
}

/// `USER(uid=0) by ACCOUNT(uid=1000)`, in older releases `USER by ACCOUNT(uid=1000)`; names may contain spaces.
fn opened(text: &str) -> (Option<String>, Option<String>) {
    // The account is a local one, so it follows the last ` by `.
    match text.rsplit_once(" by ") {
        Some((user, by)) => (name(user), name(by)),
        None => (name(text), None),
    }
}

/// A name without `(uid=1000)`.
fn name(text: &str) -> Option<String> {
    let is_uid = |uid: &str| uid.strip_suffix(')').is_some_and(|uid| uid.bytes().all(|byte| byte.is_ascii_digit()));
    let name = text.rsplit_once("(uid=").filter(|(_, uid)| is_uid(uid)).map_or(text, |(name, _)| name);
    (!name.is_empty()).then(|| name.to_owned())
}

/// `logname=%s uid=%d euid=%d tty=%s ruser=%s rhost=%s  user=%s` (pam_unix_auth.c): the peer chooses the last three.
struct Failure<'a> {
    by: Option<&'a str>,
    host: Option<&'a str>,
    user: Option<&'a str>,
}

impl<'a> Failure<'a> {
    fn read(fields: &'a str) -> Option<Self> {
        let (_, rest) = fields.split_once(" ruser=")?;
        let (head, user) = match rest.split_once("  user=") {
            Some((head, user)) => (head, Some(user)),
            None => (rest, None),
        };
        let (by, host) = head.split_once(" rhost=").unzip();
        // If a value contains a field separator, no field is certain.
        let is_sure = rest.matches(" rhost=").count() == 1 && rest.matches("  user=").count() <= 1;
        let sure = |text: &'a str| is_sure.then_some(text.trim_end());
        Some(Self { by: by.and_then(sure), host: host.and_then(sure), user: user.and_then(sure) })
    }
}

impl Login {
    /// Attributes of class 3002.
    pub(super) fn render(&self, event: &mut Event) {
        event.set("user", object([("name", json!(self.user))]));
        event.set("service", json!({"name": self.service}));
        event.set("status_id", self.success.map(|success| if success { 1 } else { 2 }));
        event.set("is_remote", self.source.is_some());
        event.set("auth_protocol", self.method.clone());
        event.set("auth_protocol_id", self.method.as_ref().map(|_| 99));
        let is_address = self.source.as_ref().is_some_and(|source| source.parse::<IpAddr>().is_ok());
        let what = if is_address { "ip" } else { "hostname" };
        event.set("src_endpoint", object([(what, json!(self.source)), ("port", json!(self.port))]));
        if let Some(by) = &self.by {
            event.set("actor", json!({"user": {"name": by}}));
        }
    }
}

#[cfg(test)]
mod tests;
