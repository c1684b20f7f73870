//! The command line.

use clap::{Parser, Subcommand, ValueEnum};
use std::{net::SocketAddr, path::PathBuf};
use vedette_wire::{Compression, geo::WorkspaceGeo};

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
    /// The agents of an organization.
    Agents {
        /// Name of the organization.
        #[arg(long)]
        org: String,
        /// Directory of the workspace.
        #[arg(long)]
        dir: PathBuf,
        /// How to print: json is one object a line.
        #[arg(long, default_value = "table")]
        format: Format,
    },
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
    /// Print the man page.
    Man,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    Free,
    Standard,
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

pub(crate) fn parse() -> Arguments {
    Arguments::parse()
}
