//! What each answer of the workspace means for the batch that was posted. The table of `docs/delivery.md`.

use std::time::Duration;
use vedette_wire::{Compression, reply::Problem};

/// What to do with the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is durably landed: delete it.
    Done {
        /// The workspace had it before.
        duplicate: bool,
        /// The organization's policy revision in force.
        policy_revision: u64,
        /// Codec that the workspace asks for; absent, the agent's own setting holds.
        compression: Option<Compression>,
        /// First and last sequence of what it had acknowledged and has no more ([`vedette_wire::reply::Ack::lost`]).
        lost: Option<(u64, u64)>,
    },
    /// Try again for ever, not before `after`.
    Retry {
        /// The workspace's own word (`Retry-After`).
        after: Option<Duration>,
        /// Why, for status and log.
        why: String,
    },
    /// It will never be accepted as it is: keep it aside.
    Quarantine {
        /// The workspace's code.
        code: String,
        /// Why, for status and log.
        why: String,
    },
    /// Policy forbids it: delete it and count it.
    Purge,
    /// Another batch has landed under its key: alarm, begin another epoch, and seal it again.
    Conflict {
        /// Why, for status and log.
        why: String,
    },
    /// Too large for the workspace, or for what is between: split it.
    TooLarge {
        /// Why, for status and log.
        why: String,
    },
    /// It is not what was put into the queue: the queue is damaged.
    Damaged {
        /// Why, for status and log.
        why: String,
    },
    /// The certificate is not accepted: pause, renew, then try again.
    Renew {
        /// Why, for status and log.
        why: String,
    },
    /// The agent's key is in use on another machine, which keeps it: this one makes another, and seals again what it holds.
    Rekey {
        /// Why, for status and log.
        why: String,
    },
    /// The workspace does not accept this agent: pause and alarm.
    Identity {
        /// Why, for status and log.
        why: String,
    },
    /// The endpoint is not the one for this host: resolve it again.
    Misdirected {
        /// Why, for status and log.
        why: String,
    },
}

/// Pause before a workspace of an earlier release is asked again.
const VERSION_PAUSE: Duration = Duration::from_secs(60);

/// The outcome that an HTTP status stands for.
///
/// `retry_after` is the header's value in seconds or as HTTP date, already turned into a duration.
pub fn of_status(status: u16, problem: Option<Problem>, retry_after: Option<Duration>) -> Outcome {
    let code = problem.as_ref().map(|problem| problem.code.clone()).unwrap_or_default();
    let why = match problem {
        Some(Problem { title, detail: Some(detail), .. }) => format!("{status} {title}: {detail}"),
        Some(Problem { title, .. }) => format!("{status} {title}"),
        None => format!("{status} without an explanation"),
    };
    match status {
        401 => Outcome::Renew { why },
        409 => Outcome::Conflict { why },
        413 => Outcome::TooLarge { why },
        403 if code == "clone" => Outcome::Rekey { why },
        403 => Outcome::Identity { why },
        422 if code == "policy" => Outcome::Purge,
        // A workspace of an earlier release is brought up to date, and takes it then.
        400 if code == "version" => Outcome::Retry { after: Some(retry_after.unwrap_or(VERSION_PAUSE)), why },
        300..=399 | 421 => Outcome::Misdirected { why },
        400..=499 if status != 408 && status != 429 => Outcome::Quarantine { code, why },
        _ => Outcome::Retry { after: retry_after, why },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(code: &str) -> Option<Problem> {
        Some(Problem { status: 0, code: code.to_owned(), title: "t".to_owned(), detail: None })
    }

    #[test]
    fn each_status_has_the_outcome_of_the_contract() {
        let kind = |status, code: &str| match of_status(status, problem(code), None) {
            Outcome::Done { .. } => "done",
            Outcome::Retry { .. } => "retry",
            Outcome::Quarantine { .. } => "quarantine",
            Outcome::Purge => "purge",
            Outcome::Conflict { .. } => "conflict",
            Outcome::TooLarge { .. } => "too large",
            Outcome::Damaged { .. } => "damaged",
            Outcome::Renew { .. } => "renew",
            Outcome::Rekey { .. } => "rekey",
            Outcome::Identity { .. } => "identity",
            Outcome::Misdirected { .. } => "misdirected",
        };
        for (status, code, expected) in [
            (400, "version", "retry"),
            (400, "", "quarantine"),
            (404, "", "quarantine"),
            (415, "", "quarantine"),
            (422, "shape", "quarantine"),
            (422, "policy", "purge"),
            (401, "", "renew"),
            (403, "identity", "identity"),
            (403, "clone", "rekey"),
            (408, "", "retry"),
            (429, "", "retry"),
            (500, "", "retry"),
            (503, "", "retry"),
            (409, "", "conflict"),
            (413, "", "too large"),
            (302, "", "misdirected"),
            (421, "geo", "misdirected"),
        ] {
            assert_eq!(kind(status, code), expected, "{status} {code}");
        }
    }

    #[test]
    fn the_workspace_decides_how_long_to_wait() {
        let after = Some(Duration::from_secs(7));
        assert!(matches!(of_status(429, None, after), Outcome::Retry { after: found, .. } if found == after));
    }
}
