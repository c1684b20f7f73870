//! Answers of a workspace to a batch. Implements the table of `docs/delivery.md`.

use std::time::Duration;
use vedette_wire::{Compression, Problem, ProblemCode};

/// An answer, by what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The batch has landed durably: delete it.
    Acknowledged {
        /// It had landed before.
        duplicate: bool,
        /// The organization's policy revision in force.
        policy_revision: u64,
        /// Requested codec; absent, the agent's setting applies.
        compression: Option<Compression>,
        /// First and last sequence that the workspace acknowledged and lost ([`vedette_wire::reply::Ack::lost`]).
        lost: Option<(u64, u64)>,
    },
    /// Try again, without limit, but not before `after`.
    Retry {
        /// `Retry-After` of the workspace.
        after: Option<Duration>,
        /// Reason, for status and log.
        why: String,
    },
    /// The workspace will never accept the batch: keep it in quarantine.
    Quarantine {
        /// Code of the workspace.
        code: ProblemCode,
        /// Reason, for status and log.
        why: String,
    },
    /// Policy forbids the batch: delete and count it.
    Purge,
    /// Another batch has landed under this key: raise an alarm, begin another epoch, and reseal.
    Conflict {
        /// Reason, for status and log.
        why: String,
    },
    /// The batch is too large for the workspace or a proxy: split it.
    TooLarge {
        /// Reason, for status and log.
        why: String,
    },
    /// The batch differs from what was queued: the queue is damaged.
    Damaged {
        /// Reason, for status and log.
        why: String,
    },
    /// The certificate is not accepted: pause, and try again.
    Renew {
        /// Reason, for status and log.
        why: String,
    },
    /// The key is in use on another machine, which keeps it: make a new key and reseal the queue.
    Rekey {
        /// Reason, for status and log.
        why: String,
    },
    /// The workspace refuses this agent: pause, and try again.
    Identity {
        /// Reason, for status and log.
        why: String,
    },
    /// This is not the endpoint for the host: pause, and try again.
    Misdirected {
        /// Reason, for status and log.
        why: String,
    },
}

/// Pause before a workspace of an earlier release is tried again.
const VERSION_PAUSE: Duration = Duration::from_secs(60);

/// Maps an HTTP status to an answer.
///
/// `retry_after` is the header's value as a duration.
pub(super) fn of_status(status: u16, problem: Option<Problem>, retry_after: Option<Duration>) -> Answer {
    let is_explained = problem.is_some();
    let code = problem.as_ref().map_or_else(|| ProblemCode::Unknown(String::new()), |problem| problem.code.clone());
    let why = match problem {
        Some(Problem { title, detail: Some(detail), .. }) => format!("{status} {title}: {detail}"),
        Some(Problem { title, .. }) => format!("{status} {title}"),
        None => format!("{status} without an explanation"),
    };
    match status {
        401 => Answer::Renew { why },
        409 => Answer::Conflict { why },
        413 => Answer::TooLarge { why },
        403 if code == ProblemCode::Clone => Answer::Rekey { why },
        403 => Answer::Identity { why },
        422 if code == ProblemCode::Policy => Answer::Purge,
        // An upgrade of the workspace will make it accept this version.
        400 if code == ProblemCode::Version => Answer::Retry { after: Some(retry_after.unwrap_or(VERSION_PAUSE)), why },
        300..=399 | 421 => Answer::Misdirected { why },
        // A proxy or another server says so, not a workspace.
        400..=499 if !is_explained && status != 408 && status != 429 => Answer::Misdirected { why },
        400..=499 if status != 408 && status != 429 => Answer::Quarantine { code, why },
        _ => Answer::Retry { after: retry_after, why },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(code: ProblemCode) -> Option<Problem> {
        Some(Problem { status: 0, code, title: "t".to_owned(), detail: None })
    }

    #[test]
    fn each_status_is_the_answer_of_the_contract() {
        let kind = |status, code| match of_status(status, problem(code), None) {
            Answer::Acknowledged { .. } => "done",
            Answer::Retry { .. } => "retry",
            Answer::Quarantine { .. } => "quarantine",
            Answer::Purge => "purge",
            Answer::Conflict { .. } => "conflict",
            Answer::TooLarge { .. } => "too large",
            Answer::Damaged { .. } => "damaged",
            Answer::Renew { .. } => "renew",
            Answer::Rekey { .. } => "rekey",
            Answer::Identity { .. } => "identity",
            Answer::Misdirected { .. } => "misdirected",
        };
        for (status, code, expected) in [
            (400, ProblemCode::Version, "retry"),
            (400, ProblemCode::Unknown(String::new()), "quarantine"),
            (404, ProblemCode::Unknown(String::new()), "quarantine"),
            (415, ProblemCode::Unknown(String::new()), "quarantine"),
            (422, ProblemCode::Shape, "quarantine"),
            (422, ProblemCode::Policy, "purge"),
            (401, ProblemCode::Unknown(String::new()), "renew"),
            (403, ProblemCode::Identity, "identity"),
            (403, ProblemCode::Clone, "rekey"),
            (408, ProblemCode::Unknown(String::new()), "retry"),
            (429, ProblemCode::Unknown(String::new()), "retry"),
            (500, ProblemCode::Unknown(String::new()), "retry"),
            (503, ProblemCode::Unknown(String::new()), "retry"),
            (409, ProblemCode::Unknown(String::new()), "conflict"),
            (413, ProblemCode::Unknown(String::new()), "too large"),
            (302, ProblemCode::Unknown(String::new()), "misdirected"),
            (421, ProblemCode::Geo, "misdirected"),
        ] {
            assert_eq!(kind(status, code.clone()), expected, "{status} {code}");
        }
    }

    #[test]
    fn the_workspace_decides_how_long_to_wait() {
        let after = Some(Duration::from_secs(7));
        assert!(matches!(of_status(429, None, after), Answer::Retry { after: found, .. } if found == after));
    }

    /// An ingress that answers 404 must not empty the queue into quarantine.
    #[test]
    fn what_no_workspace_says_is_no_verdict_on_a_batch() {
        for status in [400, 404, 405, 415, 422] {
            assert!(matches!(of_status(status, None, None), Answer::Misdirected { .. }), "{status}");
        }
        assert!(matches!(of_status(429, None, None), Answer::Retry { .. }));
        assert!(matches!(of_status(413, None, None), Answer::TooLarge { .. }), "a proxy may have a limit of its own");
        assert!(matches!(of_status(401, None, None), Answer::Renew { .. }));
    }
}
