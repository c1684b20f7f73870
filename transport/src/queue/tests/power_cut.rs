//! The queue on a disk that fails, or loses everything that was not synced.
//!
//! A source counts from 0 and is read again from the queue's cursor; a workspace keeps what is delivered by key. Whatever
//! happens to the disk at any time, each number arrives exactly once in the end.

use super::super::{
    Queue, QueueError, Quota, Resume,
    tests_support::{chunk_of, context},
};
use crate::batcher::BatchBuilder;
use parking_lot::{Mutex, MutexGuard};
use proptest::prelude::*;
use redb::{Database, StorageBackend};
use std::{collections::BTreeMap, io, path::Path, sync::Arc};
use vedette_wire::{Body, LaneName, codec, frame};

/// A disk writes a sector whole or not at all.
const SECTOR: usize = 512;

#[derive(Debug, Clone)]
enum Fault {
    /// Power is cut: everything fails until the machine starts again.
    PowerCut,
    /// A single operation fails with an error number.
    Error(i32),
}

#[derive(Debug, Default)]
struct Platter {
    /// Content that survives a power cut.
    durable: Vec<u8>,
    /// Content that is read back.
    seen: Vec<u8>,
    /// Writes since the last sync, by sector.
    dirty: BTreeMap<usize, Vec<u8>>,
    operations: usize,
    fault: Option<(usize, Fault)>,
    off: bool,
}

impl Platter {
    fn operation(&mut self) -> io::Result<()> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        let now = self.operations;
        self.operations += 1;
        match self.fault.clone() {
            Some((at, Fault::PowerCut)) if at == now => {
                self.off = true;
                Err(io::Error::other("the power was cut"))
            }
            Some((at, Fault::Error(number))) if at == now => Err(io::Error::from_raw_os_error(number)),
            _ => Ok(()),
        }
    }

    fn touch(&mut self, from: usize, to: usize) {
        for sector in from / SECTOR..to.div_ceil(SECTOR) {
            let start = sector * SECTOR;
            let end = (start + SECTOR).min(self.seen.len());
            self.dirty.insert(sector, self.seen[start.min(end)..end].to_vec());
        }
    }

    /// Restart: a coin decides for each unsynced sector whether it was written.
    fn power_on(&mut self, coin: &mut fastrand::Rng) {
        for (sector, bytes) in std::mem::take(&mut self.dirty) {
            let start = sector * SECTOR;
            if start + bytes.len() <= self.durable.len() && coin.bool() {
                self.durable[start..start + bytes.len()].copy_from_slice(&bytes);
            }
        }
        self.seen = self.durable.clone();
        (self.off, self.fault) = (false, None);
    }
}

#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.0.lock()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut platter = self.lock();
        platter.operation()?;
        let at = offset as usize;
        let present = platter.seen.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(present);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut platter = self.lock();
        platter.operation()?;
        platter.seen.resize(length as usize, 0);
        // An unsynced length may survive or not; here it does, with zeros.
        platter.durable.resize(length as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.lock();
        platter.operation()?;
        platter.durable = platter.seen.clone();
        platter.dirty.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.lock();
        platter.operation()?;
        let (from, to) = (offset as usize, offset as usize + data.len());
        platter.seen[from..to].copy_from_slice(data);
        platter.touch(from, to);
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Reads numbers and commits them.
    Commit(u8),
    /// Moves the cursor over numbers without sending them.
    Skip,
    /// Posts the oldest batch; the answer arrives or is lost.
    Post {
        answered: bool,
    },
    Quarantine,
}

/// The state outside of the disk.
#[derive(Default)]
struct World {
    /// Numbers below are durable, as the queue reported.
    safe: u64,
    /// What arrived, by epoch and sequence.
    arrived: BTreeMap<(u64, u64), Vec<u64>>,
    skipped: std::collections::BTreeSet<u64>,
}

fn open(disk: &Disk) -> Result<Queue, QueueError> {
    let disk = disk.clone();
    let opener = move || Database::builder().set_cache_size(1 << 20).create_with_backend(disk.clone());
    let nowhere = Path::new("/nonexistent/records.redb");
    Queue::load(Box::new(opener), nowhere, false, LaneName::Records, (Quota::bytes(1 << 30), 9, Resume::Cursors))
}

fn cursor(queue: &Queue) -> Result<u64, QueueError> {
    let cursors = queue.cursors("test")?;
    Ok(cursors.first().map_or(0, |(_, bytes)| String::from_utf8_lossy(bytes).parse().expect("a number")))
}

fn numbers(bytes: &[u8]) -> ((u64, u64), Vec<u64>) {
    let (head, sealed) = frame::parse(bytes).expect("frames are whole");
    let plain = codec::decompress(sealed, head.compression, 1 << 20).expect("decompresses");
    let batch = codec::decode(&plain).expect("decodes");
    let number = |body: &Body| match body {
        Body::Syslog(line) => String::from_utf8_lossy(&line.raw).parse().expect("a number"),
        other => panic!("{other:?}"),
    };
    ((head.key.epoch.0, head.key.seq), batch.records.iter().map(|record| number(&record.body)).collect())
}

fn step(queue: &Queue, world: &mut World, step: &Step) -> Result<(), QueueError> {
    match step {
        Step::Commit(count) => {
            let from = cursor(queue)?;
            let mut batch = BatchBuilder::default();
            for number in from..from + u64::from(*count) {
                batch.add(chunk_of(&number.to_string(), number, &(number + 1).to_string()));
            }
            if !batch.is_empty() {
                let header = batch.header(&context(), queue.lane(), 1);
                queue.commit(&mut batch, header)?;
                world.safe = world.safe.max(from + u64::from(*count));
            }
        }
        Step::Skip => {
            let from = cursor(queue)?;
            let mut batch = BatchBuilder::default();
            let mut chunk = chunk_of("x", 0, &(from + 1).to_string());
            (chunk.entries, chunk.bodies) = (Vec::new(), Vec::new());
            batch.add(chunk);
            world.skipped.insert(from);
            let header = batch.header(&context(), queue.lane(), 1);
            queue.commit(&mut batch, header)?;
            world.safe = world.safe.max(from + 1);
        }
        Step::Post { answered } => {
            if let Some((slot, bytes)) = queue.next_after(0)? {
                let (key, found) = numbers(&bytes);
                let before = world.arrived.insert(key, found.clone());
                assert!(before.is_none_or(|before| before == found), "another batch under {key:?}");
                if *answered {
                    queue.delete(slot)?;
                }
            }
        }
        Step::Quarantine => {
            if let Some((slot, _)) = queue.next_after(0)? {
                queue.quarantine(slot, "shape", "no good")?;
                queue.replay(slot)?;
            }
        }
    }
    Ok(())
}

/// Checks invariants.
fn check(queue: &Queue, world: &World) {
    let verified = queue.verify().expect("reads");
    assert_eq!((verified.damaged.len(), verified.disagreements), (0, Vec::new()));
    let at = cursor(queue).expect("reads");
    assert!(at >= world.safe, "what was safe up to {} is safe up to {at} now", world.safe);
}

/// Delivers the rest: each number has arrived once.
fn finish(queue: &Queue, world: &mut World) {
    while let Some((slot, bytes)) = queue.next_after(0).expect("reads") {
        let (key, found) = numbers(&bytes);
        world.arrived.insert(key, found);
        queue.delete(slot).expect("deletes");
    }
    queue
        .quarantined(|batch| {
            let (key, found) = numbers(&batch.frame);
            world.arrived.insert(key, found);
            true
        })
        .expect("reads");
    let mut arrived: Vec<u64> = world.arrived.values().flatten().copied().collect();
    arrived.sort_unstable();
    let at = cursor(queue).expect("reads");
    let expected: Vec<u64> = (0..at).filter(|number| !world.skipped.contains(number)).collect();
    let missing: Vec<&u64> = expected.iter().filter(|number| !arrived.contains(number)).collect();
    assert_eq!((arrived.len(), missing), (expected.len(), Vec::new()), "{arrived:?}");
}

/// Runs the steps with a fault at one disk operation; false if there are fewer operations.
fn run(steps: &[Step], fault: (usize, Fault), seed: u64) -> bool {
    let (disk, mut world) = (Disk::default(), World::default());
    let mut coin = fastrand::Rng::with_seed(seed);
    let (at, cuts) = (fault.0, matches!(fault.1, Fault::PowerCut));
    disk.lock().fault = Some(fault);
    let mut queue = open(&disk);
    let mut begun = queue.is_ok();
    let mut skipped_before = world.skipped.clone();
    for each in steps {
        if let Ok(open) = &queue {
            skipped_before.clone_from(&world.skipped);
            match step(open, &mut world, each) {
                Ok(()) => continue,
                Err(err) => assert!(!err.is_damage(), "{err}"),
            }
        }
        if cuts {
            drop(queue);
            disk.lock().power_on(&mut coin);
            queue = open(&disk);
        } else if queue.is_err() {
            queue = open(&disk);
        }
        if queue.is_err() && !begun {
            // Cut during creation: the file is empty, and is moved aside.
            disk.lock().seen.clear();
            disk.lock().durable.clear();
            queue = open(&disk);
        }
        begun = true;
        let open = queue.as_ref().expect("opens after the fault");
        check(open, &world);
        if matches!(each, Step::Skip) && cursor(open).expect("reads") <= *world.skipped.last().unwrap_or(&0) {
            // The skip was undone.
            world.skipped.clone_from(&skipped_before);
        }
    }
    if disk.lock().off {
        drop(queue);
        disk.lock().power_on(&mut coin);
        queue = open(&disk);
    }
    let queue = queue.expect("it is open");
    finish(&queue, &mut world);
    disk.lock().operations > at
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (1_u8..20).prop_map(Step::Commit),
        1 => Just(Step::Skip),
        3 => any::<bool>().prop_map(|answered| Step::Post { answered }),
        1 => Just(Step::Quarantine),
    ];
    prop::collection::vec(step, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_power_cut_at_any_write_or_sync_loses_and_repeats_nothing(steps in steps(), seed in any::<u64>()) {
        let mut at = 0;
        while run(&steps, (at, Fault::PowerCut), seed.wrapping_add(at as u64)) {
            at += 1;
        }
        prop_assert!(at > 5);
    }

    #[test]
    fn an_error_of_the_disk_at_any_operation_loses_and_repeats_nothing(steps in steps(), full in any::<bool>()) {
        let number = if full { 28 } else { 5 };
        let mut at = 0;
        while run(&steps, (at, Fault::Error(number)), 1) {
            at += 1;
        }
        prop_assert!(at > 5);
    }
}
