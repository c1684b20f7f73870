//! Exit codes: 0 ok, 1 failure, 2 usage (clap), 3 not enrolled, 4 not running, 78 bad configuration (sysexits.h).

use std::process::ExitCode;

/// Why a command ends without success.
#[derive(Debug)]
pub(crate) enum Exit {
    /// Anything else.
    Failure(anyhow::Error),
    /// The command line names something that is not there.
    Usage(String),
    /// `vedette enroll` has not been run.
    NotEnrolled(String),
    /// There is no running agent to ask.
    NotRunning(String),
    /// The configuration is wrong; a line for each problem.
    Config(Vec<String>),
}

impl<E: Into<anyhow::Error>> From<E> for Exit {
    fn from(error: E) -> Self {
        Exit::Failure(error.into())
    }
}

impl Exit {
    /// A problem of the configuration that no file and line belongs to.
    pub(crate) fn config(problem: impl Into<String>) -> Self {
        Exit::Config(vec![problem.into()])
    }

    /// Tell it on stderr.
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
