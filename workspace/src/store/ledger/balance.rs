//! Sums of what landed: what is missing, held, set aside or dropped, by agent and collector.

use super::{Account, Counts, Epoch, Gap, Run, Stretch, account::AgentAccounts};
use crate::store::ControlStore;
use anyhow::Result;
use sqlx::SqliteConnection;
use std::collections::{BTreeMap, BTreeSet};
use vedette_wire::{Ledger, OrganizationId, Reason, SetAside, set_aside::count as count_in};

/// Sequences that have not landed.
struct Absent {
    lane: String,
    epoch: String,
    /// First sequence, and the one after the last.
    from: i64,
    to: i64,
    /// Their records.
    records: Counts,
}

type AbsentRanges = Vec<Absent>;

/// What has not landed of an agent.
#[derive(Default)]
struct Outstanding {
    absent: AbsentRanges,
    /// Lane and epoch of parts of split batches that the agent holds.
    parts: BTreeSet<(String, String)>,
}

impl ControlStore {
    /// The ledger of an organization, for one agent or all.
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
        let with_cursors: Vec<(String, String)> = sqlx::query_as(
            "SELECT DISTINCT agent, collector FROM cursors WHERE organization = ?1 AND (?2 IS NULL OR agent = ?2)",
        )
        .bind(&id)
        .bind(agent)
        .fetch_all(&mut *tx)
        .await?;
        let with_cursors = with_cursors.into_iter().collect();
        let mut agents: BTreeMap<String, (AgentAccounts, Outstanding)> = BTreeMap::new();
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
            sequences(books, &mut open.absent, epoch, &runs, &with_cursors)?;
            let parts: Vec<i64> = sqlx::query_scalar(
                "SELECT seq FROM parts WHERE organization = ? AND agent = ? AND lane = ? AND epoch = ?",
            )
            .bind(&id)
            .bind(&epoch.agent)
            .bind(&epoch.lane)
            .bind(&epoch.epoch)
            .fetch_all(&mut *tx)
            .await?;
            let (lowest_held, set_aside) = epoch.held()?;
            let is_held = |part: u64| fate(lowest_held, &set_aside, part, part + 1) == Fate::Held;
            if parts.into_iter().any(|part| is_held(part.cast_unsigned())) {
                open.parts.insert((epoch.lane.clone(), epoch.epoch.clone()));
            }
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
                let account = books.account_mut(&agent, &collector);
                account.stored = (records - left_out).cast_unsigned();
                account.repeated = repeated.cast_unsigned();
                account.add_dropped(Reason::Policy, left_out.cast_unsigned());
            }
            position_gaps(&mut tx, &id, &agent, &mut books, &open).await?;
            out.extend(books.0.into_values());
        }
        Ok(out)
    }
}

fn count(books: &mut AgentAccounts, epoch: &Epoch) -> Result<()> {
    let counters: Ledger = serde_json::from_str(&epoch.counters)?;
    for (collector, counters) in &counters.0 {
        let account = books.account_mut(&epoch.agent, collector);
        account.emitted = account.emitted.saturating_add(counters.emitted);
        for (reason, dropped) in &counters.dropped {
            account.add_dropped(*reason, *dropped);
        }
    }
    Ok(())
}

/// Fate of sequences that have not landed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fate {
    Held,
    Quarantined,
    Purged,
    Lost,
    /// They were here before this workspace was restored from a backup; the agent reads again what it can.
    ReadAgain,
    Missing,
}

/// Fate of the sequences of one gap. The number of records of each is unknown, so the worst fate applies to all.
pub(super) fn fate(lowest_held: u64, set_aside: &SetAside, from: u64, to: u64) -> Fate {
    let all = set_aside.all();
    let count = |to: u64| all.iter().map(|ranges| count_in(ranges, from, to)).fold(0, u64::saturating_add);
    let held_from = lowest_held.clamp(from, to);
    if count(held_from) < held_from - from {
        Fate::Missing
    } else if count(to) < to - from {
        Fate::Held
    } else if count_in(&set_aside.lost, from, to) > 0 {
        Fate::Lost
    } else if count_in(&set_aside.read_again, from, to) > 0 {
        Fate::ReadAgain
    } else if count_in(&set_aside.quarantined, from, to) > 0 {
        Fate::Quarantined
    } else {
        Fate::Purged
    }
}

/// Classifies sequences between landed ones as held, set aside or missing.
fn sequences(
    books: &mut AgentAccounts,
    open: &mut AbsentRanges,
    epoch: &Epoch,
    runs: &[Run],
    with_cursors: &BTreeSet<(String, String)>,
) -> Result<()> {
    let nothing = Run { first: 0, last: 0, since: 0, until: 0, before: String::new(), after: "{}".to_owned() };
    let (lowest_held, set_aside) = epoch.held()?;
    let mut before = &nothing;
    for run in runs {
        let (from, to) = (before.last + 1, run.first);
        if from < to {
            let fate = fate(lowest_held, &set_aside, from.cast_unsigned(), to.cast_unsigned());
            let (was, is): (Counts, Counts) =
                (serde_json::from_str(&before.after)?, serde_json::from_str(&run.before)?);
            let to_missing = to.min(lowest_held.cast_signed().max(from + 1));
            let key = |seq: i64| format!("{}/{}/{seq}", epoch.lane, epoch.epoch);
            // Nothing precedes an epoch's first batch.
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
                let account = books.account_mut(&epoch.agent, &collector);
                if fate == Fate::ReadAgain && with_cursors.contains(&(epoch.agent.clone(), collector.clone())) {
                    // They are emitted again; what cannot be read again leaves a gap between positions.
                    account.emitted = account.emitted.saturating_sub(records);
                    continue;
                }
                absent.records.insert(collector.clone(), records);
                match fate {
                    Fate::Held => account.in_flight = account.in_flight.saturating_add(records),
                    Fate::Quarantined => account.quarantined = account.quarantined.saturating_add(records),
                    Fate::Purged => account.add_dropped(Reason::Policy, records),
                    Fate::Lost => account.add_dropped(Reason::QueueDamaged, records),
                    Fate::ReadAgain => account.add_dropped(Reason::Restored, records),
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

/// Gaps between stored positions that no absent sequence explains.
async fn position_gaps(
    tx: &mut SqliteConnection,
    organization: &str,
    agent: &str,
    books: &mut AgentAccounts,
    open: &Outstanding,
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
                && open.absent.iter().any(|absent| {
                    (&absent.lane, &absent.epoch) == (&before.lane, &before.last_epoch)
                        && absent.from > before.last_seq
                        && absent.to <= behind.first_seq
                        && absent.records.contains_key(&collector)
                });
            if accounted {
                continue;
            }
            let account = books.account_mut(agent, &collector);
            // If each record takes one position, a position is a record: an entry of a journal, a body of a poll.
            let is_record = before.records >= before.reached - before.start;
            let records = if is_record { (behind.start - before.reached).cast_unsigned() } else { 1 };
            // A part has a later sequence than what surrounds its records, perhaps one above the newest that landed.
            let is_part = |epoch: &String| open.parts.contains(&(before.lane.clone(), epoch.clone()));
            if is_part(&before.last_epoch) || is_part(&behind.first_epoch) {
                account.in_flight = account.in_flight.saturating_add(records);
                continue;
            }
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
