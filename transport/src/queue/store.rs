//! The open database, and how it is closed and opened again.
//!
//! After an error of the disk redb refuses everything that follows; only opening it again tells what is durable. What
//! was written without being made durable, deletions, is then lost, and so is what was counted of it: the numbers are
//! read again as well.
//!
//! redb checks the file's structure where a crash is repaired, not where it was closed well: a file that was changed
//! from outside may make it panic. That is caught, and means the same as a value that is not what was written: the file
//! is moved aside at once, so that no later start believes it.

use super::{QueueError, meta::Meta, salvage::aside, shares};
use redb::{Database, DatabaseError};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

/// Opens the database: a file, or a test's storage.
pub(super) type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

enum State {
    Open(Database),
    /// After an error of the disk.
    Closed,
    Damaged(String),
}

pub(super) struct Store {
    opener: Opener,
    state: RwLock<State>,
    path: PathBuf,
    /// Whether it is moved aside when it is damaged.
    moves: bool,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    pub(super) fn new(db: Database, opener: Opener, path: &Path, moves: bool) -> Self {
        Self { opener, state: RwLock::new(State::Open(db)), path: path.to_owned(), moves }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_damaged(&self) -> bool {
        matches!(*self.state.read().unwrap_or_else(PoisonError::into_inner), State::Damaged(_))
    }

    /// Run on the open database, opening it again before where it was closed; `reloaded` is then told what it says.
    pub(super) fn with<T>(
        &self,
        reloaded: impl FnOnce(Meta, shares::Held),
        body: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, QueueError> {
        self.reopen(reloaded)?;
        let done = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            match &*state {
                State::Open(db) => catching(|| body(db)),
                State::Closed => Err(redb::Error::PreviousIo),
                State::Damaged(why) => return Err(self.is(why)),
            }
        };
        done.map_err(|err| self.failed(err))
    }

    fn reopen(&self, reloaded: impl FnOnce(Meta, shares::Held)) -> Result<(), QueueError> {
        if !matches!(*self.state.read().unwrap_or_else(PoisonError::into_inner), State::Closed) {
            return Ok(());
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*state, State::Closed) {
            return Ok(());
        }
        let opened = catching(|| {
            let db = (self.opener)()?;
            let meta = Meta::read(&db)?.1;
            let meta = meta.ok_or_else(|| redb::Error::Corrupted("it is another database".to_owned()))?;
            let held = shares::load(&db)?;
            Ok((db, meta, held))
        });
        match opened {
            Ok((db, meta, held)) => {
                tracing::info!(path = %self.path.display(), "the queue was opened again");
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

    /// Move the file aside, where it is not only looked at, and answer nothing any more.
    pub(super) fn damaged(&self, why: &str) {
        if self.is_damaged() {
            return;
        }
        if self.moves {
            let aside = aside(&self.path);
            tracing::error!(path = %self.path.display(), aside = %aside.display(), why,
                "the queue is damaged; moved aside");
            if let Err(err) = std::fs::rename(&self.path, &aside) {
                tracing::error!(path = %self.path.display(), error = %err, "the damaged queue cannot be moved aside");
            }
        }
        self.close(State::Damaged(why.to_owned()));
    }

    fn close(&self, next: State) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Open(_)) || matches!(next, State::Damaged(_)) {
            let before = std::mem::replace(&mut *state, next);
            // Closing may write, and so fail or panic.
            drop(catch_unwind(AssertUnwindSafe(|| drop(before))));
        }
    }

    fn is(&self, why: &str) -> QueueError {
        QueueError::Damaged { path: self.path.clone(), why: why.to_owned() }
    }
}

/// A panic of redb is damage.
pub(super) fn catching<T>(body: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(redb::Error::Corrupted(text.unwrap_or_else(|| "no reason given".to_owned())))
    })
}
