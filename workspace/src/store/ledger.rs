//! The workspace's part of the ledger.
//!
//! An agent's counters are consistent even when they are wrong. So the workspace finds what is *missing* and what is *repeated*
//! by merging what landed: sequences of an epoch, and positions of a source. A sequence that has not landed is in flight while
//! the agent holds it, according to the newest header of its epoch; set aside if a header says so; or else missing. A gap
//! between positions is missing unless a sequence between its two sides has not landed and had records of that collector, or
//! the agent holds a part of a split batch.

mod account;
mod balance;
mod lost;

pub(crate) use account::{Account, Gap};

use crate::batch_index::{BatchIndex, PositionRun};
use anyhow::Result;
use serde::Serialize;
use sqlx::SqliteConnection;
use std::collections::BTreeMap;
use vedette_wire::{Header, Ledger, Predecessor, SetAside};

/// Number of records by collector.
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
    /// What the next epoch states about its end.
    ended: Option<String>,
}

impl Epoch {
    /// Lowest held sequence and set-aside sequences, as last stated.
    fn held(&self) -> Result<(u64, SetAside)> {
        Ok(match &self.ended {
            Some(ended) => {
                let ended: Predecessor = serde_json::from_str(ended)?;
                (ended.lowest_held.unwrap_or(ended.last_seq.saturating_add(1)), ended.set_aside)
            }
            None => (self.lowest_held.cast_unsigned(), serde_json::from_str(&self.set_aside)?),
        })
    }
}

/// Records that a header states as shipped: emitted and not dropped.
fn shipped(ledger: &Ledger) -> Counts {
    ledger.0.iter().map(|(id, counters)| (id.clone(), counters.emitted - counters.dropped_total())).collect()
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("maps of numbers serialize")
}

/// Merges a batch into the stored ranges, in the transaction that records it as landed, so that it is merged once.
pub(super) async fn merge(tx: &mut SqliteConnection, index: &BatchIndex, now: i64) -> Result<()> {
    lay_sequence(tx, index, now).await?;
    lay_parts(tx, &index.header).await?;
    end_epoch(tx, index).await?;
    super::cursors::record(tx, index).await?;
    for run in &index.runs {
        let repeated = lay_positions(tx, index, run, now).await?;
        sqlx::query(
            "INSERT INTO stored (organization, agent, collector, records, repeated) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET records = records + ?4, repeated = repeated + ?5",
        )
        .bind(index.header.organization.to_string())
        .bind(index.header.agent.to_string())
        .bind(&run.collector)
        .bind(run.positions.len() as i64)
        .bind(repeated)
        .execute(&mut *tx)
        .await?;
    }
    for (collector, left_out) in &index.left_out {
        sqlx::query("UPDATE stored SET left_out = left_out + ? WHERE organization = ? AND agent = ? AND collector = ?")
            .bind(left_out.cast_signed())
            .bind(index.header.organization.to_string())
            .bind(index.header.agent.to_string())
            .bind(collector)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

/// Number of parts that agents split a batch into; a header may name more.
const PARTS_MAX: usize = 2;

/// Records the parts that a batch was split into and that have not landed; forgets a part that lands.
async fn lay_parts(tx: &mut SqliteConnection, header: &Header) -> Result<()> {
    let ids = [
        header.organization.to_string(),
        header.agent.to_string(),
        header.lane.name().to_owned(),
        header.epoch.to_string(),
    ];
    let later = header.split_into.iter().filter_map(|part| i64::try_from(*part).ok());
    for part in later.filter(|part| *part > header.seq.cast_signed()).take(PARTS_MAX) {
        sqlx::query(
            "INSERT OR IGNORE INTO parts (organization, agent, lane, epoch, seq) SELECT ?1, ?2, ?3, ?4, ?5 WHERE NOT EXISTS
             (SELECT 1 FROM sequences WHERE organization = ?1 AND agent = ?2 AND lane = ?3 AND epoch = ?4
              AND first <= ?5 AND last >= ?5)",
        )
        .bind(&ids[0])
        .bind(&ids[1])
        .bind(&ids[2])
        .bind(&ids[3])
        .bind(part)
        .execute(&mut *tx)
        .await?;
    }
    sqlx::query("DELETE FROM parts WHERE organization = ?1 AND agent = ?2 AND lane = ?3 AND epoch = ?4 AND seq = ?5")
        .bind(&ids[0])
        .bind(&ids[1])
        .bind(&ids[2])
        .bind(&ids[3])
        .bind(header.seq.cast_signed())
        .execute(tx)
        .await?;
    Ok(())
}

async fn lay_sequence(tx: &mut SqliteConnection, index: &BatchIndex, now: i64) -> Result<()> {
    let header = &index.header;
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
    let neighbours = take_neighbours(tx, &ids, seq).await?;
    let after = shipped(&header.ledger);
    let mut before = after.clone();
    for (collector, count) in index.records() {
        if let Some(shipped) = before.get_mut(collector) {
            *shipped = shipped.saturating_sub(count);
        }
    }
    let mut run =
        Run { first: seq, last: seq, since: now, until: now, before: to_json(&before), after: to_json(&after) };
    for other in neighbours {
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

/// Takes the runs that a sequence touches out of the table.
async fn take_neighbours(tx: &mut SqliteConnection, ids: &[String; 4], seq: i64) -> Result<Vec<Run>> {
    Ok(sqlx::query_as(
        // Runs never touch. So only runs that begin here, and the one before, can overlap; the key's index finds them.
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
    .await?)
}

/// Records what a header states about the previous epoch.
async fn end_epoch(tx: &mut SqliteConnection, index: &BatchIndex) -> Result<()> {
    let header = &index.header;
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

/// Merges a position run; returns the number of records whose positions were stored before.
async fn lay_positions(tx: &mut SqliteConnection, index: &BatchIndex, run: &PositionRun, now: i64) -> Result<i64> {
    let header = &index.header;
    let (organization, agent) = (header.organization.to_string(), header.agent.to_string());
    let (start, reached) = (run.start().cast_signed(), run.reached().cast_signed());
    let beside: Vec<Stretch> = sqlx::query_as(
        "DELETE FROM positions WHERE organization = ?1 AND agent = ?2 AND collector = ?3 AND source = ?4
         AND start <= ?6 AND reached >= ?5 AND start >= coalesce((SELECT max(start) FROM positions
           WHERE organization = ?1 AND agent = ?2 AND collector = ?3 AND source = ?4 AND start < ?5), ?5)
         RETURNING start, reached, records, since, until, lane, first_epoch, first_seq, last_epoch, last_seq",
    )
    .bind(&organization)
    .bind(&agent)
    .bind(&run.collector)
    .bind(&run.source)
    .bind(start)
    .bind(reached)
    .fetch_all(&mut *tx)
    .await?;
    let is_stored = |from: i64, to: i64| beside.iter().any(|stretch| from < stretch.reached && to > stretch.start);
    let positions = run.positions.iter().map(|position| (position.0.cast_signed(), position.1.cast_signed()));
    let repeated = positions.filter(|(from, to)| is_stored(*from, *to)).count();
    let (epoch, seq) = (header.epoch.to_string(), header.seq.cast_signed());
    let mut whole = Stretch {
        start,
        reached,
        records: run.count().cast_signed(),
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
    .bind(&run.collector)
    .bind(&run.source)
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

#[cfg(test)]
mod tests;
