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
#[derive(Debug, Clone, Args)]
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
        /// The workspace's CA certificate (its ca.pem); left out where the configuration's `workspace.roots` is `platform`.
        #[arg(long)]
        ca: Option<PathBuf>,
        /// File with the enrollment token; `-` reads it from stdin.
        #[arg(long)]
        token_file: PathBuf,
        /// Replace an enrollment that is there; the key, and so the agent's id, stays.
        #[arg(long)]
        again: bool,
    },
    /// Collect and ship until stopped (SIGTERM); exit code 3 where this host is not enrolled, 78 where the configuration is
    /// wrong.
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
    /// Whether it collects and delivers, for probes and alarms: exit code 1 and a line for each thing that does not, also for
    /// a file that cannot be read or a socket that cannot be bound; 4 where no agent runs. A right that a collector lacks for
    /// a part of what it tells is in `status` alone.
    Health {
        #[command(flatten)]
        config: ConfigArguments,
        /// How long batches may wait without one landing.
        #[arg(long, default_value = "5m")]
        stalled_after: vedette_collectors::settings::Interval,
    },
    /// Look into the queue, and mend it.
    #[command(subcommand)]
    Queue(QueueCommand),
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
    /// Write the man pages, one for each command.
    Man {
        /// Where they are written.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Print generated reference pages.
    #[command(hide = true)]
    Reference {
        /// Which one.
        page: Page,
    },
}

/// All but `status` need the agent to be stopped, and say so.
#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// How full it is, and what is set aside.
    Status {
        #[command(flatten)]
        config: ConfigArguments,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Read every batch, and compare what is there with what the queue says of itself; exit code 1 where it is damaged.
    Verify {
        #[command(flatten)]
        config: ConfigArguments,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Put what can be found in a damaged queue that was moved aside into the queue; the agent does it at its start.
    Salvage {
        #[command(flatten)]
        config: ConfigArguments,
    },
    /// Write every batch to a directory; the queue stays as it is.
    Export {
        #[command(flatten)]
        config: ConfigArguments,
        /// Directory; made where it is missing.
        #[arg(long)]
        to: PathBuf,
        /// Records as JSON lines instead of the sealed frames.
        #[arg(long)]
        records: bool,
    },
    /// Batches that the workspace will never take as they are.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum QuarantineCommand {
    /// List them with their reasons.
    List {
        #[command(flatten)]
        config: ConfigArguments,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Print the reason and the records of one.
    Show {
        #[command(flatten)]
        config: ConfigArguments,
        /// Its slot, from `list`.
        slot: u64,
    },
    /// Put batches back into the queue, to be sent once more.
    Replay(SlotArguments),
    /// Delete batches for good.
    Drop(SlotArguments),
}

/// Which batches in quarantine.
#[derive(Debug, Args)]
pub(crate) struct SlotArguments {
    #[command(flatten)]
    pub(crate) config: ConfigArguments,
    /// Their slots, from `list`.
    #[arg(required_unless_present = "all")]
    pub(crate) slots: Vec<u64>,
    /// All of them.
    #[arg(long, conflicts_with = "slots")]
    pub(crate) all: bool,
}

impl QueueCommand {
    /// Where the configuration comes from.
    pub(crate) fn config(&mut self) -> &mut ConfigArguments {
        use QuarantineCommand::{Drop, List, Replay, Show};
        match self {
            QueueCommand::Status { config, .. }
            | QueueCommand::Verify { config, .. }
            | QueueCommand::Salvage { config }
            | QueueCommand::Export { config, .. }
            | QueueCommand::Quarantine(
                List { config, .. }
                | Show { config, .. }
                | Replay(SlotArguments { config, .. })
                | Drop(SlotArguments { config, .. }),
            ) => config,
        }
    }
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
