//! Exit codes: 0 ok, 1 failure, 2 usage (clap), 3 not enrolled, 4 not running, 78 bad configuration (sysexits.h).

use std::process::ExitCode;

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

    /// Prints the reason on standard error.
    #[expect(clippy::print_stderr, reason = "the last words of a command are for whoever ran it")]
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Exit::Failure(error) => {
                eprintln!("vedette: {error:#}");
                ExitCode::FAILURE
            }
            Exit::Usage(what) => {
                eprintln!("vedette: {what}");
                ExitCode::from(2)
            }
            Exit::NotEnrolled(what) => {
                eprintln!("vedette: {what}");
                ExitCode::from(3)
            }
            Exit::NotRunning(what) => {
                eprintln!("vedette: {what}");
                ExitCode::from(4)
            }
            Exit::Config(problems) => {
                for problem in problems {
                    eprintln!("vedette: {problem}");
                }
                ExitCode::from(78)
            }
        }
    }
}
