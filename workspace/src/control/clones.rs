//! One key on two machines: an image that was made with an agent's identity in it, a copy of a disk.
//!
//! Every batch says on which machine and in which boot, a *start*, and in which epoch of which queue it was sealed. A machine
//! other than the one that is known is another. Else, what one machine cannot do is go on in an epoch that it has left: where
//! two epochs go on in turn, one, the other, the one and the other again, there are two machines. What is late says nothing:
//! what was sealed before the other epoch began, or is no further than that says it came. In one epoch two cannot go on, since
//! they meet 409, and one begins another. The start that was seen first stays; the other is refused, and becomes another agent
//! (`/v1/rekey`). adr/0006.

use super::{Control, agents::Enrollment};
use anyhow::Result;
use sqlx::SqliteConnection;
use vedette_wire::{AgentId, Header, HostLabel, Lane, OrganizationId, Predecessor};

/// Starts that are remembered of one agent, and epochs.
const REMEMBERED_MAX: i64 = 100;
/// Agents that machines with one key have become.
const COPIES_MAX: i64 = 1000;

/// Why a batch does not land.
const OTHER_MACHINE: &str = "the key of this agent is in use on another machine than the one that was enrolled";
const TWO: &str = "the key of this agent is in use on two machines that cannot be told apart by their machine id";

/// A row of `incarnations`.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
struct Incarnation {
    epoch: String,
    start: String,
    first: i64,
    last: i64,
    sealed: i64,
    sealed_here: i64,
}

/// Whose batch it is, as text for SQL.
struct Whose {
    organization: String,
    agent: String,
    epoch: String,
    start: String,
}

/// What came of asking for another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rekeyed {
    Done,
    /// Nothing of that machine was refused.
    NotTold,
    /// There are too many already.
    Many,
}

/// Organization, agent and start.
pub(crate) type Refused = (OrganizationId, AgentId, String);

/// Refused starts that the second of a pair tells the first.
const TOLD_MAX: i64 = 10_000;

impl Control {
    /// Starts that nothing is taken of here, the newest first.
    pub(crate) async fn refused_starts(&self) -> Result<Vec<Refused>> {
        let rows: Vec<(String, String, String)> = sqlx::query_as(
            "SELECT organization, agent, start FROM starts WHERE refused IS NOT NULL ORDER BY refused DESC LIMIT ?",
        )
        .bind(TOLD_MAX)
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|(organization, agent, start)| Ok((organization.parse()?, agent.parse()?, start)))
            .collect()
    }

    /// Take nothing here either of what the second of the pair has refused.
    pub(crate) async fn note_refused(&self, refused: &[Refused], now: i64) -> Result<()> {
        for (organization, agent, start) in refused {
            sqlx::query(
                "INSERT INTO starts (organization, agent, start, first, refused) SELECT organization, id, ?3, ?4, ?4 FROM agents
                 WHERE organization = ?1 AND id = ?2
                 ON CONFLICT DO UPDATE SET refused = ?4 WHERE refused IS NULL",
            )
            .bind(organization.to_string())
            .bind(agent.to_string())
            .bind(start)
            .bind(now)
            .execute(&self.pool)
            .await?;
        }
        Ok(())
    }

    /// Whether a batch may land under its agent's name, and then whether something else is refused by it; else why not.
    /// Nothing is known where the header says nothing of the host, which is so with collection off, or names neither machine
    /// nor boot, which an older release does not.
    pub(crate) async fn is_its_own(&self, header: &Header, now: i64) -> Result<Result<bool, &'static str>> {
        let HostLabel { machine, boot, .. } = &header.host;
        if machine.is_none() && boot.is_none() {
            return Ok(Ok(false));
        }
        let (machine, boot) = (machine.as_deref().unwrap_or_default(), boot.as_deref().unwrap_or_default());
        let whose = Whose {
            organization: header.organization.to_string(),
            agent: header.agent.to_string(),
            epoch: header.epoch.to_string(),
            start: format!("{machine}/{boot}"),
        };
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let verdict = judge(&mut tx, &whose, machine, header, now).await?;
        tx.commit().await?;
        Ok(verdict)
    }

    /// Make a machine that was refused another agent of its organization.
    pub(crate) async fn rekey(
        &self,
        (organization, was): (OrganizationId, AgentId),
        machine: &str,
        enrollment: &Enrollment<'_>,
        now: i64,
    ) -> Result<Rekeyed> {
        let (id, old, new) = (organization.to_string(), was.to_string(), enrollment.agent.to_string());
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let known: Option<Option<String>> =
            sqlx::query_scalar("SELECT replaces FROM agents WHERE organization = ? AND id = ?")
                .bind(&id)
                .bind(&new)
                .fetch_optional(&mut *tx)
                .await?;
        if let Some(replaces) = known {
            // The answer was lost; or it is another's key.
            return Ok(if replaces == Some(old) { Rekeyed::Done } else { Rekeyed::NotTold });
        }
        let (refused, copies): (bool, i64) = sqlx::query_as(
            "SELECT EXISTS (SELECT 1 FROM starts WHERE organization = ?1 AND agent = ?2 AND refused IS NOT NULL
                   AND substr(start, 1, length(?3) + 1) = ?3 || '/')
               OR EXISTS (SELECT 1 FROM incarnations WHERE organization = ?1 AND agent = ?2 AND refused IS NOT NULL
                   AND substr(start, 1, length(?3) + 1) = ?3 || '/'),
             (SELECT count(*) FROM agents WHERE organization = ?1 AND replaces = ?2)",
        )
        .bind(&id)
        .bind(&old)
        .bind(machine)
        .fetch_one(&mut *tx)
        .await?;
        if !refused {
            return Ok(Rekeyed::NotTold);
        }
        if copies >= COPIES_MAX {
            return Ok(Rekeyed::Many);
        }
        sqlx::query(
            "INSERT INTO agents (organization, id, hostname, machine, version, policy_revision, enrolled, replaces)
             VALUES (?, ?, ?, nullif(?, ''), ?, 0, ?, ?)",
        )
        .bind(&id)
        .bind(&new)
        .bind(enrollment.hostname)
        .bind(machine)
        .bind(enrollment.version)
        .bind(now)
        .bind(&old)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        let detail = format!("a machine that used its key, {}, is agent {new} now", enrollment.hostname);
        self.alert((organization, was), "clone", &detail, now).await?;
        self.audit(now, "agent rekey", &format!("{was}: {detail}")).await?;
        Ok(Rekeyed::Done)
    }

    /// Agents that machines with this one's key have become.
    pub(crate) async fn copies_of(&self, agent: AgentId) -> Result<Vec<String>> {
        let rows = sqlx::query_scalar("SELECT id FROM agents WHERE replaces = ? AND revoked IS NULL ORDER BY enrolled");
        Ok(rows.bind(agent.to_string()).fetch_all(&self.pool).await?)
    }
}

async fn judge(
    tx: &mut SqliteConnection,
    whose: &Whose,
    machine: &str,
    header: &Header,
    now: i64,
) -> Result<Result<bool, &'static str>> {
    let (known, starts): (Option<String>, bool) = sqlx::query_as(
        "SELECT machine, EXISTS (SELECT 1 FROM starts WHERE organization = ?1 AND agent = ?2)
         FROM agents WHERE organization = ?1 AND id = ?2",
    )
    .bind(&whose.organization)
    .bind(&whose.agent)
    .fetch_one(&mut *tx)
    .await?;
    match known {
        Some(known) if known != machine => {
            // What is told to make another key may do so; nobody else may.
            remember_start(tx, whose, now).await?;
            refuse(tx, whose, &whose.start, None, now).await?;
            return Ok(Err(OTHER_MACHINE));
        }
        // It did not say at its enrollment, and says so in its first batch.
        None if !starts && !machine.is_empty() => {
            sqlx::query("UPDATE agents SET machine = ? WHERE organization = ? AND id = ?")
                .bind(machine)
                .bind(&whose.organization)
                .bind(&whose.agent)
                .execute(&mut *tx)
                .await?;
        }
        _ => {}
    }
    let start: Option<Option<i64>> =
        sqlx::query_scalar("SELECT refused FROM starts WHERE organization = ? AND agent = ? AND start = ?")
            .bind(&whose.organization)
            .bind(&whose.agent)
            .bind(&whose.start)
            .fetch_optional(&mut *tx)
            .await?;
    if start.flatten().is_some() {
        return Ok(Err(TWO));
    }
    if header.again || header.lane != Lane::Records {
        // The one stands behind what was sealed later; the other has epochs of its own, and follows the records.
        return Ok(Ok(false));
    }
    if start.is_none() {
        remember_start(tx, whose, now).await?;
    }
    let all = incarnations(tx, whose).await?;
    let late = is_late(tx, whose, header, &all, now).await?;
    if !remember(tx, whose, header, (late, now)).await? {
        return Ok(Err(TWO));
    }
    let me = all.iter().find(|one| (&one.epoch, &one.start) == (&whose.epoch, &whose.start));
    let Some(me) = me.filter(|_| !late) else { return Ok(Ok(false)) };
    let beside = |one: &&Incarnation| one.epoch != me.epoch && one.first < me.first && one.last > me.first;
    let Some(other) = all.iter().find(beside) else { return Ok(Ok(false)) };
    if other.start == me.start {
        // A machine that was copied while it ran: the epoch that was there first goes on.
        refuse(tx, whose, &me.start, Some(&me.epoch), now).await?;
        return Ok(Err(TWO));
    }
    let first: Option<String> = sqlx::query_scalar(
        "SELECT start FROM starts WHERE organization = ? AND agent = ? AND start IN (?, ?) ORDER BY first, rowid LIMIT 1",
    )
    .bind(&whose.organization)
    .bind(&whose.agent)
    .bind(&whose.start)
    .bind(&other.start)
    .fetch_optional(&mut *tx)
    .await?;
    if first.is_some_and(|first| first == whose.start) {
        refuse(tx, whose, &other.start, None, now).await?;
        return Ok(Ok(true));
    }
    refuse(tx, whose, &whose.start, None, now).await?;
    Ok(Err(TWO))
}

/// What is not refused, the newest first.
async fn incarnations(tx: &mut SqliteConnection, whose: &Whose) -> Result<Vec<Incarnation>> {
    let all = sqlx::query_as(
        "SELECT i.epoch, i.start, i.first, i.last, i.sealed, i.sealed_here FROM incarnations i
         JOIN starts s USING (organization, agent, start)
         WHERE organization = ? AND agent = ? AND i.refused IS NULL AND s.refused IS NULL
         ORDER BY i.first DESC, i.rowid DESC",
    );
    Ok(all.bind(&whose.organization).bind(&whose.agent).fetch_all(tx).await?)
}

/// Whether a batch was sealed before another epoch began: by the clock, which of one start is one and the same and of others is
/// ours at the most; or by what the epoch behind its own says was its last sequence.
async fn is_late(
    tx: &mut SqliteConnection,
    whose: &Whose,
    header: &Header,
    all: &[Incarnation],
    now: i64,
) -> Result<bool> {
    let before = |one: &Incarnation| {
        one.epoch != whose.epoch
            && if one.start == whose.start {
                header.sealed < one.sealed
            } else {
                header.sealed.min(now) < one.sealed_here
            }
    };
    if all.iter().any(before) {
        return Ok(true);
    }
    let ended: Option<String> = sqlx::query_scalar(
        "SELECT ended FROM epochs WHERE organization = ? AND agent = ? AND lane = 'records' AND epoch = ?",
    )
    .bind(&whose.organization)
    .bind(&whose.agent)
    .bind(&whose.epoch)
    .fetch_optional(tx)
    .await?
    .flatten();
    let ended: Option<Predecessor> = ended.and_then(|ended| serde_json::from_str(&ended).ok());
    Ok(ended.is_some_and(|ended| header.seq <= ended.last_seq))
}

/// Note a start, where it is not known.
async fn remember_start(tx: &mut SqliteConnection, whose: &Whose, now: i64) -> Result<()> {
    sqlx::query("INSERT OR IGNORE INTO starts (organization, agent, start, first) VALUES (?, ?, ?, ?)")
        .bind(&whose.organization)
        .bind(&whose.agent)
        .bind(&whose.start)
        .bind(now)
        .execute(&mut *tx)
        .await?;
    // But for the first of all: it is the one that stays.
    sqlx::query(
        "DELETE FROM starts WHERE organization = ?1 AND agent = ?2
         AND rowid > (SELECT min(rowid) FROM starts WHERE organization = ?1 AND agent = ?2)
         AND rowid NOT IN (SELECT rowid FROM starts WHERE organization = ?1 AND agent = ?2
           ORDER BY rowid DESC LIMIT ?3)",
    )
    .bind(&whose.organization)
    .bind(&whose.agent)
    .bind(REMEMBERED_MAX)
    .execute(tx)
    .await?;
    Ok(())
}

/// Note where a batch was sealed; false where nothing is taken of that any more.
async fn remember(tx: &mut SqliteConnection, whose: &Whose, header: &Header, (late, now): (bool, i64)) -> Result<bool> {
    let (refused, new): (Option<i64>, bool) = sqlx::query_as(
        "INSERT INTO incarnations (organization, agent, epoch, start, first, last, sealed, sealed_here)
         VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7)
         ON CONFLICT DO UPDATE SET last = CASE WHEN ?8 THEN last ELSE ?5 END, sealed = min(sealed, ?6),
           sealed_here = min(sealed_here, ?7)
         RETURNING refused, first = ?5",
    )
    .bind(&whose.organization)
    .bind(&whose.agent)
    .bind(&whose.epoch)
    .bind(&whose.start)
    .bind(now)
    .bind(header.sealed)
    .bind(header.sealed.min(now))
    .bind(late)
    .fetch_one(&mut *tx)
    .await?;
    if new {
        sqlx::query(
            "DELETE FROM incarnations WHERE organization = ?1 AND agent = ?2 AND (start NOT IN
               (SELECT start FROM starts WHERE organization = ?1 AND agent = ?2)
             OR rowid > (SELECT min(rowid) FROM incarnations WHERE organization = ?1 AND agent = ?2)
               AND rowid NOT IN (SELECT rowid FROM incarnations WHERE organization = ?1 AND agent = ?2
                 ORDER BY last DESC, rowid DESC LIMIT ?3))",
        )
        .bind(&whose.organization)
        .bind(&whose.agent)
        .bind(REMEMBERED_MAX)
        .execute(tx)
        .await?;
    }
    Ok(refused.is_none())
}

/// Take nothing more of a start, or of one epoch of it, and raise an alert.
async fn refuse(tx: &mut SqliteConnection, whose: &Whose, start: &str, epoch: Option<&str>, now: i64) -> Result<()> {
    let sql = match epoch {
        None => "UPDATE starts SET refused = ?1 WHERE organization = ?2 AND agent = ?3 AND start = ?4 AND ?5 IS NULL",
        Some(_) => {
            "UPDATE incarnations SET refused = ?1 WHERE organization = ?2 AND agent = ?3 AND start = ?4 AND epoch = ?5"
        }
    };
    sqlx::query(sql)
        .bind(now)
        .bind(&whose.organization)
        .bind(&whose.agent)
        .bind(start)
        .bind(epoch)
        .execute(&mut *tx)
        .await?;
    alert(tx, whose, now).await
}

async fn alert(tx: &mut SqliteConnection, whose: &Whose, now: i64) -> Result<()> {
    sqlx::query(
        "INSERT INTO alerts (organization, agent, kind, detail, first, last, times) VALUES (?1, ?2, 'clone', ?3, ?4, ?4, 1)
         ON CONFLICT DO UPDATE SET last = ?4, times = times + 1",
    )
    .bind(&whose.organization)
    .bind(&whose.agent)
    .bind("its key is in use on another machine, which is told to make its own")
    .bind(now)
    .execute(tx)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests;
