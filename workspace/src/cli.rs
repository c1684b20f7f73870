//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{net::SocketAddr, path::PathBuf};
use vedette_wire::{
    AgentId, Compression,
    geo::WorkspaceGeo,
    policy::{Store, Tier},
};

/// Receives, segregates, stores and serves what Vedette agents send.
#[derive(Debug, Parser)]
#[command(name = "vedette-workspace", version)]
pub(crate) struct Arguments {
    /// Least severe messages that are logged to stderr: error, warn, info, debug or trace.
    #[arg(long, global = true)]
    pub(crate) log: Option<tracing::Level>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a workspace: certificate authority (DIR/ca.pem), server certificate, control store.
    Init {
        /// Directory of the workspace; made where it is missing.
        #[arg(long)]
        dir: PathBuf,
        /// Geography: united-states, europe, asia-pacific or australia.
        #[arg(long)]
        geo: WorkspaceGeo,
        /// Names and addresses in the server's certificate [default: host name, localhost, 127.0.0.1, ::1].
        #[arg(long = "name")]
        names: Vec<String>,
        /// Be the second of a pair: directory or https address of the first workspace, which shares its CA, policy key,
        /// organizations, agents and revocations.
        #[arg(long, value_name = "DIR|URL")]
        pair_with: Option<String>,
        /// With an address: the first workspace's ca.pem.
        #[arg(long, value_name = "FILE", requires = "pair_with")]
        pair_ca: Option<PathBuf>,
        /// With an address: file with what `token pair` printed there.
        #[arg(long, value_name = "FILE", requires = "pair_with")]
        pair_token_file: Option<PathBuf>,
    },
    /// Make the second workspace of a pair stand alone, when the first is gone for good: from now on organizations, policies
    /// and tokens are changed here.
    PairPromote {
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
    /// Make another key and certificate for the server; one that runs takes it within a second.
    Certificate {
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Names and addresses in it [default: those of the present one].
        #[arg(long = "name")]
        names: Vec<String>,
    },
    /// Receive from agents.
    Serve {
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Address to listen on, as in 0.0.0.0:8443; port 0 takes a free one.
        #[arg(long)]
        listen: SocketAddr,
        /// Write the address listened on to this file once it is open.
        #[arg(long)]
        address_file: Option<PathBuf>,
        /// Batches a second that one organization may send.
        #[arg(long, default_value_t = std::num::NonZeroU32::new(1000).expect("not zero"))]
        batches_per_second: std::num::NonZeroU32,
        /// Largest sealed batch in bytes that is taken; agents split what is larger.
        #[arg(long, default_value_t = crate::receive::BATCH_BYTES_MAX)]
        batch_bytes_max: usize,
        /// How long an agent's certificate is valid, as in 90d, 12h or 60s; it is renewed after two thirds of that.
        #[arg(long, default_value = "90d", value_parser = parse_life)]
        certificate_life: std::time::Duration,
        /// Memory that the process may take, as in 1GiB; without it half of what the machine or its cgroup has.
        #[arg(long, value_parser = parse_bytes)]
        memory: Option<u64>,
        /// Codec that agents are asked to use; without it each goes by its own configuration.
        #[arg(long)]
        compression: Option<Codec>,
    },
    /// Organizations.
    #[command(subcommand)]
    Org(Org),
    /// Enrollment tokens.
    #[command(subcommand)]
    Token(Token),
    /// What an organization's agents collect and its workspace keeps.
    #[command(subcommand)]
    Policy(Policy),
    /// One agent.
    #[command(subcommand)]
    Agent(Agent),
    /// Files of hosts, asked for on an alert; policy does not switch this off.
    #[command(subcommand)]
    Artifact(ArtifactCommand),
    /// What an organization is to look at, such as batches that its policy forbids.
    Alerts(Listing),
    /// The agents of an organization.
    Agents(Listing),
    /// What each agent emitted, and what became of it: stored, dropped by reason, in flight, missing, repeated, and each
    /// gap. Works while `serve` runs.
    Ledger {
        /// Name of the organization.
        #[arg(long)]
        org: String,
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// One agent alone, by its id.
        #[arg(long)]
        agent: Option<String>,
        /// How to print: json is one object a line, with the gaps; csv has no gaps.
        #[arg(long, default_value = "table")]
        format: Format,
    },
    /// Check the control store, every landed batch and every table; prints what is wrong, and then ends with status 1. Works
    /// while `serve` runs, but for `--rebuild`.
    Doctor {
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Make the tables of an organization anew from what landed where one of them is damaged; the damaged ones are kept
        /// beside them.
        #[arg(long)]
        rebuild: bool,
    },
    /// Ask in SQL; works while `serve` runs. Tables and views: docs/tables.md.
    Query {
        /// Name of the organization.
        #[arg(long)]
        org: String,
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// One SQL statement that reads.
        sql: String,
        /// How to print: json is one object a line.
        #[arg(long, default_value = "table")]
        format: Format,
        /// Rows in the answer at the most.
        #[arg(long, default_value_t = 1_000_000)]
        rows_max: usize,
        /// Seconds that it may take.
        #[arg(long, default_value_t = 60)]
        seconds_max: u64,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the man pages, one for each command.
    Man {
        /// Where they are written.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Print docs/tables.md.
    #[command(hide = true)]
    TablesReference,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Org {
    /// Add an organization.
    Add {
        /// Its name.
        name: String,
        /// What its policy may switch off: on `free` collection, on `standard` nothing.
        #[arg(long)]
        tier: Tier,
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token for `vedette enroll` and print it, and nothing else, on stdout.
    New {
        /// Name of the organization that agents will belong to.
        #[arg(long)]
        org: String,
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// How many agents may enroll with it.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// Hours until it expires.
        #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=87_600))]
        hours: u32,
    },
    /// Make a token for `init --pair-with` at another machine and print it; whoever has it gets the keys of this workspace.
    Pair {
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Hours until it expires; it is used once.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=24))]
        hours: u32,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Print the policy in force, as JSON.
    Show {
        /// Name of the organization.
        #[arg(long)]
        org: String,
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Every revision with who, when and why, newest first, one object a line.
        #[arg(long)]
        history: bool,
    },
    /// Change the policy: another revision, signed, that agents get within 10 s.
    Set(PolicyChange),
}

/// What is not named stays as it is.
#[derive(Debug, Args)]
pub(crate) struct PolicyChange {
    /// Name of the organization.
    #[arg(long)]
    pub(crate) org: String,
    /// Directory of the workspace.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// What the policy may switch off: on `free` collection, on `standard` nothing.
    #[arg(long)]
    pub(crate) tier: Option<Tier>,
    /// Whether agents collect; artifacts are asked for all the same.
    #[arg(long)]
    pub(crate) collect: Option<Switch>,
    /// Which security events the tables hold: none, minimal, common or all.
    #[arg(long)]
    pub(crate) store: Option<Store>,
    /// How far artifact requests go, as in paths=/usr/bin/*:/etc/cron*,bytes_max=64MiB,per_hour_max=10; `default` for no
    /// limit but the host's own.
    #[arg(long)]
    pub(crate) artifacts: Option<String>,
    /// Address of a workspace that agents deliver to, HOST and PORT behind https://; the first is preferred, the
    /// others are its pair. `default` for the one that each was enrolled at.
    #[arg(long = "endpoint", value_name = "URL")]
    pub(crate) endpoints: Vec<String>,
    /// A setting of one collector: ID.enabled=on|off, ID.every=30s, or ID=default.
    #[arg(long = "collector", value_name = "SETTING")]
    pub(crate) collectors: Vec<String>,
    /// Why, for the audit log.
    #[arg(long)]
    pub(crate) reason: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Agent {
    /// Take back an agent's certificate: from now on nothing is accepted from it, on open connections either.
    Revoke {
        /// Its id.
        agent: AgentId,
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ArtifactCommand {
    /// Ask an agent for a file; print the request's id. The host sends what its own list allows.
    Request(ArtifactWanted),
    /// What was asked for, and what became of it.
    List(Listing),
    /// Write a file that came to a new file, check its SHA-256, and print what the host said of it, as JSON.
    Get {
        /// Name of the organization.
        #[arg(long)]
        org: String,
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// The request's id.
        #[arg(long)]
        id: String,
        /// Where to; must not exist.
        #[arg(long)]
        to: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ArtifactWanted {
    /// Name of the organization.
    #[arg(long)]
    pub(crate) org: String,
    /// The agent's id.
    #[arg(long)]
    pub(crate) agent: AgentId,
    /// Path on the host, absolute.
    #[arg(long)]
    pub(crate) path: String,
    /// Why, for the audit log.
    #[arg(long)]
    pub(crate) reason: String,
    /// Directory of the workspace.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Hours until the request expires.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=8760))]
    pub(crate) hours: u32,
}

/// What of an organization is listed, and how.
#[derive(Debug, Args)]
pub(crate) struct Listing {
    /// Name of the organization.
    #[arg(long)]
    pub(crate) org: String,
    /// Directory of the workspace.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// How to print: json is one object a line.
    #[arg(long, default_value = "table")]
    pub(crate) format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Codec {
    Zstd,
    Gzip,
}

impl From<Codec> for Compression {
    fn from(codec: Codec) -> Self {
        match codec {
            Codec::Zstd => Compression::Zstd,
            Codec::Gzip => Compression::Gzip,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Json,
    Table,
    Csv,
}

/// A whole number and `s`, `m`, `h` or `d`, in seconds; seconds without a unit.
pub(crate) fn parse_interval(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// The life of a certificate, up to ten years.
fn parse_life(text: &str) -> Result<std::time::Duration, String> {
    let seconds = parse_interval(text).filter(|seconds| (10..=3650 * 86_400).contains(seconds));
    seconds.map(std::time::Duration::from_secs).ok_or_else(|| "write 10s to 3650d, as in 90d".to_owned())
}

/// An amount of memory: 128 MiB at the least.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20)];
    let bytes = units
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit)?.trim().parse::<u64>().ok()?.checked_mul(*factor));
    bytes.filter(|bytes| *bytes >= 128 << 20).ok_or_else(|| "write at least 128MiB, as in 512MiB or 2GiB".to_owned())
}

pub(crate) fn parse() -> Arguments {
    Arguments::parse()
}
