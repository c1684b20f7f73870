//! The command line.

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{net::SocketAddr, path::PathBuf};
use vedette_wire::{
    AgentId, Compression,
    geo::WorkspaceGeo,
    policy::{StoreLevel, Tier},
};

/// Receives the data of Vedette agents, stores it separately for each organization, and answers queries.
#[derive(Debug, Parser)]
#[command(name = "vedette-workspace", version)]
pub(crate) struct Arguments {
    /// Lowest level to log to standard error: error, warn, info, debug or trace.
    #[arg(long, global = true)]
    pub(crate) log: Option<tracing::Level>,
    /// Format of the log.
    #[arg(long, global = true, default_value = "text")]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a workspace: certificate authority (DIR/ca.pem), server certificate, control store.
    Init {
        /// Directory of the workspace; created if missing.
        #[arg(long)]
        dir: PathBuf,
        /// Geography: united-states, europe, asia-pacific or australia.
        #[arg(long)]
        geo: WorkspaceGeo,
        /// Names and addresses in the server's certificate [default: host name, localhost, 127.0.0.1, ::1].
        #[arg(long = "name")]
        names: Vec<String>,
        /// Do nothing if the directory holds a workspace already.
        #[arg(long)]
        if_missing: bool,
        /// Create the secondary of a pair: directory or https URL of the primary, with which it shares CA, policy key,
        /// organizations, agents and revocations.
        #[arg(long, value_name = "DIR|URL")]
        pair_with: Option<String>,
        /// CA certificate of the primary (its ca.pem), if --pair-with is a URL.
        #[arg(long, value_name = "FILE", requires = "pair_with")]
        pair_ca: Option<PathBuf>,
        /// With a URL: file with the token that `token pair` printed at the primary.
        #[arg(long, value_name = "FILE", requires = "pair_with")]
        pair_token_file: Option<PathBuf>,
    },
    /// Print the CA certificate (ca.pem), which agents need to enroll.
    Ca {
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Promote the secondary workspace after its primary is gone for good; from then on organizations, policies and tokens are
    /// managed here.
    PairPromote {
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Reason, for the audit log.
        #[arg(long)]
        reason: String,
    },
    /// Create a new key and certificate for the server; a running one loads it within a second.
    Certificate {
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Names and addresses in the certificate [default: those of the current one].
        #[arg(long = "name")]
        names: Vec<String>,
    },
    /// Receive data from agents.
    Serve {
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Address to listen on, as in 0.0.0.0:8443; port 0 selects a free one.
        #[arg(long)]
        listen: SocketAddr,
        /// Write the address to this file once the server listens.
        #[arg(long)]
        address_file: Option<PathBuf>,
        /// Loopback address for Prometheus, as in 127.0.0.1:9465: `GET /metrics`.
        #[arg(long)]
        metrics: Option<SocketAddr>,
        /// Maximum number of batches per second and organization.
        #[arg(long, default_value_t = std::num::NonZeroU32::new(1000).expect("not zero"))]
        batches_per_second: std::num::NonZeroU32,
        /// Maximum size of a sealed batch in bytes; agents split larger ones.
        #[arg(long, default_value_t = crate::ingest::BATCH_BYTES_MAX)]
        batch_bytes_max: usize,
        /// Validity of agents' certificates, as in 90d, 12h or 60s; agents renew a certificate after two thirds of
        /// its validity.
        #[arg(long, default_value = "90d", value_parser = parse_life)]
        certificate_life: std::time::Duration,
        /// Memory that the process may use, as in 1GiB; at least 128MiB [default: half of the machine's memory or of the cgroup's
        /// limit, but not less than 512MiB].
        #[arg(long, value_parser = parse_bytes)]
        memory: Option<u64>,
        /// Codec to request from agents [default: each agent's own setting].
        #[arg(long)]
        compression: Option<Codec>,
    },
    /// Manage organizations.
    #[command(subcommand)]
    Org(Org),
    /// Manage enrollment tokens.
    #[command(subcommand)]
    Token(Token),
    /// Manage what an organization's agents collect and its workspace keeps.
    #[command(subcommand)]
    Policy(Policy),
    /// Manage one agent.
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Request files of hosts, as evidence after an alert; policies cannot switch this off.
    #[command(subcommand)]
    Artifact(ArtifactCommand),
    /// List alerts of an organization, for example batches that its policy forbids.
    Alerts(ListArguments),
    /// List the agents of an organization.
    Agents(ListArguments),
    /// Show what each agent emitted, and what became of it: stored, dropped by reason, in flight, missing, repeated, with all
    /// gaps. Works while `serve` runs.
    Ledger {
        /// Name of the organization.
        #[arg(long)]
        org: String,
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Id of a single agent.
        #[arg(long)]
        agent: Option<String>,
        /// Output format: json prints one object per line, with gaps; csv has no gaps.
        #[arg(long, default_value = "table")]
        format: Format,
    },
    /// Check the control store, all landed batches and all tables, and print problems; exit code 1 if there are any. Works while
    /// `serve` runs, except with `--rebuild`.
    Doctor {
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Move damaged tables aside, so that `serve` builds them anew from landed batches, and try batches again that are in no
        /// table.
        #[arg(long)]
        rebuild: bool,
    },
    /// Query in SQL; works while `serve` runs. Tables and views: docs/tables.md.
    Query {
        /// Name of the organization.
        #[arg(long)]
        org: String,
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// One SQL statement that only reads.
        sql: String,
        /// Output format: json prints one object per line.
        #[arg(long, default_value = "table")]
        format: Format,
        /// Maximum number of rows.
        #[arg(long, default_value_t = 1_000_000)]
        rows_max: usize,
        /// Time limit of the query in seconds.
        #[arg(long, default_value_t = 60)]
        seconds_max: u64,
    },
    /// Print a shell completion script.
    Completions {
        /// Shell.
        shell: clap_complete::Shell,
    },
    /// Write the man pages, one per command.
    Man {
        /// Output directory.
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
        /// Name.
        name: String,
        /// Tier: on `free` a policy can switch collection off, on `standard` it cannot.
        #[arg(long)]
        tier: Tier,
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Create a token for `vedette enroll` and print only it to standard output.
    New {
        /// Name of the agents' organization.
        #[arg(long)]
        org: String,
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Number of agents that may enroll with it.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// Hours until it expires.
        #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=87_600))]
        hours: u32,
    },
    /// Create a token for `init --pair-with` on another machine and print it; its holder gets the keys of this workspace.
    Pair {
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Hours until it expires; it can be used once.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=24))]
        hours: u32,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Print the policy in force as JSON.
    Show {
        /// Name of the organization.
        #[arg(long)]
        org: String,
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Print all revisions with time, author and reason, newest first, one object per line.
        #[arg(long)]
        history: bool,
    },
    /// Change the policy: creates a signed revision, which agents get within 10 s.
    Set(PolicySetArguments),
}

/// Changes of a policy; everything else stays.
#[derive(Debug, Args)]
pub(crate) struct PolicySetArguments {
    /// Name of the organization.
    #[arg(long)]
    pub(crate) org: String,
    /// Directory of the workspace.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Tier: on `free` a policy can switch collection off, on `standard` it cannot.
    #[arg(long)]
    pub(crate) tier: Option<Tier>,
    /// Whether agents collect; artifacts can be requested in any case.
    #[arg(long)]
    pub(crate) collect: Option<Switch>,
    /// Security events in the tables: none, minimal, common or all.
    #[arg(long)]
    pub(crate) store: Option<StoreLevel>,
    /// Limits of artifact requests, as in paths=/usr/bin/*:/etc/cron*,bytes_max=64MiB,per_hour_max=10; `default`: only the
    /// host's own limits.
    #[arg(long)]
    pub(crate) artifacts: Option<String>,
    /// URL of a workspace to deliver to, https://HOST:PORT. Repeat for a
    /// pair; the first is preferred. `default`: the workspace that each agent enrolled in.
    #[arg(long = "endpoint", value_name = "URL")]
    pub(crate) endpoints: Vec<String>,
    /// Setting of a collector: ID.enabled=on|off, ID.every=30s, or ID=default.
    #[arg(long = "collector", value_name = "SETTING")]
    pub(crate) collectors: Vec<String>,
    /// Reason, for the audit log.
    #[arg(long)]
    pub(crate) reason: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Revoke an agent's certificate: nothing more is accepted from it, even on open connections.
    Revoke {
        /// Id of the agent.
        agent: AgentId,
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Reason, for the audit log.
        #[arg(long)]
        reason: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ArtifactCommand {
    /// Request a file from an agent, and print the request's id. The host
    /// sends only files that its own configuration allows.
    Request(ArtifactRequestArguments),
    /// List requests and their state.
    List(ListArguments),
    /// Write a received file to a new file, verify its SHA-256, and print its facts as JSON.
    Get {
        /// Name of the organization.
        #[arg(long)]
        org: String,
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// Id of the request.
        #[arg(long)]
        id: String,
        /// Output file; must not exist.
        #[arg(long)]
        to: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ArtifactRequestArguments {
    /// Name of the organization.
    #[arg(long)]
    pub(crate) org: String,
    /// Id of the agent.
    #[arg(long)]
    pub(crate) agent: AgentId,
    /// Absolute path on the host.
    #[arg(long)]
    pub(crate) path: String,
    /// Reason, for the audit log.
    #[arg(long)]
    pub(crate) reason: String,
    /// Directory of the workspace.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Hours until the request expires.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=8760))]
    pub(crate) hours: u32,
}

/// Options of a list.
#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Name of the organization.
    #[arg(long)]
    pub(crate) org: String,
    /// Directory of the workspace.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Output format: json prints one object per line.
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
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Json,
    Table,
    Csv,
}

/// Parses a whole number with `s`, `m`, `h` or `d`, or else seconds.
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

/// Parses the validity of a certificate, up to ten years.
fn parse_life(text: &str) -> anyhow::Result<std::time::Duration> {
    let seconds = parse_interval(text).filter(|seconds| (10..=3650 * 86_400).contains(seconds));
    seconds.map(std::time::Duration::from_secs).context("write 10s to 3650d, as in 90d")
}

/// Parses an amount of memory, at least 128 MiB.
fn parse_bytes(text: &str) -> anyhow::Result<u64> {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20)];
    let bytes = units
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit)?.trim().parse::<u64>().ok()?.checked_mul(*factor));
    bytes.filter(|bytes| *bytes >= 128 << 20).context("write at least 128MiB, as in 512MiB or 2GiB")
}

pub(crate) fn parse() -> Arguments {
    Arguments::parse()
}
