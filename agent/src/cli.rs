//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Collects security data of this machine and ships it to a Vedette workspace.
#[derive(Debug, Parser)]
#[command(name = "vedette", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
pub(crate) struct ConfigArguments {
    /// Configuration file; files in conf.d beside it, environment and --set go over it.
    #[arg(long, default_value = "/etc/vedette/vedette.toml")]
    pub(crate) config: PathBuf,
    /// One setting, as in transport.compression=gzip; goes over everything else.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Join a workspace: make a key here, have it signed there.
    Enroll {
        #[command(flatten)]
        config: ConfigArguments,
        /// Address of the workspace, https://host:port.
        #[arg(long)]
        workspace: String,
        /// The workspace's CA certificate (its ca.pem).
        #[arg(long)]
        ca: PathBuf,
        /// File with the enrollment token; `-` reads it from stdin.
        #[arg(long)]
        token_file: PathBuf,
        /// Replace an enrollment that is there; the key, and so the agent's id, stays.
        #[arg(long)]
        again: bool,
    },
    /// Collect and ship until stopped (SIGTERM).
    Run {
        #[command(flatten)]
        config: ConfigArguments,
    },
    /// Collect once and print; needs neither enrollment nor network.
    Once {
        /// Configuration file; without one the defaults apply.
        #[arg(long)]
        config: Option<PathBuf>,
        /// One setting, as in host.root=/host.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        set: Vec<String>,
        /// Collectors to run [default: all].
        #[arg(long = "collector", value_name = "ID")]
        collectors: Vec<String>,
        /// How to print: ocsf and json are one object a line.
        #[arg(long, default_value = "table")]
        format: OnceFormat,
    },
    /// Check the configuration; exit code 78 when it is wrong.
    Check {
        #[command(flatten)]
        config: ConfigArguments,
    },
    /// Ask the running agent how it is; exit code 4 when none runs.
    Status {
        #[command(flatten)]
        config: ConfigArguments,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Print the version.
    Version {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the man page.
    Man,
    /// Print generated reference pages.
    #[command(hide = true)]
    Reference {
        /// Which one.
        page: Page,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnceFormat {
    Ocsf,
    Json,
    Table,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Page {
    /// docs/configuration.md
    Configuration,
    /// packaging/vedette.toml
    Default,
    /// docs/collectors.md
    Collectors,
}

pub(crate) fn parse() -> Arguments {
    Arguments::parse()
}
