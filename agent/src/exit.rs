//! Exit codes: 0 ok, 1 failure, 2 usage (clap), 3 not enrolled, 4 not running, 78 bad configuration (sysexits.h).

use std::{io::Write, process::ExitCode};

/// The version of this build.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why a command fails.
#[derive(Debug)]
pub(crate) enum Exit {
    /// Any other failure.
    Failure(anyhow::Error),
    /// The command line names something that does not exist.
    Usage(String),
    /// The host is not enrolled.
    NotEnrolled(String),
    /// No agent runs.
    NotRunning(String),
    /// The configuration is wrong; one line per problem.
    Config(Vec<String>),
    /// A failure that is in the log, by its code.
    Logged(u8),
}

impl<E: Into<anyhow::Error>> From<E> for Exit {
    fn from(error: E) -> Self {
        Exit::Failure(error.into())
    }
}

impl Exit {
    /// A problem of the configuration without file and line.
    pub(crate) fn config(problem: impl Into<String>) -> Self {
        Exit::Config(vec![problem.into()])
    }

    /// Writes the reason to the log instead.
    pub(crate) fn logged(self) -> Self {
        let (reasons, code) = self.parts();
        for reason in reasons {
            tracing::error!("{reason}");
        }
        Exit::Logged(code)
    }

    /// Prints the reason on standard error, if it can be written.
    pub(crate) fn report(self) -> ExitCode {
        let (reasons, code) = self.parts();
        for reason in reasons {
            drop(writeln!(std::io::stderr(), "vedette: {reason}"));
        }
        ExitCode::from(code)
    }

    /// The reasons, one per problem.
    pub(crate) fn reasons(self) -> Vec<String> {
        self.parts().0
    }

    fn parts(self) -> (Vec<String>, u8) {
        match self {
            Exit::Failure(error) => (vec![format!("{error:#}")], 1),
            Exit::Usage(what) => (vec![what], 2),
            Exit::NotEnrolled(what) => (vec![what], 3),
            Exit::NotRunning(what) => (vec![what], 4),
            Exit::Config(problems) => (problems, 78),
            Exit::Logged(code) => (Vec::new(), code),
        }
    }
}
