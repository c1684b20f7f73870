//! Which records are security events, and which store level ([`StoreLevel`]) keeps them.
//!
//! The levels are Microsoft's for Windows security events. An event on Linux counts as its Windows equivalent. Every level
//! keeps records that are not security events (inventory, crash dumps, other log lines).

use crate::{
    Body,
    body::{Change, login},
    policy::StoreLevel,
};
use std::{borrow::Cow, ops::RangeInclusive};

/// Source of both lists: Microsoft Learn, "Security events collection in Defender for Cloud" (enable-data-collection),
/// read 2026-11.
const MINIMAL: &[RangeInclusive<u16>] = &[
    1102..=1102,
    4624..=4625,
    4657..=4657,
    4663..=4663,
    4688..=4688,
    4700..=4700,
    4702..=4702,
    4719..=4720,
    4722..=4724,
    4727..=4728,
    4732..=4732,
    4735..=4735,
    4737..=4737,
    4739..=4740,
    4754..=4756,
    4767..=4767,
    4799..=4799,
    4825..=4825,
    4946..=4946,
    4948..=4948,
    4956..=4956,
    5024..=5024,
    5033..=5033,
    8001..=8007,
    8222..=8222,
];
const COMMON: &[RangeInclusive<u16>] = &[
    1..=1,
    299..=300,
    324..=324,
    340..=340,
    403..=404,
    410..=413,
    431..=431,
    500..=501,
    1100..=1100,
    1102..=1102,
    1107..=1108,
    4608..=4608,
    4610..=4611,
    4614..=4614,
    4622..=4622,
    4624..=4625,
    4634..=4634,
    4647..=4649,
    4657..=4657,
    4661..=4663,
    4665..=4667,
    4670..=4670,
    4672..=4675,
    4688..=4689,
    4697..=4697,
    4700..=4700,
    4702..=4702,
    4704..=4705,
    4716..=4720,
    4722..=4729,
    4732..=4733,
    4735..=4735,
    4737..=4740,
    4742..=4742,
    4744..=4746,
    4750..=4752,
    4754..=4757,
    4760..=4762,
    4764..=4764,
    4767..=4768,
    4771..=4771,
    4774..=4774,
    4778..=4779,
    4781..=4781,
    4793..=4793,
    4797..=4803,
    4825..=4826,
    4870..=4870,
    4886..=4888,
    4893..=4893,
    4898..=4898,
    4902..=4902,
    4904..=4905,
    4907..=4907,
    4931..=4933,
    4946..=4946,
    4948..=4948,
    4956..=4956,
    4985..=4985,
    5024..=5024,
    5033..=5033,
    5059..=5059,
    5136..=5137,
    5140..=5140,
    5145..=5145,
    5632..=5632,
    6144..=6145,
    6272..=6273,
    6278..=6278,
    6416..=6416,
    6423..=6424,
    8001..=8007,
    8222..=8222,
    26401..=26401,
    30004..=30004,
];

/// Facilities of security messages: auth, authpriv, audit (RFC 5424 §6.2.1).
const FACILITIES: [u8; 3] = [4, 10, 13];
/// Programs that log security messages; most log files lack the facility.
const PROGRAMS: [&str; 25] = [
    "sshd",
    "sshd-session",
    "sshd-auth",
    "sudo",
    "su",
    "su-l",
    "login",
    "gdm-password",
    "gdm-password]",
    "lightdm",
    "systemd-logind",
    "polkitd",
    "pkexec",
    "useradd",
    "userdel",
    "usermod",
    "groupadd",
    "groupdel",
    "groupmod",
    "gpasswd",
    "passwd",
    "chpasswd",
    "chage",
    "chsh",
    "chfn",
];

impl StoreLevel {
    /// Whether the workspace keeps a record at this level.
    pub fn keeps(self, body: &Body) -> bool {
        let lists = match self {
            StoreLevel::All => return true,
            StoreLevel::None => &[],
            StoreLevel::Minimal => MINIMAL,
            StoreLevel::Common => COMMON,
        };
        let holds = |id: u16| lists.iter().any(|ids| ids.contains(&id));
        of(body).is_none_or(|event| event.is_some_and(holds))
    }
}

/// Windows equivalent of a security event: `Some(None)` for an event without one, `None` for a record that is not a security
/// event.
fn of(body: &Body) -> Option<Option<u16>> {
    match body {
        Body::Process(process) => match process.change {
            Change::Snapshot => None,
            // A change mostly means that the process runs another program: "a new process has been created".
            Change::Start | Change::Change => Some(Some(4688)),
            Change::End => Some(Some(4689)),
        },
        Body::Session(session) => match session.change {
            Change::Snapshot | Change::Change => None,
            Change::Start | Change::End if !session.is_user_session() => None,
            Change::Start => Some(Some(4624)),
            Change::End => Some(Some(4634)),
        },
        Body::Syslog(line) => {
            let app = line.text(line.app).unwrap_or(Cow::Borrowed(""));
            message(&app, line.facility, &line.message_text())
        }
        Body::Journal(entry) => {
            let app = entry.identifier.as_deref().or(entry.comm.as_deref()).unwrap_or_default();
            message(app, entry.facility, &entry.message)
        }
        Body::Host(_)
        | Body::Address(_)
        | Body::Crash(_)
        | Body::Heartbeat(_)
        | Body::Lifecycle(_)
        | Body::Artifact(_)
        | Body::ContainerLog(_)
        | Body::Unknown(_) => None,
    }
}

fn message(app: &str, facility: Option<u8>, text: &str) -> Option<Option<u16>> {
    if let Some(login) = login::recognise(app, text) {
        return Some(Some(match (login.activity, login.success) {
            (login::LOGOFF, _) => 4634,
            (_, Some(false)) => 4625,
            (login::SWITCH, _) => 4648,
            _ => 4624,
        }));
    }
    let is_security = PROGRAMS.contains(&app) || facility.is_some_and(|facility| FACILITIES.contains(&facility));
    is_security.then(|| account(app, text))
}

/// Changes of accounts and groups, as logged by shadow-utils, PAM and sudo.
fn account(app: &str, text: &str) -> Option<u16> {
    let has = |part: &str| text.contains(part);
    let id = match app {
        "sudo" if has("command not allowed") || has("NOT in sudoers") => 4625,
        "sudo" if has("COMMAND=") => 4688,
        _ if has("pam_unix(") && has(":chauthtok): password changed for ") => 4724,
        "useradd" if has("new user: ") => 4720,
        "useradd" | "groupadd" if has("new group: ") => 4727,
        "useradd" | "usermod" | "gpasswd" if (has("add '") || has(" added by ")) && has(" to group ") => 4732,
        "usermod" | "userdel" | "gpasswd" if (has("delete '") || has(" removed by ")) && has(" from group ") => 4733,
        "userdel" if has("delete user ") => 4726,
        "usermod" if has("unlock user ") => 4722,
        "usermod" if has("lock user ") => 4725,
        "usermod" | "chage" | "chsh" | "chfn" if has("change") => 4738,
        "groupmod" => 4735,
        _ => return None,
    };
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::{Heartbeat, Journal, Syslog};
    use serde_json::json;

    /// Which levels keep it, lowest first.
    fn levels(body: impl Into<Body>) -> [bool; 4] {
        let body = body.into();
        [StoreLevel::None, StoreLevel::Minimal, StoreLevel::Common, StoreLevel::All].map(|store| store.keeps(&body))
    }

    const NEVER_FILTERED: [bool; 4] = [true; 4];
    const MINIMAL: [bool; 4] = [false, true, true, true];
    const COMMON: [bool; 4] = [false, false, true, true];
    const ALL: [bool; 4] = [false, false, false, true];

    fn entry(identifier: &str, facility: Option<u8>, message: &str) -> Journal {
        Journal { identifier: Some(identifier.to_owned()), facility, message: message.to_owned(), ..Journal::default() }
    }

    #[test]
    fn messages_are_kept_by_the_tier_of_their_windows_event() {
        for (identifier, facility, text, expected) in [
            ("nginx", Some(3), "started", NEVER_FILTERED),
            ("kernel", Some(0), "oom", NEVER_FILTERED),
            ("sshd", None, "Accepted publickey for alice from 192.0.2.7 port 51514 ssh2: ED25519 SHA256:abc", MINIMAL),
            ("sshd", None, "Failed password for invalid user admin from 192.0.2.7 port 51514 ssh2", MINIMAL),
            ("sshd", None, "pam_unix(sshd:session): session closed for user alice", COMMON),
            ("sshd", None, "Connection closed by 192.0.2.7 port 51514 [preauth]", ALL),
            ("sudo", None, "pam_unix(sudo:session): session opened for user root(uid=0) by alice(uid=1000)", COMMON),
            ("sudo", None, "alice : TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/usr/bin/id", MINIMAL),
            ("sudo", None, "eve : user NOT in sudoers ; TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/bin/sh", MINIMAL),
            ("useradd", None, "new user: name=eve, UID=1001, GID=1001, home=/home/eve, shell=/bin/sh", MINIMAL),
            ("usermod", None, "add 'eve' to group 'sudo'", MINIMAL),
            ("gpasswd", None, "user eve removed by root from group sudo", COMMON),
            ("userdel", None, "delete user 'eve'", COMMON),
            ("usermod", None, "lock user 'eve' password", COMMON),
            ("usermod", None, "unlock user 'eve' password", MINIMAL),
            ("passwd", None, "pam_unix(passwd:chauthtok): password changed for eve", MINIMAL),
            ("anything", Some(10), "what nobody knows", ALL),
        ] {
            assert_eq!(levels(entry(identifier, facility, text)), expected, "{identifier}: {text}");
        }
        let raw = b"<86>1 - web1 useradd - - - new user: name=eve";
        let line = Syslog {
            raw: raw.to_vec(),
            app: Some(crate::body::Span(13, 20)),
            message: Some(crate::body::Span(27, 45)),
            ..Syslog::default()
        };
        assert_eq!((line.text(line.app).as_deref(), levels(line.clone())), (Some("useradd"), MINIMAL));
    }

    #[test]
    fn inventory_is_kept_by_every_tier_and_what_happens_by_its_own() {
        let body = |kind: &str, change: &str, rest: serde_json::Value| -> Body {
            let mut fields = rest;
            fields["change"] = change.into();
            serde_json::from_value(json!({ kind: fields })).expect("a body")
        };
        let process = json!({"uid": "u", "pid": 1, "ppid": 0, "name": "init", "state": "S"});
        let session = json!({"id": "1", "user": "alice", "source": "logind"});
        for (change, of_process, of_session) in [
            ("snapshot", NEVER_FILTERED, NEVER_FILTERED),
            ("start", MINIMAL, MINIMAL),
            ("change", MINIMAL, NEVER_FILTERED),
            ("end", COMMON, COMMON),
        ] {
            assert_eq!(levels(body("process", change, process.clone())), of_process, "{change}");
            assert_eq!(levels(body("session", change, session.clone())), of_session, "{change}");
        }
        assert_eq!(levels(Heartbeat::default()), NEVER_FILTERED);
    }

    #[test]
    fn the_common_tier_keeps_what_the_minimal_one_does() {
        let common = |id: u16| super::COMMON.iter().any(|ids| ids.contains(&id));
        assert!(super::MINIMAL.iter().flat_map(Clone::clone).all(common));
    }
}
