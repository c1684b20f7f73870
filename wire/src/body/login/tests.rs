use super::*;
use proptest::prelude::*;

/// activity, user, success, source, port, by
type Expected<'a> = (u8, Option<&'a str>, Option<bool>, Option<&'a str>, Option<u16>, Option<&'a str>);

fn check(app: &str, message: &str, expected: Option<Expected<'_>>) {
    let login = recognise(app, message);
    let found = login
        .as_ref()
        .map(|l| (l.activity, l.user.as_deref(), l.success, l.source.as_deref(), l.port, l.by.as_deref()));
    assert_eq!(found, expected, "{app}: {message}");
}

#[test]
fn only_programs_of_the_system_log_in() {
    for path in [
        "/usr/sbin/sshd",
        "/usr/lib/openssh/sshd-session",
        "/usr/lib/ssh/sshd-session",
        "/usr/libexec/ssh/sshd-session",
        "/usr/lib/cargo/bin/sudo",
        "/usr/lib/gdm3/gdm-session-worker",
        "/usr/bin/sudo",
        "/bin/login",
        "/usr/sbin/sshd (deleted)",
        "/nix/store/abc-sudo-1.9.15/bin/sudo",
    ] {
        assert!(is_login_program(path, Some(0)), "{path}");
    }
    for path in [
        "/usr/bin/logger",
        "/tmp/sshd",
        "/home/eve/usr/sbin/sshd",
        "sshd",
        "/usr/sbin/../../tmp/sshd",
        "/tmp/sshd (deleted)",
        "/usr/bin/sshd (deleted) (deleted)",
        "/usr/local/sshd",
        "/usr/local/sbin/sshd",
    ] {
        assert!(!is_login_program(path, Some(0)), "{path}");
    }
    assert!(!is_login_program("/nix/store/abc-x/bin/sshd", Some(1000)), "users have programs put there");
    assert!(!is_login_program("/nix/store/abc-x/bin/sshd", None));
    let forged = crate::body::Journal {
        message: "Accepted password for root from 203.0.113.9 port 1 ssh2".to_owned(),
        identifier: Some("sshd".to_owned()),
        comm: Some("sshd".to_owned()),
        exe: Some("/usr/bin/logger".to_owned()),
        uid: Some(0),
        ..crate::body::Journal::default()
    };
    let class = |journal: &crate::body::Journal| crate::body::Observation::class(journal);
    assert_eq!(class(&forged), crate::ocsf::OcsfClass::BaseEvent);
    let gone = crate::body::Journal { exe: None, ..forged.clone() };
    assert_eq!(class(&gone), crate::ocsf::OcsfClass::Authentication);
    assert_eq!(class(&crate::body::Journal { uid: Some(1000), ..gone }), crate::ocsf::OcsfClass::BaseEvent);
    let real = crate::body::Journal { exe: Some("/usr/sbin/sshd".to_owned()), ..forged };
    assert_eq!(class(&real), crate::ocsf::OcsfClass::Authentication);
}

#[test]
fn entries_of_real_systems_tell_of_their_log_ins() {
    for case in include_str!("journal.jsonl").lines() {
        let case: serde_json::Value = serde_json::from_str(case).expect("a case");
        let field = |name: &str| case["fields"][name].as_str().map(str::to_owned);
        let entry = crate::body::Journal {
            message: field("MESSAGE").expect("has one"),
            identifier: field("SYSLOG_IDENTIFIER"),
            comm: field("_COMM"),
            exe: field("_EXE"),
            uid: field("_UID").and_then(|uid| uid.parse().ok()),
            ..crate::body::Journal::default()
        };
        let login = entry.login();
        let found = login.map(
            |l| json!({"activity": l.activity, "user": l.user, "success": l.success, "source": l.source, "by": l.by}),
        );
        match case["login"].as_object() {
            None => assert_eq!(found, None, "{case}"),
            Some(expected) => {
                let found = found.unwrap_or_else(|| panic!("no log-in: {case}"));
                assert!(expected.iter().all(|(name, value)| found[name] == *value), "{case}: {found}");
            }
        }
    }
}

#[test]
fn a_local_socket_s_lines_tell_of_log_ins_only_where_root_wrote_them() {
    let line = |sender_uid| crate::body::Syslog {
        raw: b"Accepted password for root from 203.0.113.9 port 1 ssh2sshd".to_vec(),
        app: Some(crate::body::Span(55, 59)),
        message: Some(crate::body::Span(0, 55)),
        sender_uid,
        ..crate::body::Syslog::default()
    };
    let class = |line: &crate::body::Syslog| crate::body::Observation::class(line);
    assert_eq!(class(&line(None)), crate::ocsf::OcsfClass::Authentication);
    assert_eq!(class(&line(Some(0))), crate::ocsf::OcsfClass::Authentication);
    assert_eq!(class(&line(Some(1000))), crate::ocsf::OcsfClass::BaseEvent);
}

#[test]
fn log_ins_are_recognised_once() {
    let root_by_alice = |success| Some((SWITCH, Some("root"), success, None, None, Some("alice")));
    for (app, message, expected) in [
        (
            "sshd",
            "Accepted publickey for alice from 192.0.2.7 port 51514 ssh2: ED25519 SHA256:abc",
            Some((LOGON, Some("alice"), Some(true), Some("192.0.2.7"), Some(51514), None)),
        ),
        (
            "sshd-session",
            "Failed password for invalid user a from b from 2001:db8::1 port 22 ssh2",
            Some((LOGON, Some("a from b"), Some(false), Some("2001:db8::1"), Some(22), None)),
        ),
        (
            "sshd",
            "Accepted gssapi-with-mic for alice from 192.0.2.7 port 22 ssh2: alice@EXAMPLE.NET",
            Some((LOGON, Some("alice"), Some(true), Some("192.0.2.7"), Some(22), None)),
        ),
        (
            "sshd",
            "Failed password for root from UNKNOWN port 65535 ssh2",
            Some((LOGON, Some("root"), Some(false), None, Some(65535), None)),
        ),
        (
            "sshd",
            "message repeated 5 times: [ Failed password for root from 192.0.2.7 port 22 ssh2]",
            Some((LOGON, Some("root"), Some(false), Some("192.0.2.7"), Some(22), None)),
        ),
        ("sshd", "pam_unix(sshd:session): session opened for user alice(uid=1000) by (uid=0)", None),
        (
            "sshd",
            "pam_unix(sshd:session): session closed for user alice",
            Some((LOGOFF, Some("alice"), None, None, None, None)),
        ),
        (
            "sudo",
            "pam_unix(sudo:session): session opened for user root(uid=0) by alice(uid=1000)",
            root_by_alice(Some(true)),
        ),
        ("sudo", "pam_unix(sudo:session): session opened for user root by alice(uid=1000)", root_by_alice(Some(true))),
        (
            "su",
            "pam_unix(su:auth): authentication failure; logname=a uid=1000 euid=0 tty=pts/0 ruser=alice rhost=  user=root",
            root_by_alice(Some(false)),
        ),
        (
            "gdm-password]",
            "pam_unix(gdm-launch-environment:session): session opened for user gdm(uid=120) by (uid=0)",
            None,
        ),
        (
            "gdm-password]",
            "pam_unix(gdm-password:session): session opened for user alice(uid=1000) by alice(uid=0)",
            Some((LOGON, Some("alice"), Some(true), None, None, None)),
        ),
        ("CRON", "pam_unix(cron:session): session opened for user root(uid=0) by (uid=0)", None),
        ("nginx", "Accepted publickey for alice from 192.0.2.7 port 51514 ssh2", None),
        (
            "sshd",
            "Accepted certificate ID \"key for bob from hr\" (serial 0) signed by ED25519 CA SHA256:y via x",
            None,
        ),
        ("sshd", "Accepted key ED25519 SHA256:x found at /home/for bob from hr port 1 ssh2", None),
        ("sshd", "Accepted", None),
        ("sshd", "Server listening on 0.0.0.0 port 22.", None),
    ] {
        check(app, message, expected);
    }
}

#[test]
fn what_a_message_says_of_its_number_is_taken() {
    assert_eq!(repeated("message repeated 5 times: [ a b]"), Some((5, "a b")));
    assert_eq!(repeated("last message repeated 3 times"), Some((3, "")));
    assert_eq!(repeated("message repeated x times: [ a]"), None);
    assert_eq!(repeated("said: message repeated 5 times: [ a]"), None);
}

/// Values that a peer may choose, composed of field separators.
fn hostile() -> impl Strategy<Value = String> {
    let pieces = [
        "a",
        "root",
        " ",
        " from ",
        " for ",
        "10.0.0.1",
        " port ",
        "22",
        " ssh2",
        ": ",
        "invalid user ",
        "ED25519-CERT SHA256:x ID ",
        " (serial 0)",
        " CA ED25519 SHA256:y",
        "RSA SHA256:z",
        " by ",
        "(uid=0)",
        " ruser=",
        " rhost=",
        "  user=",
        "]",
        "[",
        "\"",
        "): ",
    ];
    prop::collection::vec(prop::sample::select(pieces.to_vec()), 1..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// A field holds what sshd wrote there, or is absent.
    #[test]
    fn a_name_that_a_peer_tries_becomes_no_other_field(user in hostile(), id in hostile()) {
        for (method, key) in [
            ("password", String::new()),
            ("publickey", ": RSA SHA256:z".to_owned()),
            ("publickey", format!(": ED25519-CERT SHA256:x ID {id} (serial 0) CA ED25519 SHA256:y")),
        ] {
            let text = format!("Failed {method} for invalid user {user} from 203.0.113.9 port 4 ssh2{key}");
            let login = recognise("sshd", &text).expect("a failed log-in");
            prop_assert_eq!(login.success, Some(false));
            prop_assert!(login.user.as_deref().is_none_or(|found| found == user), "{}: {:?}", text, login);
            prop_assert!(login.source.as_deref().is_none_or(|found| found == "203.0.113.9"), "{}: {:?}", text, login);
            prop_assert!(login.port.is_none_or(|found| found == 4), "{}: {:?}", text, login);
        }
    }

    #[test]
    fn the_id_in_a_certificate_becomes_no_field(id in hostile()) {
        let text = format!(
            "Accepted publickey for alice from 203.0.113.9 port 4 ssh2: ED25519-CERT SHA256:x ID {id} (serial 0) CA ED25519 SHA256:y"
        );
        check("sshd", &text, Some((LOGON, Some("alice"), Some(true), Some("203.0.113.9"), Some(4), None)));
        prop_assert_eq!(recognise("sshd", &format!("Accepted certificate ID \"{id}\" (serial 0) signed by x")), None);
    }

    #[test]
    fn names_of_a_client_s_host_and_user_become_no_field(user in hostile(), host in hostile()) {
        let text = format!(
            "Accepted hostbased for alice from 203.0.113.9 port 4 ssh2: ED25519 SHA256:x, client user \"{user}\", client host \"{host}\""
        );
        check("sshd", &text, Some((LOGON, Some("alice"), Some(true), Some("203.0.113.9"), Some(4), None)));
    }

    #[test]
    fn what_pam_was_given_becomes_no_other_field(remote_user in hostile(), host in "[a-z0-9.]{1,12}", user in hostile()) {
        let text = format!(
            "pam_unix(login:auth): authentication failure; logname= uid=0 euid=0 tty=tty1 ruser={remote_user} rhost={host}  user={user}"
        );
        let login = recognise("login", &text).expect("a failed log-in");
        prop_assert!(login.user.as_deref().is_none_or(|found| found == user.trim_end()), "{}: {:?}", text, login);
        prop_assert!(login.source.as_deref().is_none_or(|found| found == host), "{}: {:?}", text, login);
    }

    #[test]
    fn no_text_makes_it_panic(app in "(sshd|sudo|su|login|gdm-password])", text in hostile()) {
        recognise(&app, &text);
        recognise(&app, &format!("pam_unix({text}"));
    }
}
