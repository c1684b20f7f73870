//! The workspace's half of the ledger.
//!
//! Counters that come from an agent agree with themselves even when it is wrong. What is *missing* and what is *repeated*
//! is therefore found by laying what landed side by side: sequences of an epoch, and positions of a source. A sequence
//! that has not landed is in flight while the agent still holds it, by the newest header of its epoch; set aside
//! where that header says so; else it is missing. A hole between positions is missing unless a sequence between its two
//! sides has not landed and had records of that collector.

mod account;

pub(crate) use account::{Account, Gap};

use account::Books;

use super::Control;
use crate::tiles::{Noted, Tile};
use anyhow::Result;
use serde::Serialize;
use sqlx::SqliteConnection;
use std::collections::BTreeMap;
use vedette_wire::{Ledger, OrganizationId, Predecessor, Reason, SetAside, set_aside::count as count_in};

/// Records by collector.
type Counts = BTreeMap<String, u64>;

/// A row of `sequences`.
#[derive(Debug, Clone, sqlx::FromRow)]
struct Run {
    first: i64,
    last: i64,
    since: i64,
    until: i64,
    before: String,
    after: String,
}

/// A row of `positions`.
#[derive(Debug, Clone, sqlx::FromRow)]
struct Stretch {
    start: i64,
    reached: i64,
    records: i64,
    since: i64,
    until: i64,
    lane: String,
    first_epoch: String,
    first_seq: i64,
    last_epoch: String,
    last_seq: i64,
}

/// A row of `epochs`.
#[derive(Debug, sqlx::FromRow)]
struct Epoch {
    agent: String,
    lane: String,
    epoch: String,
    seq: i64,
    lowest_held: i64,
    counters: String,
    set_aside: String,
    /// What the epoch behind it says became of it.
    ended: Option<String>,
}

/// Records that a header says were shipped: emitted and not dropped.
fn shipped(ledger: &Ledger) -> Counts {
    ledger.0.iter().map(|(id, counters)| (id.clone(), counters.emitted - counters.dropped_total())).collect()
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("maps of numbers serialize")
}

/// Lay a batch beside what is there. In the transaction that notes it as landed, so that it is laid once.
pub(super) async fn note(tx: &mut SqliteConnection, noted: &Noted, now: i64) -> Result<()> {
    lay_sequence(tx, noted, now).await?;
    end_epoch(tx, noted).await?;
    super::positions::note(tx, noted).await?;
    for tile in &noted.tiles {
        let repeated = lay_positions(tx, noted, tile, now).await?;
        sqlx::query(
            "INSERT INTO stored (organization, agent, collector, records, repeated) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET records = records + ?4, repeated = repeated + ?5",
        )
        .bind(noted.header.organization.to_string())
        .bind(noted.header.agent.to_string())
        .bind(&tile.collector)
        .bind(tile.positions.len() as i64)
        .bind(repeated)
        .execute(&mut *tx)
        .await?;
    }
    for (collector, left_out) in &noted.left_out {
        sqlx::query("UPDATE stored SET left_out = left_out + ? WHERE organization = ? AND agent = ? AND collector = ?")
            .bind(left_out.cast_signed())
            .bind(noted.header.organization.to_string())
            .bind(noted.header.agent.to_string())
            .bind(collector)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

async fn lay_sequence(tx: &mut SqliteConnection, noted: &Noted, now: i64) -> Result<()> {
    let header = &noted.header;
    let ids = [
        header.organization.to_string(),
        header.agent.to_string(),
        header.lane.name().to_owned(),
        header.epoch.to_string(),
    ];
    let seq = header.seq.cast_signed();
    sqlx::query(
        "INSERT INTO epochs (organization, agent, lane, epoch, seq, lowest_held, counters, set_aside)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT DO UPDATE SET seq = ?5, lowest_held = ?6, counters = ?7, set_aside = ?8 WHERE seq < ?5",
    )
    .bind(&ids[0])
    .bind(&ids[1])
    .bind(&ids[2])
    .bind(&ids[3])
    .bind(seq)
    .bind(header.lowest_held.cast_signed())
    .bind(to_json(&header.ledger))
    .bind(to_json(&header.set_aside))
    .execute(&mut *tx)
    .await?;
    let beside: Vec<Run> = sqlx::query_as(
        // Runs do not touch: besides those that begin here, only the one before can. So the key's index is enough.
        "DELETE FROM sequences WHERE organization = ?1 AND agent = ?2 AND lane = ?3 AND epoch = ?4
         AND first <= ?6 AND last >= ?5 AND first >= coalesce((SELECT max(first) FROM sequences
           WHERE organization = ?1 AND agent = ?2 AND lane = ?3 AND epoch = ?4 AND first < ?5), ?5)
         RETURNING first, last, since, until, before, after",
    )
    .bind(&ids[0])
    .bind(&ids[1])
    .bind(&ids[2])
    .bind(&ids[3])
    .bind(seq - 1)
    .bind(seq + 1)
    .fetch_all(&mut *tx)
    .await?;
    let after = shipped(&header.ledger);
    let mut before = after.clone();
    for (collector, count) in noted.records() {
        if let Some(shipped) = before.get_mut(collector) {
            *shipped = shipped.saturating_sub(count);
        }
    }
    let mut run =
        Run { first: seq, last: seq, since: now, until: now, before: to_json(&before), after: to_json(&after) };
    for other in beside {
        if other.first < run.first {
            (run.first, run.before) = (other.first, other.before);
        }
        if other.last > run.last {
            (run.last, run.after) = (other.last, other.after);
        }
        (run.since, run.until) = (run.since.min(other.since), run.until.max(other.until));
    }
    sqlx::query(
        "INSERT INTO sequences (organization, agent, lane, epoch, first, last, since, until, before, after)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&ids[0])
    .bind(&ids[1])
    .bind(&ids[2])
    .bind(&ids[3])
    .bind(run.first)
    .bind(run.last)
    .bind(run.since)
    .bind(run.until)
    .bind(run.before)
    .bind(run.after)
    .execute(tx)
    .await?;
    Ok(())
}

/// Note what a header says of the epoch before its own.
async fn end_epoch(tx: &mut SqliteConnection, noted: &Noted) -> Result<()> {
    let header = &noted.header;
    let Some(before) = &header.predecessor else { return Ok(()) };
    sqlx::query(
        "INSERT INTO epochs (organization, agent, lane, epoch, seq, lowest_held, counters, set_aside, ended, ended_seq)
         VALUES (?1, ?2, ?3, ?4, 0, 0, '{}', '{}', ?5, ?6)
         ON CONFLICT DO UPDATE SET ended = ?5, ended_seq = ?6 WHERE ended_seq < ?6",
    )
    .bind(header.organization.to_string())
    .bind(header.agent.to_string())
    .bind(header.lane.name())
    .bind(before.epoch.to_string())
    .bind(to_json(before))
    .bind(header.seq.cast_signed())
    .execute(tx)
    .await?;
    Ok(())
}

/// The number of records whose positions were stored before.
async fn lay_positions(tx: &mut SqliteConnection, noted: &Noted, tile: &Tile, now: i64) -> Result<i64> {
    let header = &noted.header;
    let (organization, agent) = (header.organization.to_string(), header.agent.to_string());
    let (start, reached) = (tile.start().cast_signed(), tile.reached().cast_signed());
    let beside: Vec<Stretch> = sqlx::query_as(
        "DELETE FROM positions WHERE organization = ?1 AND agent = ?2 AND collector = ?3 AND source = ?4
         AND start <= ?6 AND reached >= ?5 AND start >= coalesce((SELECT max(start) FROM positions
           WHERE organization = ?1 AND agent = ?2 AND collector = ?3 AND source = ?4 AND start < ?5), ?5)
         RETURNING start, reached, records, since, until, lane, first_epoch, first_seq, last_epoch, last_seq",
    )
    .bind(&organization)
    .bind(&agent)
    .bind(&tile.collector)
    .bind(&tile.source)
    .bind(start)
    .bind(reached)
    .fetch_all(&mut *tx)
    .await?;
    let is_stored = |from: i64, to: i64| beside.iter().any(|stretch| from < stretch.reached && to > stretch.start);
    let positions = tile.positions.iter().map(|position| (position.0.cast_signed(), position.1.cast_signed()));
    let repeated = positions.filter(|(from, to)| is_stored(*from, *to)).count();
    let (epoch, seq) = (header.epoch.to_string(), header.seq.cast_signed());
    let mut whole = Stretch {
        start,
        reached,
        records: tile.count().cast_signed(),
        since: now,
        until: now,
        lane: header.lane.name().to_owned(),
        first_epoch: epoch.clone(),
        first_seq: seq,
        last_epoch: epoch,
        last_seq: seq,
    };
    for other in beside {
        if other.start < whole.start {
            (whole.start, whole.first_epoch, whole.first_seq) = (other.start, other.first_epoch, other.first_seq);
        }
        if other.reached > whole.reached {
            (whole.reached, whole.last_epoch, whole.last_seq) = (other.reached, other.last_epoch, other.last_seq);
        }
        whole.records += other.records;
        (whole.since, whole.until) = (whole.since.min(other.since), whole.until.max(other.until));
    }
    sqlx::query(
        "INSERT INTO positions (organization, agent, collector, source, start, reached, records, since, until, lane,
         first_epoch, first_seq, last_epoch, last_seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(organization)
    .bind(agent)
    .bind(&tile.collector)
    .bind(&tile.source)
    .bind(whole.start)
    .bind(whole.reached)
    .bind(whole.records)
    .bind(whole.since)
    .bind(whole.until)
    .bind(whole.lane)
    .bind(whole.first_epoch)
    .bind(whole.first_seq)
    .bind(whole.last_epoch)
    .bind(whole.last_seq)
    .execute(tx)
    .await?;
    Ok(i64::try_from(repeated)?)
}

/// Sequences that have not landed.
struct Absent {
    lane: String,
    epoch: String,
    /// The first, and just behind the last.
    from: i64,
    to: i64,
    /// Records that they had.
    records: Counts,
}

type Open = Vec<Absent>;

impl Control {
    /// The ledger of an organization, of one agent or of all.
    pub(crate) async fn ledger(&self, organization: OrganizationId, agent: Option<&str>) -> Result<Vec<Account>> {
        let mut tx = self.pool.begin().await?;
        let id = organization.to_string();
        let epochs: Vec<Epoch> = sqlx::query_as(
            "SELECT agent, lane, epoch, seq, lowest_held, counters, set_aside, ended FROM epochs
             WHERE organization = ?1 AND (?2 IS NULL OR agent = ?2) ORDER BY agent, lane, epoch",
        )
        .bind(&id)
        .bind(agent)
        .fetch_all(&mut *tx)
        .await?;
        let mut agents: BTreeMap<String, (Books, Open)> = BTreeMap::new();
        for epoch in &epochs {
            let (books, open) = agents.entry(epoch.agent.clone()).or_default();
            count(books, epoch)?;
            let runs: Vec<Run> = sqlx::query_as(
                "SELECT first, last, since, until, before, after FROM sequences
                 WHERE organization = ? AND agent = ? AND lane = ? AND epoch = ? ORDER BY first",
            )
            .bind(&id)
            .bind(&epoch.agent)
            .bind(&epoch.lane)
            .bind(&epoch.epoch)
            .fetch_all(&mut *tx)
            .await?;
            sequences(books, open, epoch, &runs)?;
        }
        let mut out = Vec::new();
        for (agent, (mut books, open)) in agents {
            let stored: Vec<(String, i64, i64, i64)> = sqlx::query_as(
                "SELECT collector, records, repeated, left_out FROM stored WHERE organization = ? AND agent = ?",
            )
            .bind(&id)
            .bind(&agent)
            .fetch_all(&mut *tx)
            .await?;
            for (collector, records, repeated, left_out) in stored {
                let account = books.of(&agent, &collector);
                account.stored = (records - left_out).cast_unsigned();
                account.repeated = repeated.cast_unsigned();
                account.drop(Reason::Policy, left_out.cast_unsigned());
            }
            holes(&mut tx, &id, &agent, &mut books, &open).await?;
            out.extend(books.0.into_values());
        }
        Ok(out)
    }
}

fn count(books: &mut Books, epoch: &Epoch) -> Result<()> {
    let counters: Ledger = serde_json::from_str(&epoch.counters)?;
    for (collector, counters) in &counters.0 {
        let account = books.of(&epoch.agent, collector);
        account.emitted = account.emitted.saturating_add(counters.emitted);
        for (reason, dropped) in &counters.dropped {
            account.drop(*reason, *dropped);
        }
    }
    Ok(())
}

/// What became of sequences that have not landed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Held,
    Quarantined,
    Purged,
    Lost,
    Missing,
}

/// Of the sequences of one hole. How many records each had is not known, so one word holds for all: the worst.
fn fate(lowest_held: u64, aside: &SetAside, from: u64, to: u64) -> Fate {
    let all = [&aside.quarantined, &aside.purged, &aside.lost];
    let set_aside = |to: u64| all.iter().map(|ranges| count_in(ranges, from, to)).sum::<u64>();
    let held_from = lowest_held.clamp(from, to);
    if set_aside(held_from) < held_from - from {
        Fate::Missing
    } else if set_aside(to) < to - from {
        Fate::Held
    } else if count_in(&aside.lost, from, to) > 0 {
        Fate::Lost
    } else if count_in(&aside.quarantined, from, to) > 0 {
        Fate::Quarantined
    } else {
        Fate::Purged
    }
}

/// Sequences between those that landed: held by the agent, set aside, or missing.
fn sequences(books: &mut Books, open: &mut Open, epoch: &Epoch, runs: &[Run]) -> Result<()> {
    let nothing = Run { first: 0, last: 0, since: 0, until: 0, before: String::new(), after: "{}".to_owned() };
    let mut aside: SetAside = serde_json::from_str(&epoch.set_aside)?;
    let mut lowest_held = epoch.lowest_held.cast_unsigned();
    if let Some(ended) = &epoch.ended {
        let ended: Predecessor = serde_json::from_str(ended)?;
        lowest_held = ended.lowest_held.unwrap_or(ended.last_seq.saturating_add(1));
        aside = ended.set_aside;
    }
    let mut before = &nothing;
    for run in runs {
        let (from, to) = (before.last + 1, run.first);
        if from < to {
            let fate = fate(lowest_held, &aside, from.cast_unsigned(), to.cast_unsigned());
            let (was, is): (Counts, Counts) =
                (serde_json::from_str(&before.after)?, serde_json::from_str(&run.before)?);
            let to_missing = to.min(lowest_held.cast_signed().max(from + 1));
            let key = |seq: i64| format!("{}/{}/{seq}", epoch.lane, epoch.epoch);
            // Before an epoch's first batch there is nothing.
            let landed = if before.last == 0 { run.since } else { before.until };
            let gap = Gap {
                what: "sequences",
                of: format!("{}/{}", epoch.lane, epoch.epoch),
                from: from.cast_unsigned(),
                to: to_missing.cast_unsigned(),
                after: key(before.last),
                before: key(run.first),
                since: landed.min(run.since),
                until: landed.max(run.since),
            };
            let mut absent =
                Absent { lane: epoch.lane.clone(), epoch: epoch.epoch.clone(), from, to, records: Counts::new() };
            for (collector, shipped) in is {
                let records = shipped.saturating_sub(was.get(&collector).copied().unwrap_or(0));
                if records == 0 {
                    continue;
                }
                absent.records.insert(collector.clone(), records);
                let account = books.of(&epoch.agent, &collector);
                match fate {
                    Fate::Held => account.in_flight = account.in_flight.saturating_add(records),
                    Fate::Quarantined => account.quarantined = account.quarantined.saturating_add(records),
                    Fate::Purged | Fate::Lost => {
                        let reason = if fate == Fate::Purged { Reason::Policy } else { Reason::QueueDamaged };
                        account.drop(reason, records);
                    }
                    Fate::Missing => {
                        account.missing = account.missing.saturating_add(records);
                        account.gaps.push(gap.clone());
                    }
                }
            }
            open.push(absent);
        }
        before = run;
    }
    debug_assert!(before.last <= epoch.seq, "the newest header is of the last sequence");
    Ok(())
}

/// Positions between those that are stored, where no sequence that has not landed accounts for them.
async fn holes(
    tx: &mut SqliteConnection,
    organization: &str,
    agent: &str,
    books: &mut Books,
    open: &Open,
) -> Result<()> {
    let sources: Vec<(String, String)> = sqlx::query_as(
        "SELECT collector, source FROM positions WHERE organization = ? AND agent = ?
         GROUP BY collector, source HAVING count(*) > 1",
    )
    .bind(organization)
    .bind(agent)
    .fetch_all(&mut *tx)
    .await?;
    for (collector, source) in sources {
        let stretches: Vec<Stretch> = sqlx::query_as(
            "SELECT start, reached, records, since, until, lane, first_epoch, first_seq, last_epoch, last_seq FROM positions
             WHERE organization = ? AND agent = ? AND collector = ? AND source = ? ORDER BY start",
        )
        .bind(organization)
        .bind(agent)
        .bind(&collector)
        .bind(&source)
        .fetch_all(&mut *tx)
        .await?;
        for pair in stretches.windows(2) {
            let [before, behind] = pair else { continue };
            let accounted = before.last_epoch == behind.first_epoch
                && open.iter().any(|absent| {
                    (&absent.lane, &absent.epoch) == (&before.lane, &before.last_epoch)
                        && absent.from > before.last_seq
                        && absent.to <= behind.first_seq
                        && absent.records.contains_key(&collector)
                });
            if accounted {
                continue;
            }
            let account = books.of(agent, &collector);
            // Where each record takes one position, a position is a record: a journal's entry, a poll's body.
            let is_record = before.records >= before.reached - before.start;
            let records = if is_record { (behind.start - before.reached).cast_unsigned() } else { 1 };
            account.missing = account.missing.saturating_add(records);
            account.gaps.push(Gap {
                what: "positions",
                of: source.clone(),
                from: before.reached.cast_unsigned(),
                to: behind.start.cast_unsigned(),
                after: format!("{}/{}/{}", before.lane, before.last_epoch, before.last_seq),
                before: format!("{}/{}/{}", behind.lane, behind.first_epoch, behind.first_seq),
                since: before.until.min(behind.since),
                until: before.until.max(behind.since),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
