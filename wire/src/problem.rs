//! Problem details (RFC 9457): errors of the workspace's HTTP interface.

use serde::{Deserialize, Serialize};

/// Problem details (RFC 9457) with a stable code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// Code for programs.
    pub code: ProblemCode,
    /// One-line message for people.
    pub title: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

macro_rules! codes {
    ($($(#[$doc:meta])+ $code:ident => $name:literal,)+) => {
        /// Stable code of a problem.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum ProblemCode {
            $($(#[$doc])+ $code,)+
            /// A code of another release, or none.
            Unknown(String),
        }

        impl ProblemCode {
            /// All codes but [`ProblemCode::Unknown`].
            pub const ALL: &[ProblemCode] = &[$(ProblemCode::$code),+];

            /// Name on the wire.
            pub fn name(&self) -> &str {
                match self {
                    $(ProblemCode::$code => $name,)+
                    ProblemCode::Unknown(name) => name,
                }
            }
        }

        impl From<String> for ProblemCode {
            fn from(name: String) -> Self {
                match name.as_str() {
                    $($name => ProblemCode::$code,)+
                    _ => ProblemCode::Unknown(name),
                }
            }
        }
    };
}

impl From<ProblemCode> for String {
    fn from(code: ProblemCode) -> Self {
        code.name().to_owned()
    }
}

codes! {
    /// The body ended too early, or took too long.
    Body => "body",
    /// The request needs a client certificate.
    Certificate => "certificate",
    /// The batch was sealed on another machine than its agent's.
    Clone => "clone",
    /// Another batch has landed under this key.
    Conflict => "conflict",
    /// The signing request is not valid.
    Csr => "csr",
    /// `Content-Digest` does not match the body.
    Digest => "digest",
    /// The batch is not compressed with a known codec.
    Encoding => "encoding",
    /// The workspace is in another geography.
    Geo => "geo",
    /// The agent is unknown, revoked, or another one.
    Identity => "identity",
    /// The batch names another key than the path.
    Key => "key",
    /// The path does not take this method.
    Method => "method",
    /// The workspace did not demand that this machine re-keys.
    RekeyNotDemanded => "not-told",
    /// The primary of the pair must do this.
    Pair => "pair",
    /// Nothing is at this path.
    Path => "path",
    /// The policy forbids the content.
    Policy => "policy",
    /// The policy revision is not known yet.
    PolicyRevision => "policy_revision",
    /// There were too many requests.
    Rate => "rate",
    /// The request cannot be decoded, or holds impossible values.
    Shape => "shape",
    /// The request is too large.
    Size => "size",
    /// The token is unknown, expired or used up.
    Token => "token",
    /// The workspace cannot process the request now.
    Unavailable => "unavailable",
    /// The batch is of another format version.
    Version => "version",
}

impl std::fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_its_name_and_one_of_another_release_keeps_its_own() {
        for code in ProblemCode::ALL {
            let json = serde_json::to_string(code).expect("serializes");
            assert_eq!(json, format!("\"{code}\""));
            assert_eq!(serde_json::from_str::<ProblemCode>(&json).expect("parses"), *code);
        }
        let later = r#"{"status":418,"code":"teapot","title":"no coffee"}"#;
        let problem: Problem = serde_json::from_str(later).expect("parses");
        assert_eq!((problem.code.name(), problem.title.as_str()), ("teapot", "no coffee"));
    }
}
