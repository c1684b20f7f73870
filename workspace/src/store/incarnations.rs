//! Clones: one key on two machines, after an image or a disk with an agent's identity was copied.
//!
//! Every batch states its machine and boot, and the epoch of its queue. A machine other than the known one is a clone. With the same machine id, two machines reveal themselves when an epoch continues that was left: if batches of
//! two epochs alternate at least twice, there are two machines. Late batches prove nothing: those sealed before the other epoch
//! began, or within what that epoch states as the end of the former. In a single epoch two machines cannot continue, since they
//! meet 409 and one begins another epoch. The boot that was seen first stays. The other is refused and becomes another agent
//! (`/v1/rekey`). See docs/adr/0006-pair-and-clones.md.

use super::{AgentKey, Change, ControlStore, agents::Enrollment, alerts::raise_alert, audit::audit};
use anyhow::Result;
use sqlx::SqliteConnection;
use vedette_wire::{AgentId, Header, HostLabel, LaneName, OrganizationId, Predecessor};

/// Maximum number of remembered boots, and of epochs, per agent.
const REMEMBERED_MAX: i64 = 100;
/// Maximum number of agents that clones of one key have become.
const COPIES_MAX: i64 = 1000;

/// Why a batch is refused.
const OTHER_MACHINE: &str = "the key of this agent is in use on another machine than the one that was enrolled";
const TWO: &str = "the key of this agent is in use on two machines that cannot be told apart by their machine id";

/// A row of `incarnations`.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
struct Incarnation {
    epoch: String,
    machine_boot: String,
    first: i64,
    last: i64,
    sealed: i64,
    sealed_here: i64,
}

/// Origin of a batch, as SQL strings.
struct BatchOrigin {
    organization: String,
    agent: String,
    epoch: String,
    machine_boot: String,
}

/// Result of a request for another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rekeyed {
    Done,
    /// Nothing of that machine was refused.
    NotDemanded,
    /// There are too many clones.
    Many,
}

/// Organization, agent and boot.
pub(crate) type Refused = (OrganizationId, AgentId, String);

/// Maximum number of refused boots that the secondary reports to the primary.
const REPORTED_MAX: i64 = 10_000;

impl ControlStore {
    /// Refused boots, newest first.
    pub(crate) async fn refused_boots(&self) -> Result<Vec<Refused>> {
        let rows: Vec<(String, String, String)> = sqlx::query_as(
            "SELECT organization, agent, machine_boot FROM boots WHERE refused IS NOT NULL ORDER BY refused DESC LIMIT ?",
        )
        .bind(REPORTED_MAX)
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|(organization, agent, machine_boot)| Ok((organization.parse()?, agent.parse()?, machine_boot)))
            .collect()
    }

    /// Refuses the boots that the secondary has refused.
    pub(crate) async fn accept_refused_boots(&self, refused: &[Refused], now: i64) -> Result<()> {
        for (organization, agent, machine_boot) in refused {
            sqlx::query(
                "INSERT INTO boots (organization, agent, machine_boot, first, refused) SELECT organization, id, ?3, ?4, ?4 FROM agents
                 WHERE organization = ?1 AND id = ?2
                 ON CONFLICT DO UPDATE SET refused = ?4 WHERE refused IS NULL",
            )
            .bind(organization.to_string())
            .bind(agent.to_string())
            .bind(machine_boot)
            .bind(now)
            .execute(&self.pool)
            .await?;
        }
        Ok(())
    }

    /// Decides whether a batch is of its agent's machine: an error is the reason for refusal, `true` means that another boot
    /// is refused from now on. Headers without facts of the host (collection is off), and without machine and boot (older
    /// releases), are accepted.
    pub(crate) async fn judge_origin(&self, header: &Header, now: i64) -> Result<Result<bool, &'static str>> {
        let HostLabel { machine, boot, .. } = &header.host;
        if machine.is_none() && boot.is_none() {
            return Ok(Ok(false));
        }
        let (machine, boot) = (machine.as_deref().unwrap_or_default(), boot.as_deref().unwrap_or_default());
        let origin = BatchOrigin {
            organization: header.organization.to_string(),
            agent: header.agent.to_string(),
            epoch: header.epoch.to_string(),
            machine_boot: format!("{machine}/{boot}"),
        };
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let verdict = judge(&mut tx, &origin, machine, header, now).await?;
        tx.commit().await?;
        Ok(verdict)
    }

    /// Makes a refused machine another agent of its organization.
    pub(crate) async fn rekey(
        &self,
        AgentKey { organization, agent: was }: AgentKey,
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
            // The answer was lost; or the key is another's.
            return Ok(if replaces == Some(old) { Rekeyed::Done } else { Rekeyed::NotDemanded });
        }
        let (refused, copies): (bool, i64) = sqlx::query_as(
            "SELECT EXISTS (SELECT 1 FROM boots WHERE organization = ?1 AND agent = ?2 AND refused IS NOT NULL
                   AND substr(machine_boot, 1, length(?3) + 1) = ?3 || '/')
               OR EXISTS (SELECT 1 FROM incarnations WHERE organization = ?1 AND agent = ?2 AND refused IS NOT NULL
                   AND substr(machine_boot, 1, length(?3) + 1) = ?3 || '/'),
             (SELECT count(*) FROM agents WHERE organization = ?1 AND replaces = ?2)",
        )
        .bind(&id)
        .bind(&old)
        .bind(machine)
        .fetch_one(&mut *tx)
        .await?;
        if !refused {
            return Ok(Rekeyed::NotDemanded);
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
        let detail = format!("a machine that used its key, {}, is agent {new} now", enrollment.hostname);
        raise_alert(&mut *tx, (&organization.to_string(), &old), ("clone", &detail), now).await?;
        let change = Change::automatic(now);
        audit(&mut *tx, change, "agent rekey", &format!("{was}: {detail}")).await?;
        tx.commit().await?;
        Ok(Rekeyed::Done)
    }

    /// Agents that clones of this one have become.
    pub(crate) async fn copies_of(&self, agent: AgentId) -> Result<Vec<String>> {
        let rows = sqlx::query_scalar("SELECT id FROM agents WHERE replaces = ? AND revoked IS NULL ORDER BY enrolled");
        Ok(rows.bind(agent.to_string()).fetch_all(&self.pool).await?)
    }
}

async fn judge(
    tx: &mut SqliteConnection,
    origin: &BatchOrigin,
    machine: &str,
    header: &Header,
    now: i64,
) -> Result<Result<bool, &'static str>> {
    let (known, boots): (Option<String>, bool) = sqlx::query_as(
        "SELECT machine, EXISTS (SELECT 1 FROM boots WHERE organization = ?1 AND agent = ?2)
         FROM agents WHERE organization = ?1 AND id = ?2",
    )
    .bind(&origin.organization)
    .bind(&origin.agent)
    .fetch_one(&mut *tx)
    .await?;
    match known {
        Some(known) if known != machine => {
            // A machine that is told to re-key may do so; nobody else may.
            remember_start(tx, origin, now).await?;
            refuse(tx, origin, &origin.machine_boot, None, now).await?;
            return Ok(Err(OTHER_MACHINE));
        }
        // It did not state its machine at the enrollment, and does so in its first batch.
        None if !boots && !machine.is_empty() => {
            sqlx::query("UPDATE agents SET machine = ? WHERE organization = ? AND id = ?")
                .bind(machine)
                .bind(&origin.organization)
                .bind(&origin.agent)
                .execute(&mut *tx)
                .await?;
        }
        _ => {}
    }
    let machine_boot: Option<Option<i64>> =
        sqlx::query_scalar("SELECT refused FROM boots WHERE organization = ? AND agent = ? AND machine_boot = ?")
            .bind(&origin.organization)
            .bind(&origin.agent)
            .bind(&origin.machine_boot)
            .fetch_optional(&mut *tx)
            .await?;
    if machine_boot.flatten().is_some() {
        return Ok(Err(TWO));
    }
    if header.resealed || header.lane != LaneName::Records {
        // A resealed batch comes after later ones; a batch of lane `blobs` has other epochs and follows the records.
        return Ok(Ok(false));
    }
    if machine_boot.is_none() {
        remember_start(tx, origin, now).await?;
    }
    let all = incarnations(tx, origin).await?;
    let late = is_late(tx, origin, header, &all, now).await?;
    if !remember(tx, origin, header, (late, now)).await? {
        return Ok(Err(TWO));
    }
    if late { Ok(Ok(false)) } else { refuse_one_of_two(tx, origin, &all, now).await }
}

/// Refuses one of two incarnations that send at the same time, if there is another than the batch's own; true if the other.
async fn refuse_one_of_two(
    tx: &mut SqliteConnection,
    origin: &BatchOrigin,
    all: &[Incarnation],
    now: i64,
) -> Result<Result<bool, &'static str>> {
    let me = all.iter().find(|one| (&one.epoch, &one.machine_boot) == (&origin.epoch, &origin.machine_boot));
    let Some(me) = me else { return Ok(Ok(false)) };
    let beside = |one: &&Incarnation| one.epoch != me.epoch && one.first < me.first && one.last > me.first;
    let Some(other) = all.iter().find(beside) else { return Ok(Ok(false)) };
    if other.machine_boot == me.machine_boot {
        // A machine that was copied while it ran: the older epoch stays.
        refuse(tx, origin, &me.machine_boot, Some(&me.epoch), now).await?;
        return Ok(Err(TWO));
    }
    let first: Option<String> = sqlx::query_scalar(
        "SELECT machine_boot FROM boots WHERE organization = ? AND agent = ? AND machine_boot IN (?, ?) ORDER BY first, rowid LIMIT 1",
    )
    .bind(&origin.organization)
    .bind(&origin.agent)
    .bind(&origin.machine_boot)
    .bind(&other.machine_boot)
    .fetch_optional(&mut *tx)
    .await?;
    if first.is_some_and(|first| first == origin.machine_boot) {
        refuse(tx, origin, &other.machine_boot, None, now).await?;
        return Ok(Ok(true));
    }
    refuse(tx, origin, &origin.machine_boot, None, now).await?;
    Ok(Err(TWO))
}

/// Rows that are not refused, newest first.
async fn incarnations(tx: &mut SqliteConnection, origin: &BatchOrigin) -> Result<Vec<Incarnation>> {
    let all = sqlx::query_as(
        "SELECT i.epoch, i.machine_boot, i.first, i.last, i.sealed, i.sealed_here FROM incarnations i
         JOIN boots s USING (organization, agent, machine_boot)
         WHERE organization = ? AND agent = ? AND i.refused IS NULL AND s.refused IS NULL
         ORDER BY i.first DESC, i.rowid DESC",
    );
    Ok(all.bind(&origin.organization).bind(&origin.agent).fetch_all(tx).await?)
}

/// Whether a batch was sealed before another epoch began: by the clock, which is the same within a boot and never ahead of the
/// workspace's otherwise; or by the last sequence that the next epoch states.
async fn is_late(
    tx: &mut SqliteConnection,
    origin: &BatchOrigin,
    header: &Header,
    all: &[Incarnation],
    now: i64,
) -> Result<bool> {
    let before = |one: &Incarnation| {
        one.epoch != origin.epoch
            && if one.machine_boot == origin.machine_boot {
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
    .bind(&origin.organization)
    .bind(&origin.agent)
    .bind(&origin.epoch)
    .fetch_optional(tx)
    .await?
    .flatten();
    let ended: Option<Predecessor> = ended.and_then(|ended| serde_json::from_str(&ended).ok());
    Ok(ended.is_some_and(|ended| header.seq <= ended.last_seq))
}

/// Records a boot.
async fn remember_start(tx: &mut SqliteConnection, origin: &BatchOrigin, now: i64) -> Result<()> {
    sqlx::query("INSERT OR IGNORE INTO boots (organization, agent, machine_boot, first) VALUES (?, ?, ?, ?)")
        .bind(&origin.organization)
        .bind(&origin.agent)
        .bind(&origin.machine_boot)
        .bind(now)
        .execute(&mut *tx)
        .await?;
    // The first one is the one that stays.
    sqlx::query(
        "DELETE FROM boots WHERE organization = ?1 AND agent = ?2
         AND rowid > (SELECT min(rowid) FROM boots WHERE organization = ?1 AND agent = ?2)
         AND rowid NOT IN (SELECT rowid FROM boots WHERE organization = ?1 AND agent = ?2
           ORDER BY rowid DESC LIMIT ?3)",
    )
    .bind(&origin.organization)
    .bind(&origin.agent)
    .bind(REMEMBERED_MAX)
    .execute(tx)
    .await?;
    Ok(())
}

/// Records where a batch was sealed; false if that is refused.
async fn remember(
    tx: &mut SqliteConnection,
    origin: &BatchOrigin,
    header: &Header,
    (late, now): (bool, i64),
) -> Result<bool> {
    let (refused, new): (Option<i64>, bool) = sqlx::query_as(
        "INSERT INTO incarnations (organization, agent, epoch, machine_boot, first, last, sealed, sealed_here)
         VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7)
         ON CONFLICT DO UPDATE SET last = CASE WHEN ?8 THEN last ELSE ?5 END, sealed = min(sealed, ?6),
           sealed_here = min(sealed_here, ?7)
         RETURNING refused, first = ?5",
    )
    .bind(&origin.organization)
    .bind(&origin.agent)
    .bind(&origin.epoch)
    .bind(&origin.machine_boot)
    .bind(now)
    .bind(header.sealed)
    .bind(header.sealed.min(now))
    .bind(late)
    .fetch_one(&mut *tx)
    .await?;
    if new {
        sqlx::query(
            "DELETE FROM incarnations WHERE organization = ?1 AND agent = ?2 AND (machine_boot NOT IN
               (SELECT machine_boot FROM boots WHERE organization = ?1 AND agent = ?2)
             OR rowid > (SELECT min(rowid) FROM incarnations WHERE organization = ?1 AND agent = ?2)
               AND rowid NOT IN (SELECT rowid FROM incarnations WHERE organization = ?1 AND agent = ?2
                 ORDER BY last DESC, rowid DESC LIMIT ?3))",
        )
        .bind(&origin.organization)
        .bind(&origin.agent)
        .bind(REMEMBERED_MAX)
        .execute(tx)
        .await?;
    }
    Ok(refused.is_none())
}

/// Refuses a boot, or one of its epochs, and raises an alert.
async fn refuse(
    tx: &mut SqliteConnection,
    origin: &BatchOrigin,
    machine_boot: &str,
    epoch: Option<&str>,
    now: i64,
) -> Result<()> {
    let sql = match epoch {
        None => {
            "UPDATE boots SET refused = ?1 WHERE organization = ?2 AND agent = ?3 AND machine_boot = ?4 AND ?5 IS NULL"
        }
        Some(_) => {
            "UPDATE incarnations SET refused = ?1 WHERE organization = ?2 AND agent = ?3 AND machine_boot = ?4 AND epoch = ?5"
        }
    };
    sqlx::query(sql)
        .bind(now)
        .bind(&origin.organization)
        .bind(&origin.agent)
        .bind(machine_boot)
        .bind(epoch)
        .execute(&mut *tx)
        .await?;
    alert(tx, origin, now).await
}

async fn alert(tx: &mut SqliteConnection, origin: &BatchOrigin, now: i64) -> Result<()> {
    let detail = "another machine uses its key, and was told to make its own";
    raise_alert(tx, (&origin.organization, &origin.agent), ("clone", detail), now).await
}

#[cfg(test)]
mod tests;
