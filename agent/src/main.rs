//! `vedette`: the security data collection agent.

use std::process::ExitCode;

fn main() -> ExitCode {
    vedette_agent::main()
}
