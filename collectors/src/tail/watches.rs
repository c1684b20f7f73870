//! Wake-ups: inotify(7) through notify. Events are hints; reading finds the data.

use super::TailContext;
use crate::{Waker, root::glob::Pattern};
use notify::{RecursiveMode, Watcher};
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// Pause between two reads of the kernel's events.
const PAUSE: Duration = Duration::from_millis(50);
/// Events within this time after a pause are processed without another pause: some thousands.
const BUSY: Duration = Duration::from_millis(3);

/// Watches on the directories of the globs.
pub(super) struct Watches {
    watcher: Option<notify::RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    changed: Arc<std::sync::atomic::AtomicBool>,
}

impl Watches {
    pub(super) fn new(waker: Waker) -> Self {
        let changed = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = Arc::clone(&changed);
        let mut paused = Instant::now();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let listing = match &event {
                Ok(event) => {
                    event.need_rescan()
                        || event.kind.is_create()
                        || event.kind.is_remove()
                        || matches!(event.kind, notify::EventKind::Modify(notify::event::ModifyKind::Name(_)))
                }
                Err(_) => true,
            };
            if let Ok(event) = &event
                && event.kind.is_access()
            {
                return;
            }
            if listing {
                flag.store(true, std::sync::atomic::Ordering::Release);
            }
            waker.wake();
            // notify stops reading here. Meanwhile the kernel merges equal consecutive events, so a log with thousands of lines
            // per second costs fewer wake-ups. Events that arrived in the pause are then processed together, since notify adds
            // watches only when no events are left.
            if paused.elapsed() > BUSY {
                std::thread::sleep(PAUSE);
                paused = Instant::now();
            }
        });
        let watcher =
            watcher.inspect_err(|err| tracing::warn!(error = %err, "no file events; polling files every second")).ok();
        Self { watcher, watched: BTreeSet::new(), changed }
    }

    /// Watches the directory of a pattern's last component, unless its name has wildcards.
    pub(super) fn add(&mut self, at: &TailContext<'_>, pattern: &Pattern) {
        let (Some(watcher), Some(dir)) = (&mut self.watcher, pattern.directory()) else { return };
        if self.watched.contains(&dir) {
            return;
        }
        // Without links, which could lead out of the host's root.
        let Ok(found) = at.root.find(&dir) else { return };
        match watcher.watch(&at.context.path(found.path()), RecursiveMode::NonRecursive) {
            Ok(()) => {}
            // The scan reports a directory that cannot be listed. This warning is about missing events.
            Err(err) => {
                let dir = dir.display();
                tracing::warn!(path = %dir, error = %err, "no file events for this directory; polling its files every second");
            }
        }
        self.watched.insert(dir);
    }

    pub(super) fn take_changed(&self) -> bool {
        self.changed.swap(false, std::sync::atomic::Ordering::AcqRel)
    }
}
