//! The open database, and closing and reopening it.
//!
//! After a disk error redb refuses all work, and only reopening tells what is durable. Writes that were not durable, namely
//! deletions, are lost then, and so are their counts: the state is read again too.
//!
//! redb verifies a file's structure when it repairs a crash, but not after a clean close, so a file that was changed from
//! outside may make it panic. The panic is caught and treated as damage: the file is moved aside at once, so that no later
//! start trusts it.

use super::{QueueError, meta::Meta, salvage::damaged_name, shares};
use parking_lot::RwLock;
use redb::{Database, DatabaseError};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

/// Opens the database: a file, or a test's storage.
pub(super) type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

enum State {
    Open(Database),
    /// Closed after a disk error.
    Closed,
    Damaged(String),
}

pub(super) struct Store {
    opener: Opener,
    state: RwLock<State>,
    path: PathBuf,
    /// Whether a damaged file is moved aside.
    replaces_damaged: bool,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    pub(super) fn new(db: Database, opener: Opener, path: &Path, replaces_damaged: bool) -> Self {
        Self { opener, state: RwLock::new(State::Open(db)), path: path.to_owned(), replaces_damaged }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_damaged(&self) -> bool {
        matches!(*self.state.read(), State::Damaged(_))
    }

    /// Runs on the database, and reopens it first if it was closed; `reloaded` receives its state then.
    pub(super) fn with<T>(
        &self,
        reloaded: impl FnOnce(Meta, shares::Held),
        body: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, QueueError> {
        self.reopen(reloaded)?;
        let done = {
            let state = self.state.read();
            match &*state {
                State::Open(db) => catch_panic(|| body(db)),
                State::Closed => Err(redb::Error::PreviousIo),
                State::Damaged(why) => return Err(self.is(why)),
            }
        };
        done.map_err(|err| self.failed(err))
    }

    fn reopen(&self, reloaded: impl FnOnce(Meta, shares::Held)) -> Result<(), QueueError> {
        if !matches!(*self.state.read(), State::Closed) {
            return Ok(());
        }
        let mut state = self.state.write();
        if !matches!(*state, State::Closed) {
            return Ok(());
        }
        let opened = catch_panic(|| {
            let db = (self.opener)()?;
            let meta = Meta::read(&db)?.1;
            let meta = meta.ok_or_else(|| redb::Error::Corrupted("it is another database".to_owned()))?;
            let held = shares::load(&db)?;
            Ok((db, meta, held))
        });
        match opened {
            Ok((db, meta, held)) => {
                tracing::info!(path = %self.path.display(), "the queue was reopened");
                reloaded(meta, held);
                *state = State::Open(db);
                Ok(())
            }
            Err(err) => {
                drop(state);
                Err(self.failed(err))
            }
        }
    }

    fn failed(&self, error: redb::Error) -> QueueError {
        if let redb::Error::Corrupted(why) = &error {
            self.damaged(why);
            return self.is(why);
        }
        if matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::LockPoisoned(_)) {
            self.close(State::Closed);
        }
        QueueError::Storage { path: self.path.clone(), source: Box::new(error) }
    }

    /// Moves the file aside, unless it is only inspected; refuses all further work.
    pub(super) fn damaged(&self, why: &str) {
        if self.is_damaged() {
            return;
        }
        if self.replaces_damaged {
            let moved_to = damaged_name(&self.path);
            tracing::error!(path = %self.path.display(), moved_to = %moved_to.display(), why,
                "the queue is damaged; moved it aside");
            if let Err(err) = std::fs::rename(&self.path, &moved_to) {
                tracing::error!(path = %self.path.display(), error = %err, "the damaged queue cannot be moved aside");
            }
        }
        self.close(State::Damaged(why.to_owned()));
    }

    fn close(&self, next: State) {
        let mut state = self.state.write();
        if matches!(*state, State::Open(_)) || matches!(next, State::Damaged(_)) {
            let before = std::mem::replace(&mut *state, next);
            // Closing writes, so it may fail or panic.
            drop(catch_unwind(AssertUnwindSafe(|| drop(before))));
        }
    }

    fn is(&self, why: &str) -> QueueError {
        QueueError::Damaged { path: self.path.clone(), why: why.to_owned() }
    }
}

/// Treats a panic of redb as damage.
pub(super) fn catch_panic<T>(body: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(redb::Error::Corrupted(text.unwrap_or_else(|| "no reason given".to_owned())))
    })
}
