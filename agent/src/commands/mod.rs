//! The commands.

mod bootstrap;
mod enroll;
mod health;
mod once;
mod queue;
mod status;

use crate::{
    cli::{Arguments, Command, ConfigArguments, Page, QueueCommand, StatusFormat},
    config::{self, Resolved, Sources, collector_context},
    exit::{Exit, VERSION},
    identity::IdentityDir,
    log, platform,
    runtime::{
        self, Reload,
        policy::{PolicyStore, decide},
    },
};
use anyhow::Context;
use clap::CommandFactory;
use std::{
    io::{self, Write},
    path::Path,
};

/// Runs a command.
pub(crate) fn run(arguments: Arguments) -> Result<(), Exit> {
    match arguments.command {
        Command::Enroll { config, workspace, ca, token_file, again } => {
            let config = load(config)?;
            log::start(&config);
            refuse_foreign(&config.identity_dir)?;
            let options = enroll::EnrollOptions {
                workspace: &workspace,
                ca: ca.as_deref(),
                token: &token_file,
                geo: None,
                again,
            };
            tokio_runtime()?.block_on(enroll::enroll(&config, &options))
        }
        Command::Run { config } => platform::run(move || service(config)),
        Command::Once { config, set, collectors, format } => {
            let config = config::load(&Sources::of_process(config, set))?;
            log::start(&config);
            once::once(&config, &collectors, format)
        }
        Command::Check { config } => check(config),
        Command::Status { config, json, format } => {
            status::status(&load(config)?, if json { StatusFormat::Json } else { format })
        }
        Command::Health { config, stalled_after } => health::health(&load(config)?, stalled_after.0),
        Command::CreateState { config, owner } => {
            let config = load(config)?;
            for dir in [&config.identity_dir, &config.state_dir] {
                platform::create_dir_for(dir, owner)
                    .with_context(|| format!("{} cannot be created for user {}", dir.display(), owner.0))?;
            }
            Ok(())
        }
        Command::Queue(mut command) => {
            let config = load(command.config().clone())?;
            log::start(&config);
            if !matches!(command, QueueCommand::Status { .. }) {
                refuse_foreign(&config.state_dir)?;
            }
            queue::queue(&config, command)
        }
        Command::Version { json: false } => print(format!("vedette {}\n", VERSION).as_bytes()),
        Command::Version { json: true } => {
            let version = serde_json::json!({"version": VERSION, "batch_format": vedette_wire::FORMAT_VERSION,
                "ocsf": "1.8.0", "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)});
            print(format!("{version}\n").as_bytes())
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "vedette", &mut script);
            print(&script)
        }
        Command::Man { dir } => Ok(clap_mangen::generate_to(Arguments::command(), dir)?),
        Command::Reference { page } => print(
            match page {
                Page::Configuration => config::configuration_page(),
                Page::Default => config::default_file(),
                Page::Collectors => config::collectors_page(),
            }
            .as_bytes(),
        ),
    }
}

/// Checks the configuration and what it needs on this machine.
fn check(config: ConfigArguments) -> Result<(), Exit> {
    let path = config.config.display().to_string();
    let config = load(config)?;
    bootstrap::check(&config)?;
    if let Some(problem) = dir_problem(&config.state_dir) {
        return Err(Exit::Config(vec![format!("{path}: state.dir: {problem}")]));
    }
    let conflicts = conflicts(&config)?;
    if !conflicts.is_empty() {
        return Err(Exit::Config(conflicts.into_iter().map(|conflict| format!("{path}: {conflict}")).collect()));
    }
    print(format!("{path}: ok\n{}", missing_permissions(&config)).as_bytes())
}

/// Permissions that the running agent lacks, or this process if none runs: one line for each.
fn missing_permissions(config: &Resolved) -> String {
    let running = runtime::status::ask(&config.socket_dir).ok().flatten();
    let (who, missing): (_, Vec<(String, Vec<String>)>) = match running {
        Some(report) => {
            let collectors = report.collectors.into_iter().filter(|collector| collector.state != "disabled");
            ("the agent", collectors.map(|collector| (collector.id, collector.missing_permissions)).collect())
        }
        None => {
            let enabled = config.collectors.iter().filter(|collector| collector.settings.enabled());
            let missing = |spec: &vedette_collectors::Spec| runtime::status::missing_permissions(spec);
            ("this user", enabled.map(|collector| (collector.spec.id.to_owned(), missing(collector.spec))).collect())
        }
    };
    let lines = missing.into_iter().flat_map(|(id, missing)| {
        missing.into_iter().map(move |permission| format!("collector {id}: {who} lacks {permission}\n"))
    });
    lines.collect()
}

/// Fails if this process is root and the directory belongs to another user: that user's service could not use the files that
/// root creates there.
fn refuse_foreign(dir: &Path) -> Result<(), Exit> {
    let Some(owner) = platform::foreign_owner(dir) else { return Ok(()) };
    Err(Exit::Usage(format!(
        "{} belongs to user {owner}, who cannot use files that root creates there; run the command as that user: runuser -u {owner} -- vedette …",
        dir.display()
    )))
}

/// Collects and ships until a stop signal.
fn service(arguments: ConfigArguments) -> Result<(), Exit> {
    let mut config = load(arguments.clone())?;
    log::start(&config);
    for dir in [&config.identity_dir, &config.state_dir] {
        refuse_foreign(dir)?;
    }
    let is_json = config.log_json;
    let runtime = tokio_runtime()?;
    let result = runtime.block_on(async {
        let mut stop = platform::StopSignals::new()?;
        let reload = Reload::new(Box::new(move || load(arguments.clone())))?;
        loop {
            tokio::select! {
                enrolled = bootstrap::bootstrap(&config) => {
                    enrolled?;
                    break;
                }
                signal = stop.wait() => {
                    tracing::info!(signal, "stopped before this host was enrolled");
                    return Ok(());
                }
                next = reload.next_valid() => config = next,
                () = feed_watchdog() => {}
            }
        }
        runtime::run(config, stop, reload).await
    });
    // Does not wait for collector threads that are blocked in the kernel.
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    result.map_err(|exit: Exit| if is_json { exit.logged() } else { exit })
}

/// Feeds the service manager's watchdog while the agent waits for its enrollment.
async fn feed_watchdog() {
    let Some(interval) = platform::watchdog() else { return std::future::pending().await };
    loop {
        platform::feed_watchdog();
        tokio::time::sleep(interval / 3).await;
    }
}

fn load(arguments: ConfigArguments) -> Result<Resolved, Exit> {
    config::load(&Sources::of_process(Some(arguments.config), arguments.set))
}

/// Why a directory cannot be created or written. Creates missing directories for the test and removes them.
fn dir_problem(dir: &Path) -> Option<String> {
    let missing = dir.ancestors().take_while(|dir| !dir.exists()).last();
    let (tested, result) = match missing {
        Some(missing) => (missing, std::fs::create_dir(missing).and_then(|()| std::fs::remove_dir(missing))),
        None if !dir.is_dir() => return Some(format!("{} is not a directory", dir.display())),
        None => (dir, platform::can_write_in(dir)),
    };
    let why = result.err()?;
    Some(format!(
        "cannot create or write {} ({why}); use another directory, or run the agent as its owner",
        tested.display()
    ))
}

/// Conflicts of the configuration with the enrollment and with the stored policy; none before enrollment.
fn conflicts(config: &Resolved) -> Result<Vec<String>, Exit> {
    let identity = IdentityDir::new(&config.identity_dir);
    let Ok(Some(enrollment)) = identity.enrollment() else { return Ok(Vec::new()) };
    let store = PolicyStore::load(&identity, &enrollment);
    let mut problems = Vec::new();
    if let Some(host) = config.place.geography.filter(|host| host.workspace() != enrollment.geo) {
        problems.push(format!(
            "host.geography: data of a host in {host} belongs to {}, and this host is enrolled in {}; enroll it there",
            host.workspace(),
            enrollment.geo
        ));
    }
    let Some(policy) = store.policy() else { return Ok(problems) };
    let decisions = decide(&policy, &config.collectors, &collector_context(config));
    let conflicts = decisions.into_iter().filter(|decision| decision.is_conflict);
    problems.extend(
        conflicts.filter_map(|decision| Some(format!("collectors.{}.enabled: {}", decision.id, decision.why?))),
    );
    Ok(problems)
}

/// A single-threaded runtime, which only waits for the network. Disk work has its own threads.
fn tokio_runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build()
}

/// Writes to standard output; a closed pipe (`| head`) is not an error.
fn print(bytes: &[u8]) -> Result<(), Exit> {
    match io::stdout().lock().write_all(bytes) {
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
