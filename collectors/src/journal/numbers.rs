//! Entries that rotation deleted unread.
//!
//! journald counts the entries of a directory through all its files. Up to version 253 each user's file has a sequence id of its own, so
//! the numbers of one sequence jump where another has an entry; those of the directory together do not.

use super::{
    cursors::{Cursors, Directory},
    files::Files,
};
use std::collections::BTreeMap;
use vedette_journal::{Cursor, EntryHead, Id};
use vedette_wire::Reason;

/// More numbers than this between two entries are another count, whatever the files say.
const JUMP_MAX: u64 = 1 << 30;

/// The last numbers that were read, by directory.
#[derive(Default)]
pub(super) struct Numbers {
    last: BTreeMap<Directory, Last>,
    /// Numbers behind the last ones that are counted for another reason: damaged entries, and files that were given up.
    explained: BTreeMap<Directory, u64>,
    /// Damage that was looked at before it is reported.
    damage: Vec<(Id, Reason, u64)>,
}

#[derive(Clone, Copy)]
struct Last {
    sequence: Id,
    boot: Option<Id>,
    number: u64,
    /// In the volatile journal; absent for an entry of an earlier run.
    is_volatile: Option<bool>,
}

impl Last {
    fn of(cursor: &Cursor) -> Option<Self> {
        let (sequence, number) = cursor.seqnum?;
        Some(Self { sequence, boot: cursor.monotonic.map(|(boot, _)| boot), number, is_volatile: None })
    }

    /// Whether journald counted both entries together. One that starts from nothing counts from one; what it moves to the disk
    /// gets numbers behind those there.
    fn is_one_count(&self, now: &Last) -> bool {
        let is_one_journal = self.is_volatile.is_none_or(|is_volatile| Some(is_volatile) == now.is_volatile);
        is_one_journal && (self.sequence == now.sequence || self.boot == now.boot)
    }
}

impl Numbers {
    /// Number of entries between the last entry of the directory and this one that are in no file, and that nothing else explains.
    pub(super) fn jump(&mut self, head: &EntryHead, files: &mut Files, cursors: &Cursors) -> u64 {
        let Some(key) = files.reader.last_key() else { return 0 };
        let is_volatile = Some(key.is_volatile);
        let now = Last { sequence: head.seqnum_id, boot: Some(head.boot_id), number: head.seqnum, is_volatile };
        let before = match self.last.get_mut(&key.directory) {
            Some(last) => {
                let before = *last;
                // A number may come late, as another sequence's.
                let is_late = before.is_one_count(&now) && before.number >= now.number;
                *last = if is_late { Last { is_volatile, ..before } } else { now };
                Some(before)
            }
            None => {
                self.last.insert(key.directory.clone(), now);
                // Of a sequence without a file, the boot says whether it was counted here.
                let of_directory =
                    cursors.sequences().filter(|(_, other)| other.is_in(&key.directory) || other.is_gone());
                let lasts = of_directory.filter_map(|(_, other)| Last::of(&other.last?));
                lasts.filter(|last| last.is_one_count(&now)).max_by_key(|last| last.number)
            }
        };
        let Some(before) = before.filter(|before| before.is_one_count(&now)) else {
            self.explained.remove(&key.directory);
            return 0;
        };
        let jump = now.number.saturating_sub(before.number.saturating_add(1));
        if jump == 0 || jump > JUMP_MAX {
            return 0;
        }
        let directory = key.directory.clone();
        if files.may_hold(&directory, before.number, now.number) {
            return 0;
        }
        let damage = files.take_damage();
        self.explain(&damage, cursors);
        self.damage.extend(damage);
        let explained = self.explained.remove(&directory).unwrap_or(0);
        jump.saturating_sub(explained)
    }

    /// Notes numbers that are counted for another reason.
    fn explain(&mut self, damage: &[(Id, Reason, u64)], cursors: &Cursors) {
        for (id, _, count) in damage {
            self.explain_numbers(*id, *count, cursors);
        }
    }

    /// Notes numbers of a sequence that are counted for another reason.
    pub(super) fn explain_numbers(&mut self, id: Id, count: u64, cursors: &Cursors) {
        if let Some(directory) = cursors.directory_of(id) {
            let explained = self.explained.entry(directory.clone()).or_default();
            *explained = explained.saturating_add(count);
        }
    }

    /// Entries that could not be read since the last call, by sequence, with the reason.
    pub(super) fn take_damage(&mut self, files: &mut Files, cursors: &Cursors) -> Vec<(Id, Reason, u64)> {
        let mut damage = std::mem::take(&mut self.damage);
        let more = files.take_damage();
        self.explain(&more, cursors);
        damage.extend(more);
        damage
    }
}

#[cfg(test)]
mod tests {
    use crate::journal::tests::{Host, MACHINE, SEQUENCE, is, system, writer};
    use std::{collections::BTreeMap, fs};
    use vedette_wire::Reason;

    /// Numbers of a user's file, which up to systemd 253 has a sequence id of its own, are of the same count.
    #[test]
    fn one_count_through_two_sequences_has_no_gaps_and_what_rotation_deleted_is_counted() {
        let host = Host::new(crate::tail::Start::Beginning);
        let user = format!("var/log/journal/{MACHINE}/user-1000.journal");
        let of_user = |numbers: &[u64]| host.put(&user, numbers.to_vec(), |journal| is(journal, 0x77));
        host.put(&system(MACHINE), [1, 2, 5], |_| {});
        of_user(&[3, 4]);
        host.run(&[&|| of_user(&[3, 4, 6, 7]), &|| host.put(&system(MACHINE), [1, 2, 5, 8], |_| {})]);
        // A restart, and a file that begins behind what was vacuumed: of 9 to 13, two are left.
        fs::remove_file(host.path(&system(MACHINE))).expect("removes");
        host.put(&system(MACHINE), [13, 14], |_| {});
        of_user(&[3, 4, 6, 7, 10]);
        host.run(&[]);
        assert_eq!(*host.sink.dropped.lock(), [(Reason::RotatedAway, 1, None), (Reason::RotatedAway, 2, None)]);
        let mut at: BTreeMap<String, u64> = BTreeMap::new();
        for (id, position, _) in host.sink.records.lock().iter() {
            let expected = at.insert(id.clone(), position.1).unwrap_or(position.0);
            assert_eq!(position.0, expected, "the positions of {id} tile");
        }
        let mut numbers = host.numbers();
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8, 10, 13, 14]);
    }

    #[test]
    fn what_is_counted_for_another_reason_is_no_rotation() {
        // A damaged entry at the end of a pass.
        let host = Host::new(crate::tail::Start::Beginning);
        let damage = |journal: &mut writer::Journal| journal.bytes[journal.entries[4]] = 0;
        host.put(&system(MACHINE), 1..=5, damage);
        host.run(&[&|| host.put(&system(MACHINE), 1..=6, damage)]);
        assert_eq!(*host.sink.dropped.lock(), [(Reason::Unparseable, 1, None)]);

        // Files that were given up.
        let host = Host::new(crate::tail::Start::Beginning);
        let archived = |journal: &mut writer::Journal| journal.bytes[16] = 2;
        host.put(&system(MACHINE), 1..=1, archived);
        host.run(&[]);
        *host.sink.full.lock() = Some(SEQUENCE.to_owned());
        let name = |number: u64| format!("var/log/journal/{MACHINE}/system@{number}.journal");
        (1..=7).for_each(|number| host.put(&name(number), number * 2..=number * 2 + 1, archived));
        host.run(&[
            &|| (1..=7).for_each(|number| fs::remove_file(host.path(&name(number))).expect("removes")),
            &|| *host.sink.full.lock() = None,
        ]);
        let lost: u64 = host.sink.dropped.lock().iter().map(|(_, count, _)| count).sum();
        assert_eq!((lost, host.numbers()), (6, vec![1, 8, 9, 10, 11, 12, 13, 14, 15]));
    }

    /// While a sequence has no room, the others of its directory wait too: a later jump shows what was deleted.
    #[test]
    fn what_is_deleted_while_a_sequence_waits_is_counted() {
        let host = Host::new(crate::tail::Start::Beginning);
        let user = format!("var/log/journal/{MACHINE}/user-1000.journal");
        host.put(&system(MACHINE), [1, 2], |_| {});
        host.put(&user, [3], |journal| is(journal, 0x77));
        host.run(&[]);
        *host.sink.full.lock() = Some(format!("journal:{}", "77".repeat(16)));
        host.put(&user, [3, 4, 5, 6], |journal| is(journal, 0x77));
        host.put(&system(MACHINE), [1, 2, 7, 8], |_| {});
        host.run(&[]);
        assert_eq!(host.numbers(), [1, 2, 3], "both wait");
        *host.sink.full.lock() = None;
        fs::remove_file(host.path(&user)).expect("removes");
        host.run(&[]);
        assert_eq!(host.numbers(), [1, 2, 3, 7, 8]);
        assert_eq!(*host.sink.dropped.lock(), [(Reason::RotatedAway, 3, None)]);
    }

    #[test]
    fn numbers_far_apart_are_no_rotation() {
        let host = Host::new(crate::tail::Start::Beginning);
        host.put(&system(MACHINE), [1, 1 << 40], |_| {});
        host.run(&[]);
        assert!(host.sink.dropped.lock().is_empty());
    }
}
