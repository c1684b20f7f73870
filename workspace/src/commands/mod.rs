//! The commands.

mod admin;
mod artifact;
mod cli;
mod doctor;
mod ledger;
mod listing;
mod policy;

pub(crate) use cli::{Arguments, LogFormat, parse};

#[cfg(feature = "lake")]
mod query;
mod serve;

use crate::ingest::IngestSettings;
use anyhow::{Context, Result};
use clap::CommandFactory;
use cli::{AgentCommand, ArtifactCommand, Command, Org, Policy, Token};
use std::io::{self, Write};

/// Runs a command.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::Init { dir, if_missing: true, .. } if admin::is_whole(&dir) => Ok(()),
        Command::Init { dir, geo, names, if_missing: _, pair_with, pair_ca, pair_token_file } => {
            let first = pair_with.map(|with| admin::primary_of(with, pair_ca, pair_token_file)).transpose()?;
            admin::init(&dir, geo, names, first).await
        }
        Command::Ca { dir } => {
            let path = dir.join("ca.pem");
            print(&std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?)
        }
        Command::Certificate { dir, names } => admin::renew_certificate(&dir, &names).await,
        Command::Serve {
            dir,
            listen,
            address_file,
            metrics,
            batches_per_second,
            batch_bytes_max,
            compression,
            certificate_life,
            memory,
        } => {
            let compression = compression.map(Into::into);
            let memory_max = memory.unwrap_or_else(serve::memory_max);
            let settings = IngestSettings { batches_per_second, batch_bytes_max, compression, memory_max };
            let listen = serve::Listen { agents: listen, address_file: address_file.as_deref(), metrics };
            serve::serve(&dir, listen, settings, certificate_life).await
        }
        Command::Org(Org::Add { name, tier, dir }) => admin::add_organization(&dir, &name, tier).await,
        Command::Token(Token::Pair { dir, hours }) => admin::pair_token(&dir, hours).await,
        Command::PairPromote { dir, reason } => admin::promote(&dir, &reason).await,
        Command::Token(Token::New { org, dir, uses, hours }) => admin::new_token(&dir, &org, uses, hours).await,
        Command::Policy(Policy::Show { org, dir, history }) => policy::show(&dir, &org, history).await,
        Command::Policy(Policy::Set(change)) => policy::set(&change).await,
        Command::Agent(AgentCommand::Revoke { agent, dir, reason }) => policy::revoke(&dir, agent, &reason).await,
        Command::Artifact(ArtifactCommand::Request(request)) => artifact::request(&request).await,
        Command::Artifact(ArtifactCommand::List(of)) => artifact::list(&of.dir, &of.org, of.format).await,
        Command::Artifact(ArtifactCommand::Get { org, dir, id, to }) => artifact::get(&dir, &org, &id, &to).await,
        Command::Alerts(of) => policy::alerts(&of.dir, &of.org, of.format).await,
        Command::Agents(of) => admin::agents(&of.dir, &of.org, of.format).await,
        Command::Ledger { org, dir, agent, format } => ledger::ledger(&dir, &org, agent.as_deref(), format).await,
        Command::Doctor { dir, rebuild } => doctor::doctor(&dir, rebuild).await,
        #[cfg(feature = "lake")]
        Command::Query { org, dir, sql, format, rows_max, seconds_max } => {
            let limits = vedette_lake::QueryLimits {
                rows_max,
                time_max: std::time::Duration::from_secs(seconds_max),
                ..vedette_lake::QueryLimits::default()
            };
            query::query(&dir, &org, &sql, format, limits).await
        }
        #[cfg(not(feature = "lake"))]
        Command::Query { .. } => anyhow::bail!("this build has no query engine; build it with the feature `lake`"),
        Command::Completions { shell } => {
            let mut command = Arguments::command();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "vedette-workspace", &mut script);
            print(&script)
        }
        Command::Man { dir } => Ok(clap_mangen::generate_to(Arguments::command(), dir)?),
        #[cfg(feature = "lake")]
        Command::TablesReference => print(query::tables_reference().as_bytes()),
        #[cfg(not(feature = "lake"))]
        Command::TablesReference => Ok(()),
    }
}

/// User of the command for the audit log, with the one behind sudo(8).
#[expect(clippy::disallowed_methods, reason = "only the environment tells who is behind sudo")]
fn who() -> String {
    let uid = rustix::process::getuid().as_raw();
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default();
    let sudo = std::env::var("SUDO_USER").map(|user| format!(" for {user}")).unwrap_or_default();
    format!("{user} (uid {uid}){sudo}").trim_start().to_owned()
}

/// Writes to standard output; a closed reader (`| head`) is not an error.
fn print(bytes: &[u8]) -> Result<()> {
    match io::stdout().lock().write_all(bytes) {
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
