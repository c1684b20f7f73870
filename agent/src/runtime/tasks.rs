//! Named tasks of a run, and why the run ends.

use std::{collections::HashMap, fmt, time::Duration};
use tokio::{
    sync::watch,
    task::{Id, JoinSet},
    time::Instant,
};
use vedette_transport::Backoff;

/// Pauses before a task that panicked begins again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why a run ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RunEnd {
    /// A signal stops the agent.
    Signal(&'static str),
    /// The agent begins again in the same process.
    Restart(RestartReason),
    /// The agent cannot go on; the service manager restarts it.
    Fatal(String),
}

/// Why the agent begins again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RestartReason {
    /// The queue is damaged: it is moved aside at the start.
    QueueDamaged,
    /// The agent has another key.
    Rekeyed,
    /// The queue's file was removed or replaced, alone or with the state directory.
    QueueRemoved,
    /// The workspace lost acknowledged batches: sources are read again.
    BatchesLost,
    /// The configuration has changed.
    ConfigurationChanged,
    /// The tasks cannot be started.
    StartFailed,
}

impl fmt::Display for RunEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunEnd::Signal(name) => write!(f, "signal {name}"),
            RunEnd::Restart(reason) => reason.fmt(f),
            RunEnd::Fatal(why) => f.write_str(why),
        }
    }
}

impl fmt::Display for RestartReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RestartReason::QueueDamaged => "the queue is damaged",
            RestartReason::Rekeyed => "the agent has a new key",
            RestartReason::QueueRemoved => "the queue's file was removed or replaced",
            RestartReason::BatchesLost => "the workspace lost acknowledged batches",
            RestartReason::ConfigurationChanged => "the configuration has changed",
            RestartReason::StartFailed => "the agent cannot start its tasks",
        })
    }
}

/// Tasks of a run.
pub(super) struct Tasks {
    set: JoinSet<Option<RunEnd>>,
    names: HashMap<Id, &'static str>,
    stop: watch::Sender<bool>,
}

impl Tasks {
    pub(super) fn new() -> Self {
        Self { set: JoinSet::new(), names: HashMap::new(), stop: watch::Sender::new(false) }
    }

    /// Starts a task that works until the stop and is dropped then. If it panics, it begins again after a pause; if it returns,
    /// the run ends.
    pub(super) fn spawn_restarting<F>(&mut self, name: &'static str, task: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = RunEnd> + Send + 'static,
    {
        let mut stop = self.stop.subscribe();
        let supervised = async move {
            let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
            loop {
                let began = Instant::now();
                let mut one = JoinSet::new();
                one.spawn(task());
                let ended = tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => None,
                    ended = one.join_next() => ended,
                };
                let Some(ended) = ended else {
                    one.shutdown().await;
                    return None;
                };
                match ended {
                    Ok(end) => return Some(end),
                    Err(err) => {
                        tracing::error!(task = name, error = %err, "a task of the agent panicked; restarting it after a pause")
                    }
                }
                // A task that worked for longer than the longest pause has recovered.
                if began.elapsed() > LONGEST_PAUSE {
                    backoff.reset();
                }
                tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => return None,
                    () = tokio::time::sleep(backoff.pause()) => {}
                }
            }
        };
        self.names.insert(self.set.spawn(supervised).id(), name);
    }

    /// Starts a task that ends itself once it sees the stop; [`Tasks::stop`] waits for it. If it panics, the run ends.
    pub(super) fn spawn_until_stop<F>(&mut self, name: &'static str, task: impl FnOnce(watch::Receiver<bool>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = task(self.stop.subscribe());
        let finished = async move {
            task.await;
            None
        };
        self.names.insert(self.set.spawn(finished).id(), name);
    }

    /// Waits for the first reason to end.
    pub(super) async fn first_end(&mut self) -> RunEnd {
        while let Some(joined) = self.set.join_next().await {
            match joined {
                Ok(Some(end)) => return end,
                Ok(None) => {}
                Err(err) => {
                    let name = self.names.get(&err.id()).copied().unwrap_or_default();
                    return RunEnd::Fatal(format!("task {name} of the agent ended unexpectedly: {err}"));
                }
            }
        }
        RunEnd::Fatal("no task of the agent is left".to_owned())
    }

    /// Stops all tasks, and waits for their end.
    pub(super) async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.set.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_begins_again_and_one_that_returns_ends_the_run() {
        let (mut tasks, begun) = (Tasks::new(), Arc::<AtomicUsize>::default());
        let count = Arc::clone(&begun);
        tasks.spawn_restarting("flaky", move || {
            let attempt = count.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(attempt == 2, "not yet");
                RunEnd::Restart(RestartReason::Rekeyed)
            }
        });
        tasks.spawn_restarting("quiet", std::future::pending);
        assert_eq!(tasks.first_end().await, RunEnd::Restart(RestartReason::Rekeyed));
        assert_eq!(begun.load(Ordering::SeqCst), 3);
        tasks.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_waits_for_what_finishes_and_drops_what_is_kept() {
        let (mut tasks, done) = (Tasks::new(), Arc::<AtomicUsize>::default());
        let held = Arc::new(());
        let (supervised, count) = (Arc::clone(&held), Arc::clone(&done));
        tasks.spawn_restarting("kept", move || {
            let supervised = Arc::clone(&supervised);
            async move {
                std::future::pending::<()>().await;
                drop(supervised);
                RunEnd::Signal("never")
            }
        });
        tasks.spawn_until_stop("finished", |mut stop| async move {
            drop(stop.wait_for(|stop| *stop).await);
            tokio::time::sleep(Duration::from_secs(3)).await;
            count.fetch_add(1, Ordering::SeqCst);
        });
        tasks.stop().await;
        assert_eq!((done.load(Ordering::SeqCst), Arc::strong_count(&held)), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_does_not_wait_for_a_task_that_is_about_to_begin_again() {
        let mut tasks = Tasks::new();
        tasks.spawn_restarting("flaky", || async { panic!("not now") });
        for _ in 0..8 {
            let end = tokio::time::timeout(Duration::from_secs(30), tasks.first_end()).await;
            end.expect_err("it begins again");
        }
        let began = Instant::now();
        tasks.stop().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_must_finish_and_panics_is_fatal_and_named() {
        let mut tasks = Tasks::new();
        tasks.spawn_restarting("quiet", std::future::pending);
        tasks.spawn_until_stop("policy", |_| async { panic!("no") });
        let RunEnd::Fatal(why) = tasks.first_end().await else { panic!("it goes on") };
        assert!(why.contains("policy"), "{why}");
        tasks.stop().await;
    }
}
