//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Collects security data of this host and ships it to a Vedette workspace.
#[derive(Debug, Parser)]
#[command(name = "vedette", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Sources of the configuration.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigArguments {
    /// Configuration file. The files of conf.d next to it, the environment and --set override it.
    #[arg(long, default_value = vedette_platform::LOCATIONS.config)]
    pub(crate) config: PathBuf,
    /// A setting, as in transport.compression=gzip; overrides all other sources.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Join a workspace: create a key and get a certificate for it.
    Enroll {
        #[command(flatten)]
        config: ConfigArguments,
        /// URL of the workspace, https://host:port.
        #[arg(long)]
        workspace: String,
        /// CA certificate of the workspace (its ca.pem); optional if `workspace.roots` is `platform`.
        #[arg(long)]
        ca: Option<PathBuf>,
        /// File with the enrollment token; `-` reads standard input.
        #[arg(long)]
        token_file: PathBuf,
        /// Replace an existing enrollment. The key and the agent's id stay.
        #[arg(long)]
        again: bool,
    },
    /// Collect and ship until SIGTERM; exit code 3 if this host is not enrolled, 78 if the configuration is wrong.
    Run {
        #[command(flatten)]
        config: ConfigArguments,
    },
    /// Collect once and print; needs neither enrollment nor network.
    Once {
        /// Configuration file [default: none, use defaults].
        #[arg(long)]
        config: Option<PathBuf>,
        /// A setting, as in host.root=/host.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        set: Vec<String>,
        /// Collectors to run [default: all that are enabled].
        #[arg(long = "collector", value_name = "ID")]
        collectors: Vec<String>,
        /// Output format; ocsf and json print one object per line.
        #[arg(long, default_value = "table")]
        format: OnceFormat,
    },
    /// Check the configuration; exit code 78 if it is wrong.
    Check {
        #[command(flatten)]
        config: ConfigArguments,
    },
    /// Show the state of the running agent; exit code 4 if none runs.
    Status {
        #[command(flatten)]
        config: ConfigArguments,
        /// Print one JSON object; the same as `--format json`.
        #[arg(long, conflicts_with = "format")]
        json: bool,
        /// Output format; prometheus prints OpenMetrics text.
        #[arg(long, default_value = "table")]
        format: StatusFormat,
    },
    /// Check that the agent collects and delivers, as a probe of Kubernetes or of monitoring. Prints one line per problem and
    /// exits with code 1; problems include files that cannot be read and sockets that cannot be bound; exit code 4 if no agent
    /// runs. Missing permissions that only reduce a collector's output are in `status` alone. Most problems outlast a restart:
    /// raise an alarm rather than restart the agent.
    Health {
        #[command(flatten)]
        config: ConfigArguments,
        /// Maximum time without a landed batch while batches wait; at most 60s after an error of delivery.
        #[arg(long, default_value = "5m")]
        stalled_after: vedette_collectors::settings::Interval,
    },
    /// Create the state and identity directories for a user. Run it as root before the agent starts. In Kubernetes an init
    /// container runs it, since a hostPath directory belongs to root.
    CreateState {
        #[command(flatten)]
        config: ConfigArguments,
        /// User and group id, as in 65532:65532.
        #[arg(long, value_name = "UID:GID", value_parser = user_and_group)]
        owner: (u32, u32),
    },
    /// Inspect and repair the queue.
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Print the version.
    Version {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
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
    /// Print a generated reference page.
    #[command(hide = true)]
    Reference {
        /// Page to print.
        page: Page,
    },
}

fn user_and_group(text: &str) -> Result<(u32, u32), String> {
    let numbers = text.split_once(':').and_then(|(user, group)| user.parse().ok().zip(group.parse().ok()));
    numbers.ok_or_else(|| "write UID:GID, as in 65532:65532".to_owned())
}

/// Formats of the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatusFormat {
    Table,
    Json,
    Prometheus,
}

/// Commands other than `status` fail while the agent runs.
#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Show the sizes of the queue and its quarantine, and damaged queue files.
    Status {
        #[command(flatten)]
        config: ConfigArguments,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Read every batch and compare the content with the queue's own counts; exit code 1 if the queue is damaged.
    Verify {
        #[command(flatten)]
        config: ConfigArguments,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Move intact batches of a damaged queue into the queue, as the agent does at its start.
    Salvage {
        #[command(flatten)]
        config: ConfigArguments,
    },
    /// Write every batch to a directory; the queue stays unchanged.
    Export {
        #[command(flatten)]
        config: ConfigArguments,
        /// Output directory; created if missing.
        #[arg(long)]
        to: PathBuf,
        /// Write records as JSON lines instead of sealed frames.
        #[arg(long)]
        records: bool,
    },
    /// Manage batches that cannot be delivered: the workspace refuses them, or they belong to an earlier enrollment.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum QuarantineCommand {
    /// List batches with their reasons.
    List {
        #[command(flatten)]
        config: ConfigArguments,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Print the reason and the records of a batch.
    Show {
        #[command(flatten)]
        config: ConfigArguments,
        /// Slot, as shown by `list`.
        slot: u64,
    },
    /// Move batches back to the queue, to be sent again.
    Replay(SlotArguments),
    /// Delete batches for good.
    Drop(SlotArguments),
}

/// Selects batches in quarantine.
#[derive(Debug, Args)]
pub(crate) struct SlotArguments {
    #[command(flatten)]
    pub(crate) config: ConfigArguments,
    /// Slots, as shown by `list`.
    #[arg(required_unless_present = "all")]
    pub(crate) slots: Vec<u64>,
    /// All batches.
    #[arg(long, conflicts_with = "slots")]
    pub(crate) all: bool,
}

impl QueueCommand {
    /// Sources of the configuration.
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
