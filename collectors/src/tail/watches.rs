//! Wake-ups: inotify(7) through notify. Only a hint; what there is to read is found by looking.

use super::Place;
use crate::{Waker, root::glob::Pattern};
use notify::{RecursiveMode, Watcher};
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// Between two reads of the kernel's events.
const PAUSE: Duration = Duration::from_millis(50);
/// For so long all events are taken as they come: some thousands.
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
            // Here notify reads no further: the kernel merges what is the same as the event before it meanwhile, and a log
            // with thousands of lines a second does not cost as many wake-ups. What came meanwhile is worked off in one
            // go: notify answers new watches only when nothing is left to read.
            if paused.elapsed() > BUSY {
                std::thread::sleep(PAUSE);
                paused = Instant::now();
            }
        });
        let watcher = watcher
            .inspect_err(|err| tracing::warn!(error = %err, "no file events; files are looked at every second"))
            .ok();
        Self { watcher, watched: BTreeSet::new(), changed }
    }

    /// Watch the directory that a pattern's last part is in, where its name holds no wildcard.
    pub(super) fn add(&mut self, at: &Place<'_>, pattern: &Pattern) {
        let (Some(watcher), Some(dir)) = (&mut self.watcher, pattern.directory()) else { return };
        if self.watched.contains(&dir) {
            return;
        }
        // Without links, which would lead out of the host's root.
        let Ok(found) = at.root.find(&dir) else { return };
        match watcher.watch(&at.cx.path(found.path()), RecursiveMode::NonRecursive) {
            Ok(()) => {}
            // One that may not be listed is said to be by whoever lists it.
            Err(err) => {
                let dir = dir.display();
                tracing::warn!(path = %dir, error = %err, "no file events for this directory; its files are polled every second");
            }
        }
        self.watched.insert(dir);
    }

    pub(super) fn take_changed(&self) -> bool {
        self.changed.swap(false, std::sync::atomic::Ordering::AcqRel)
    }
}
