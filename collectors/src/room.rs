//! The wait of a source for room in the queue.

use crate::Outlet;
use std::time::{Duration, Instant};
use vedette_wire::Source;

/// Time of waiting for room after which a source is reported. While batches are delivered, waits are shorter.
const REPORTED_AFTER: Duration = Duration::from_secs(5);

/// Room for a source in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// There is room.
    Free,
    /// The source holds its share.
    Full,
    /// It has held its share for some time.
    LongFull,
}

/// Start of a source's wait for room; absent while it does not wait.
#[derive(Debug, Default)]
pub(crate) struct RoomWait(Option<Instant>);

impl RoomWait {
    /// Checks for room.
    pub(crate) fn check(&mut self, outlet: &Outlet, source: &Source) -> Room {
        if outlet.has_room(source, self.0.is_some()) {
            self.0 = None;
            return Room::Free;
        }
        let since = *self.0.get_or_insert_with(Instant::now);
        if since.elapsed() < REPORTED_AFTER { Room::Full } else { Room::LongFull }
    }

    /// Whether the source waits for so long that it is reported.
    pub(crate) fn is_long(&self) -> bool {
        self.0.is_some_and(|since| since.elapsed() >= REPORTED_AFTER)
    }

    /// Whether the source waits.
    pub(crate) fn is_waiting(&self) -> bool {
        self.0.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CollectError, Sink, StopSignal};
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };
    use vedette_wire::Chunk;

    /// Has room down to one half for a source that waits, and down to a quarter for others.
    struct Half(AtomicU64);

    impl Sink for Half {
        fn put(&self, _: Chunk, _: &StopSignal) -> Result<(), CollectError> {
            Ok(())
        }

        fn has_room(&self, _: &Source, waits: bool) -> bool {
            self.0.load(Ordering::Relaxed) > if waits { 50 } else { 25 }
        }

        fn report_problem(&self, _: &'static str, _: String) {}
    }

    #[test]
    fn whoever_waited_goes_on_when_there_is_more_room_than_it_stopped_at() {
        let sink = Arc::new(Half(AtomicU64::new(30)));
        let outlet = Outlet::new(Arc::clone(&sink) as Arc<dyn Sink>, StopSignal::default());
        let source = Source { collector: "test", id: "a".to_owned(), name: None };
        let mut wait = RoomWait::default();
        for (free, expected) in
            [(30, Room::Free), (20, Room::Full), (30, Room::Full), (60, Room::Free), (30, Room::Free)]
        {
            sink.0.store(free, Ordering::Relaxed);
            assert_eq!(wait.check(&outlet, &source), expected, "{free}");
            assert_eq!(wait.is_waiting(), expected != Room::Free);
        }
        let mut wait = RoomWait(Instant::now().checked_sub(REPORTED_AFTER));
        sink.0.store(0, Ordering::Relaxed);
        assert_eq!(wait.check(&outlet, &source), Room::LongFull);
    }
}
