//! One key on two machines: an image that was made with an agent's identity in it, a copy of a disk.
//!
//! Every batch says on which machine and in which boot, a *start*, and in which epoch of which queue it was sealed. A machine
//! other than the one of the enrollment is another. Else, what one machine cannot do is go on in an epoch, or in a boot, that it
//! has left: where a start goes on in an epoch behind the first sequence of a later start, or an epoch behind what its
//! successor says was its last sequence, or, of epochs that do not know of each other, behind the time when the later one
//! began, there are two. In which order batches come says nothing. The start that was seen first stays; the other is refused,
//! and becomes another agent (`/v1/rekey`). adr/0006.

use super::{Control, agents::Enrollment};
use anyhow::Result;
use sqlx::SqliteConnection;
use vedette_wire::{AgentId, Header, HostLabel, OrganizationId, Predecessor};

/// Starts that are remembered of one agent, and what they have sealed.
const REMEMBERED_MAX: i64 = 200;

/// Why a batch does not land.
const OTHER_MACHINE: &str = "the key of this agent is in use on another machine than the one that was enrolled";
const TWO: &str = "the key of this agent is in use on two machines that cannot be told apart by their machine id";
const MANY: &str = "the key of this agent is in use on more machines, or in more boots, than can be told apart";

/// A row of `incarnations`.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
struct Incarnation {
    epoch: String,
    start: String,
    first: i64,
    min_seq: i64,
    min_sealed: i64,
}

/// Whose batch it is, as text for SQL.
struct Whose {
    organization: String,
    agent: String,
    lane: &'static str,
    epoch: String,
    start: String,
}

/// A start; a machine without an id has the empty one.
fn start_of(machine: &str, boot: &str) -> String {
    format!("{machine}/{boot}")
}

impl Control {
    /// Whether a batch may land under its agent's name, and then whether another start is refused by it; else why not.
    /// Nothing is known where the header says nothing of the host, which is so with collection off.
    pub(crate) async fn is_its_own(&self, header: &Header, now: i64) -> Result<Result<bool, &'static str>> {
        let host = &header.host;
        if *host == HostLabel::default() {
            return Ok(Ok(false));
        }
        let machine = host.machine.as_deref().unwrap_or_default();
        let whose = Whose {
            organization: header.organization.to_string(),
            agent: header.agent.to_string(),
            lane: header.lane.name(),
            epoch: header.epoch.to_string(),
            start: start_of(machine, host.boot.as_deref().unwrap_or_default()),
        };
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let verdict = judge(&mut tx, &whose, machine, header, now).await?;
        tx.commit().await?;
        Ok(verdict)
    }

    /// Make a machine that was refused another agent of its organization, once for each start that was; false where none is
    /// left.
    pub(crate) async fn rekey(
        &self,
        (organization, was): (OrganizationId, AgentId),
        (machine, boot): (&str, &str),
        enrollment: &Enrollment<'_>,
        now: i64,
    ) -> Result<bool> {
        let (id, old, new) = (organization.to_string(), was.to_string(), enrollment.agent.to_string());
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        // What is refused may be of an earlier boot of the machine that asks. The same again where the answer was lost.
        let refused: Option<String> = sqlx::query_scalar(
            "SELECT start FROM starts WHERE organization = ?1 AND agent = ?2 AND (became IS NULL OR became = ?4)
             AND (refused IS NOT NULL OR EXISTS (SELECT 1 FROM incarnations i WHERE i.organization = ?1 AND i.agent = ?2
               AND i.start = starts.start AND i.refused IS NOT NULL))
             ORDER BY became IS NULL, start <> ?3 LIMIT 1",
        )
        .bind(&id)
        .bind(&old)
        .bind(start_of(machine, boot))
        .bind(&new)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(start) = refused else { return Ok(false) };
        sqlx::query("UPDATE starts SET became = ? WHERE organization = ? AND agent = ? AND start = ?")
            .bind(&new)
            .bind(&id)
            .bind(&old)
            .bind(start)
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "INSERT OR IGNORE INTO agents
             (organization, id, hostname, machine, version, policy_revision, enrolled, replaces)
             VALUES (?, ?, ?, ?, ?, 0, ?, ?)",
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
        Ok(true)
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
    let starts: i64 = sqlx::query_scalar("SELECT count(*) FROM starts WHERE organization = ? AND agent = ?")
        .bind(&whose.organization)
        .bind(&whose.agent)
        .fetch_one(&mut *tx)
        .await?;
    if starts == 0 && header.host.machine.is_none() && header.host.boot.is_none() {
        // An agent of an older release names neither.
        return Ok(Ok(false));
    }
    let enrolled: Option<String> = sqlx::query_scalar("SELECT machine FROM agents WHERE organization = ? AND id = ?")
        .bind(&whose.organization)
        .bind(&whose.agent)
        .fetch_optional(&mut *tx)
        .await?
        .flatten();
    let is_other = enrolled.as_ref().is_some_and(|enrolled| enrolled != machine);
    if enrolled.is_none() {
        // It did not say at its enrollment: the first that does is the one.
        sqlx::query("UPDATE agents SET machine = ? WHERE organization = ? AND id = ?")
            .bind(machine)
            .bind(&whose.organization)
            .bind(&whose.agent)
            .execute(&mut *tx)
            .await?;
    }
    if header.host.boot.is_none() && !is_other {
        // Sealed again, after 409 or 413: its first sealing was judged, or will be.
        return Ok(Ok(false));
    }
    let Some(refused) = remember(tx, whose, header, now).await? else { return Ok(Err(MANY)) };
    if is_other {
        refuse(tx, whose, &whose.start, None, now).await?;
        return Ok(Err(OTHER_MACHINE));
    }
    if refused {
        return Ok(Err(TWO));
    }
    let Some(other) = interleaved(tx, whose, header, now).await? else { return Ok(Ok(false)) };
    if other.start == whose.start {
        // A machine that was copied while it ran: the epoch that was there first goes on.
        refuse(tx, whose, &other.start, Some(&other.epoch), now).await?;
        return Ok(Ok(true));
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

/// Another incarnation that goes on beside the one of this batch, which was there before it.
async fn interleaved(
    tx: &mut SqliteConnection,
    whose: &Whose,
    header: &Header,
    now: i64,
) -> Result<Option<Incarnation>> {
    let all: Vec<Incarnation> = sqlx::query_as(
        "SELECT i.epoch, i.start, i.first, i.min_seq, i.min_sealed FROM incarnations i
         JOIN starts s USING (organization, agent, start)
         WHERE organization = ? AND agent = ? AND lane = ? AND i.refused IS NULL AND s.refused IS NULL
         ORDER BY i.first DESC, i.rowid DESC",
    )
    .bind(&whose.organization)
    .bind(&whose.agent)
    .bind(whose.lane)
    .fetch_all(&mut *tx)
    .await?;
    let Some(me) = all.iter().find(|one| (&one.epoch, &one.start) == (&whose.epoch, &whose.start)) else {
        return Ok(None);
    };
    let seq = header.seq.cast_signed();
    let later = all
        .iter()
        .find(|one| one.epoch == me.epoch && one.start != me.start && me.min_seq < one.min_seq && seq > one.min_seq);
    if let Some(later) = later {
        return Ok(Some(later.clone()));
    }
    let others = || all.iter().filter(|one| one.epoch != me.epoch);
    if others().next().is_none() {
        return Ok(None);
    }
    if let Some(last_seq) = ended(tx, whose, &whose.epoch).await? {
        return Ok((header.seq > last_seq).then(|| others().next().cloned()).flatten());
    }
    let sealed = header.sealed.min(now);
    for other in others().filter(|other| me.min_sealed < other.min_sealed && sealed > other.min_sealed) {
        if ended(tx, whose, &other.epoch).await?.is_none() {
            return Ok(Some(other.clone()));
        }
    }
    Ok(None)
}

/// The last sequence of an epoch, where the epoch behind it has said.
async fn ended(tx: &mut SqliteConnection, whose: &Whose, epoch: &str) -> Result<Option<u64>> {
    let ended: Option<String> =
        sqlx::query_scalar("SELECT ended FROM epochs WHERE organization = ? AND agent = ? AND lane = ? AND epoch = ?")
            .bind(&whose.organization)
            .bind(&whose.agent)
            .bind(whose.lane)
            .bind(epoch)
            .fetch_optional(tx)
            .await?
            .flatten();
    let ended: Option<Predecessor> = ended.and_then(|ended| serde_json::from_str(&ended).ok());
    Ok(ended.map(|ended| ended.last_seq))
}

/// Note where a batch was sealed; whether nothing is taken of that any more. Absent where there is no room for another start.
async fn remember(tx: &mut SqliteConnection, whose: &Whose, header: &Header, now: i64) -> Result<Option<bool>> {
    let known: Option<Option<i64>> =
        sqlx::query_scalar("SELECT refused FROM starts WHERE organization = ? AND agent = ? AND start = ?")
            .bind(&whose.organization)
            .bind(&whose.agent)
            .bind(&whose.start)
            .fetch_optional(&mut *tx)
            .await?;
    if known.is_none() {
        if !make_room(tx, whose).await? {
            return Ok(None);
        }
        sqlx::query("INSERT INTO starts (organization, agent, start, first) VALUES (?, ?, ?, ?)")
            .bind(&whose.organization)
            .bind(&whose.agent)
            .bind(&whose.start)
            .bind(now)
            .execute(&mut *tx)
            .await?;
    }
    let refused: Option<i64> = sqlx::query_scalar(
        "INSERT INTO incarnations (organization, agent, lane, epoch, start, first, min_seq, min_sealed)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT DO UPDATE SET min_seq = min(min_seq, ?7), min_sealed = min(min_sealed, ?8) RETURNING refused",
    )
    .bind(&whose.organization)
    .bind(&whose.agent)
    .bind(whose.lane)
    .bind(&whose.epoch)
    .bind(&whose.start)
    .bind(now)
    .bind(header.seq.cast_signed())
    .bind(header.sealed.min(now))
    .fetch_one(&mut *tx)
    .await?;
    Ok(Some(refused.is_some() || known.flatten().is_some()))
}

/// Forget the oldest starts, but for the first of all, those that are refused and what these have sealed; and the oldest
/// incarnations of one start. False where there is no more to forget.
async fn make_room(tx: &mut SqliteConnection, whose: &Whose) -> Result<bool> {
    sqlx::query(
        "DELETE FROM starts WHERE rowid IN (SELECT rowid FROM starts WHERE organization = ?1 AND agent = ?2
           AND refused IS NULL AND rowid > (SELECT min(rowid) FROM starts WHERE organization = ?1 AND agent = ?2)
           ORDER BY first DESC, rowid DESC LIMIT -1 OFFSET ?3)",
    )
    .bind(&whose.organization)
    .bind(&whose.agent)
    .bind(REMEMBERED_MAX / 2)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "DELETE FROM incarnations WHERE organization = ?1 AND agent = ?2 AND (refused IS NULL
           AND rowid NOT IN (SELECT rowid FROM incarnations WHERE organization = ?1 AND agent = ?2
             ORDER BY first DESC, rowid DESC LIMIT ?3)
           OR start NOT IN (SELECT start FROM starts WHERE organization = ?1 AND agent = ?2))",
    )
    .bind(&whose.organization)
    .bind(&whose.agent)
    .bind(REMEMBERED_MAX)
    .execute(&mut *tx)
    .await?;
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM starts WHERE organization = ? AND agent = ?")
        .bind(&whose.organization)
        .bind(&whose.agent)
        .fetch_one(tx)
        .await?;
    Ok(left < REMEMBERED_MAX)
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
