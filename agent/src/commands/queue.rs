//! `vedette queue`: inspects and repairs the queue while no agent runs.

use super::print;
use crate::{
    cli::{QuarantineCommand, QueueCommand, SlotArguments},
    config::Resolved,
    exit::Exit,
    platform,
    runtime::status,
};
use anyhow::Context;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, json};
use std::{fmt::Write as _, fs, io::Write as _, path::Path};
use vedette_transport::{
    Queue, QueueError,
    queue::{PLAIN_BYTES_MAX, salvage},
};
use vedette_wire::{LaneName, codec, frame};

pub(super) fn queue(config: &Resolved, command: QueueCommand) -> Result<(), Exit> {
    match command {
        QueueCommand::Status { json, .. } => show_status(config, json),
        QueueCommand::Verify { json, .. } => verify(&open(config)?, json),
        QueueCommand::Salvage { .. } => salvage_damaged(config),
        QueueCommand::Export { to, records, .. } => export(&open(config)?, &to, records),
        QueueCommand::Quarantine(QuarantineCommand::List { json, .. }) => list(&open(config)?, json),
        QueueCommand::Quarantine(QuarantineCommand::Show { slot, .. }) => show(&open(config)?, slot),
        QueueCommand::Quarantine(QuarantineCommand::Replay(which)) => {
            each(&open(config)?, &which, "moved back to the queue", Queue::replay)
        }
        QueueCommand::Quarantine(QuarantineCommand::Drop(which)) => {
            each(&open(config)?, &which, "deleted", Queue::drop_quarantined)
        }
    }
}

/// Opens the queue, unless an agent has it open.
fn open(config: &Resolved) -> Result<Queue, Exit> {
    Queue::inspect(&config.state_dir, LaneName::Records, config.quota).map_err(|err| match err {
        QueueError::InUse { .. } => Exit::Failure(anyhow::anyhow!(
            "an agent is using the queue in {}; use `vedette status` or `vedette queue status`, or stop the agent first",
            config.state_dir.display()
        )),
        QueueError::Storage { .. } | QueueError::Damaged { .. } => Exit::Failure(
            anyhow::Error::new(err)
                .context("the queue cannot be read; if it is damaged, the agent moves it aside and salvages it at its next start"),
        ),
        other => Exit::Failure(anyhow::Error::new(other)),
    })
}

fn damaged_files(config: &Resolved) -> Vec<String> {
    salvage::broken(&config.state_dir, LaneName::Records).iter().map(|path| path.display().to_string()).collect()
}

fn show_status(config: &Resolved, json: bool) -> Result<(), Exit> {
    let running = status::ask(&config.socket_dir)
        .with_context(|| format!("cannot query the agent through its socket in {}", config.socket_dir.display()))?;
    let mut value = match &running {
        Some(report) => json!({"running": true, "file_bytes": report.queue.bytes, "batches": report.queue.batches,
            "oldest_unsent_seconds": report.queue.oldest_unsent_seconds, "waiting": report.queue.waiting,
            "quarantine": report.queue.quarantine}),
        None => {
            let queue = open(config)?;
            let (stats, (lane, next_seq, before)) = (queue.stats(), queue.sequence_state());
            let oldest = stats.oldest_sealed.map(|sealed| (crate::now() - sealed).max(0) as f64 / 1e9);
            let quarantine = stats.quarantine;
            json!({"running": false, "file_bytes": stats.file_bytes, "batches": stats.batches,
                "oldest_unsent_seconds": oldest, "lane": lane.name(), "epoch": queue.epoch().to_string(),
                "next_seq": next_seq, "predecessor": before,
                "quarantine": {"batches": quarantine.batches, "bytes": quarantine.bytes, "dropped": quarantine.dropped}})
        }
    };
    value["damaged_files"] = json!(damaged_files(config));
    if json {
        return print(format!("{value}\n").as_bytes());
    }
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<14} {text}");
    };
    line("agent", if running.is_some() { "running" } else { "not running" }.to_owned());
    line("file", format!("{} KiB", value["file_bytes"].as_u64().unwrap_or(0) >> 10));
    let oldest = value["oldest_unsent_seconds"].as_f64().map(|age| format!(", the oldest for {age:.0} s"));
    line("batches", format!("{}{}", value["batches"], oldest.unwrap_or_default()));
    if let Some(epoch) = value["epoch"].as_str() {
        line("epoch", format!("{epoch}, next sequence {}", value["next_seq"]));
    }
    let quarantine = &value["quarantine"];
    let kib = quarantine["bytes"].as_u64().unwrap_or(0) >> 10;
    line("quarantine", format!("{} batches in {kib} KiB, {} deleted", quarantine["batches"], quarantine["dropped"]));
    for path in damaged_files(config) {
        line("damaged", format!("{path}; the agent salvages it at its next start, or run `vedette queue salvage`"));
    }
    print(out.as_bytes())
}

fn verify(queue: &Queue, json: bool) -> Result<(), Exit> {
    let verified = queue.verify()?;
    let is_intact = verified.damaged.is_empty() && verified.disagreements.is_empty();
    if json {
        let value = json!({"batches": verified.batches, "records": verified.records, "damaged_slots": verified.damaged,
            "disagreements": verified.disagreements});
        print(format!("{value}\n").as_bytes())?;
    } else {
        let mut out = format!("{} batches are intact, with {} records in all\n", verified.batches, verified.records);
        for slot in &verified.damaged {
            let _ = writeln!(out, "the batch in slot {slot} is damaged");
        }
        for disagreement in &verified.disagreements {
            let _ = writeln!(out, "{disagreement}");
        }
        print(out.as_bytes())?;
    }
    if is_intact { Ok(()) } else { Err(Exit::Failure(anyhow::anyhow!("the queue is damaged"))) }
}

fn salvage_damaged(config: &Resolved) -> Result<(), Exit> {
    let paths = salvage::broken(&config.state_dir, LaneName::Records);
    if paths.is_empty() {
        return print(b"there is no damaged queue\n");
    }
    // Creates a missing queue, as the agent does.
    let queue =
        Queue::open(&config.state_dir, LaneName::Records, config.quota, fastrand::u64(1..)).map_err(
            |err| match err {
                QueueError::InUse { .. } => {
                    anyhow::anyhow!("an agent is running; it salvages the damaged queue itself")
                }
                other => anyhow::Error::new(other),
            },
        )?;
    for path in paths {
        let found = queue.salvage(&path, |full| !full).map_err(|err| match err {
            salvage::SalvageError::Stopped => {
                anyhow::anyhow!("the queue is full; start the agent: it delivers batches, and then salvages the rest")
            }
            other => anyhow::Error::new(other),
        })?;
        print(
            format!(
                "{}: put {} batches with {} records into the queue; {} damaged ones and {} of \
                 another enrollment are deleted with the file\n",
                path.display(),
                found.batches,
                found.records,
                found.damaged,
                found.foreign
            )
            .as_bytes(),
        )?;
    }
    Ok(())
}

/// Writes every batch to its own file: its frame, or its records as JSON lines.
fn export(queue: &Queue, to: &Path, records: bool) -> Result<(), Exit> {
    platform::create_private_dir(to).with_context(|| format!("cannot create {}", to.display()))?;
    let (mut slot, mut count) = (0, 0);
    while let Some((next, bytes)) = queue.next_after(slot)? {
        slot = next;
        let path = to.join(format!("{slot:012}.{}", if records { "jsonl" } else { "vdtf" }));
        let content = if records { json_lines(&bytes).with_context(|| format!("slot {slot}"))? } else { bytes };
        let mut file = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        file.write_all(&content).with_context(|| format!("cannot write {}", path.display()))?;
        count += 1;
    }
    print(format!("{count} batches written to {}\n", to.display()).as_bytes())
}

/// Records of a frame, one JSON object per line. Bodies are printed as encoded; the workspace interprets them.
fn json_lines(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (head, sealed) = frame::parse(bytes)?;
    let plain = codec::decompress(sealed, head.compression, PLAIN_BYTES_MAX)?;
    let (header, records) = codec::decode_header(&plain)?;
    let records = codec::unpack(records)?;
    let (mut out, mut start) = (Vec::new(), 0);
    for item in codec::outline(&records)? {
        let Any(record) = rmp_serde::from_slice(&records[start..item.end])?;
        start = item.end;
        let source = header.sources.get(item.source as usize);
        let line = json!({"collector": source.map(|source| &source.collector), "source": source.map(|source| &source.id),
            "position": record["p"], "observed": record["t"], "body": record["b"]});
        serde_json::to_writer(&mut out, &line)?;
        out.push(b'\n');
    }
    Ok(out)
}

/// Any MessagePack value as JSON; bytes become text, with U+FFFD for invalid UTF-8.
struct Any(Value);

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyVisitor).map(Any)
    }
}

struct AnyVisitor;

impl<'de> Visitor<'de> for AnyVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(String::from_utf8_lossy(value).into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(Any(item)) = items.next_element()? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = serde_json::Map::new();
        while let Some((Any(key), Any(value))) = entries.next_entry()? {
            let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

fn list(queue: &Queue, json: bool) -> Result<(), Exit> {
    let mut out = String::new();
    if !json {
        let _ = writeln!(out, "{:>12} {:>8} {:>8}  {:<44} reason", "slot", "records", "bytes", "key");
    }
    queue.quarantined(|batch| {
        let key = batch.head.as_ref().map(|head| format!("{}/{}/{}", head.key.lane, head.key.epoch, head.key.seq));
        let records = batch.head.as_ref().map_or(0, |head| head.records);
        if json {
            let reason: Value = serde_json::from_str(&batch.reason).unwrap_or_default();
            let line = json!({"slot": batch.slot, "key": key, "records": records, "bytes": batch.frame.len(),
                "sealed": batch.head.as_ref().map(|head| head.sealed), "reason": reason});
            let _ = writeln!(out, "{line}");
        } else {
            let (key, bytes) = (key.unwrap_or_else(|| "damaged".to_owned()), batch.frame.len());
            let _ = writeln!(out, "{:>12} {records:>8} {bytes:>8}  {key:<44} {}", batch.slot, batch.reason);
        }
        true
    })?;
    print(out.as_bytes())
}

fn show(queue: &Queue, slot: u64) -> Result<(), Exit> {
    let mut found = None;
    queue.quarantined(|batch| {
        let is_selected = batch.slot == slot;
        if is_selected {
            found = Some(batch);
        }
        !is_selected
    })?;
    let batch = found.ok_or_else(|| no_slot(slot))?;
    print(format!("{}\n", batch.reason).as_bytes())?;
    print(&json_lines(&batch.frame).context("the batch cannot be decoded")?)
}

fn no_slot(slot: u64) -> Exit {
    Exit::Usage(format!("no batch in quarantine has slot {slot}; see `vedette queue quarantine list`"))
}

fn each(
    queue: &Queue,
    which: &SlotArguments,
    done: &str,
    act: impl Fn(&Queue, u64) -> Result<bool, QueueError>,
) -> Result<(), Exit> {
    let mut slots = which.slots.clone();
    if which.all {
        queue.quarantined(|batch| {
            slots.push(batch.slot);
            true
        })?;
    }
    for slot in &slots {
        if !act(queue, *slot)? {
            return Err(no_slot(*slot));
        }
    }
    print(format!("{} batches {done}\n", slots.len()).as_bytes())
}
