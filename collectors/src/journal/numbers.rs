//! Entries that rotation deleted unread.
//!
//! journald counts the entries of a directory through all its files. Up to version 253 each user's file has a sequence id of its own, so
//! the numbers of one sequence jump where another has an entry; those of the directory together do not.

use super::{
    cursors::{Cursors, Directory},
    files::Files,
};
use std::collections::BTreeMap;
use vedette_journal::{Cursor, Damage, EntryHead, Id};

/// The last numbers that were read, by directory.
#[derive(Default)]
pub(super) struct Numbers {
    last: BTreeMap<Directory, Option<Last>>,
    /// Damage that was looked at before it is reported.
    damage: Vec<(Id, Damage)>,
}

#[derive(Clone, Copy)]
struct Last {
    sequence: Id,
    boot: Option<Id>,
    number: u64,
}

impl Last {
    fn of(cursor: &Cursor) -> Option<Self> {
        let (sequence, number) = cursor.seqnum?;
        Some(Self { sequence, boot: cursor.monotonic.map(|(boot, _)| boot), number })
    }
}

impl Numbers {
    /// Number of entries between the last entry of the directory and this one that are in no file. It is zero where the two need not
    /// have been counted together: a journald that starts from nothing counts from one.
    pub(super) fn jump(&mut self, head: &EntryHead, files: &mut Files, cursors: &Cursors) -> u64 {
        let Some(directory) = files.reader.last_key().map(|key| key.directory.clone()) else { return 0 };
        let last = self.last.entry(directory.clone()).or_insert_with(|| {
            let of_directory = cursors.sequences().filter(|(_, other)| other.is_in(&directory));
            of_directory.filter_map(|(_, other)| Last::of(&other.last?)).max_by_key(|last| last.number)
        });
        let now = Last { sequence: head.seqnum_id, boot: Some(head.boot_id), number: head.seqnum };
        let Some(before) = *last else {
            *last = Some(now);
            return 0;
        };
        let is_one_count = before.sequence == now.sequence || before.boot == now.boot;
        if !is_one_count || before.number < now.number {
            *last = Some(now);
        }
        let jump = now.number.saturating_sub(before.number.saturating_add(1));
        if jump == 0 || !is_one_count || files.may_hold(&directory, before.number, now.number) {
            return 0;
        }
        // What cannot be read is counted as such.
        let damage = files.take_damage();
        let unreadable: u64 = damage.iter().map(|(_, damage)| damage.entries).sum();
        self.damage.extend(damage);
        jump.saturating_sub(unreadable)
    }

    /// Forgets the last numbers: entries behind them are counted in another way.
    pub(super) fn forget(&mut self) {
        self.last.values_mut().for_each(|last| *last = None);
    }

    /// Damage since the last call, by sequence.
    pub(super) fn take_damage(&mut self, files: &mut Files) -> Vec<(Id, Damage)> {
        let mut damage = std::mem::take(&mut self.damage);
        damage.extend(files.take_damage());
        damage
    }
}

#[cfg(test)]
mod tests {
    use crate::journal::tests::{Host, MACHINE, is, system};
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
}
