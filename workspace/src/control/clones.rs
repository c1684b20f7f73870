//! One key on two machines: an image that was made with an agent's identity in it, a copy of a disk.
//!
//! Every batch says on which machine, in which boot and in which epoch of which queue it was sealed. One agent's epochs and
//! boots follow each other: once another has begun, nothing comes of the one before but what was sealed before. Where it does,
//! there are two. The machine of the enrollment stays; of two with the same machine id, the one whose boot was seen first. The
//! other is refused, and becomes another agent (`/v1/rekey`).

use super::{Control, agents::Enrollment};
use anyhow::Result;
use sqlx::SqliteConnection;
use vedette_wire::{AgentId, Header, OrganizationId, Predecessor};

/// Boots, and epochs of a lane, that are remembered of one agent.
const REMEMBERED_MAX: i64 = 200;

/// A row of `incarnations`.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
struct Incarnation {
    epoch: String,
    boot: String,
    first_sealed: i64,
    first_seq: i64,
    refused: Option<i64>,
}

/// Whose batch it is, as text for SQL.
struct Whose<'a> {
    organization: String,
    agent: String,
    lane: &'static str,
    epoch: String,
    boot: &'a str,
}

impl Control {
    /// Whether a batch may land under its agent's name; else why not. Nothing is known of an agent that names no machine: its
    /// collection is off, or it is of an older release.
    pub(crate) async fn is_its_own(&self, header: &Header, now: i64) -> Result<Result<(), String>> {
        let (Some(machine), Some(boot)) = (&header.host.machine, &header.host.boot) else { return Ok(Ok(())) };
        let whose = Whose {
            organization: header.organization.to_string(),
            agent: header.agent.to_string(),
            lane: header.lane.name(),
            epoch: header.epoch.to_string(),
            boot,
        };
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let verdict = judge(&mut tx, &whose, machine, header, now).await?;
        tx.commit().await?;
        Ok(verdict)
    }

    /// Make a machine that was refused another agent of its organization; false where it was not refused.
    pub(crate) async fn rekey(
        &self,
        (organization, was): (OrganizationId, AgentId),
        (machine, boot): (&str, &str),
        enrollment: &Enrollment<'_>,
        now: i64,
    ) -> Result<bool> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let refused: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM incarnations i JOIN boots b USING (organization, agent, boot)
             WHERE organization = ? AND agent = ? AND boot = ? AND machine = ? AND refused IS NOT NULL",
        )
        .bind(organization.to_string())
        .bind(was.to_string())
        .bind(boot)
        .bind(machine)
        .fetch_optional(&mut *tx)
        .await?;
        if refused.is_none() {
            return Ok(false);
        }
        // Again where the answer was lost.
        sqlx::query(
            "INSERT OR IGNORE INTO agents (organization, id, hostname, machine, version, policy_revision, enrolled)
             VALUES (?, ?, ?, ?, ?, 0, ?)",
        )
        .bind(organization.to_string())
        .bind(enrollment.agent.to_string())
        .bind(enrollment.hostname)
        .bind(machine)
        .bind(enrollment.version)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        self.audit(now, "agent rekey", &format!("{was} on another machine is {} now", enrollment.agent)).await?;
        Ok(true)
    }
}

async fn judge(
    tx: &mut SqliteConnection,
    whose: &Whose<'_>,
    machine: &str,
    header: &Header,
    now: i64,
) -> Result<Result<(), String>> {
    let enrolled: Option<String> = sqlx::query_scalar("SELECT machine FROM agents WHERE organization = ? AND id = ?")
        .bind(&whose.organization)
        .bind(&whose.agent)
        .fetch_optional(&mut *tx)
        .await?
        .flatten();
    if enrolled.is_none() {
        // It could not tell at its enrollment.
        sqlx::query("UPDATE agents SET machine = ? WHERE organization = ? AND id = ? AND machine IS NULL")
            .bind(machine)
            .bind(&whose.organization)
            .bind(&whose.agent)
            .execute(&mut *tx)
            .await?;
    }
    remember(tx, whose, machine, header, now).await?;
    if enrolled.is_some_and(|enrolled| enrolled != machine) {
        refuse(tx, whose, whose.boot, None, now).await?;
        return Ok(Err("the key of this agent is in use on another machine than the one that was enrolled".to_owned()));
    }
    let (epoch, boot) = (whose.epoch.as_str(), whose.boot);
    let all: Vec<Incarnation> = sqlx::query_as(
        "SELECT epoch, boot, first_sealed, first_seq, refused FROM incarnations
         WHERE organization = ? AND agent = ? AND lane = ? ORDER BY first DESC, rowid DESC",
    )
    .bind(&whose.organization)
    .bind(&whose.agent)
    .bind(whose.lane)
    .fetch_all(&mut *tx)
    .await?;
    let told =
        || "the key of this agent is in use on two machines that cannot be told apart by their machine id".to_owned();
    if all.iter().any(|one| one.refused.is_some() && (one.epoch.as_str(), one.boot.as_str()) == (epoch, boot)) {
        return Ok(Err(told()));
    }
    let newest = all.into_iter().find(|one| one.refused.is_none());
    let Some(newest) = newest.filter(|newest| (newest.epoch.as_str(), newest.boot.as_str()) != (epoch, boot)) else {
        return Ok(Ok(()));
    };
    if header.sealed < newest.first_sealed || is_of_before(tx, whose, header, &newest).await? {
        return Ok(Ok(()));
    }
    // Both go on: the boot that was seen first stays; where it is the same one, as of a machine that was copied while it ran,
    // the epoch that was there first.
    let first: Vec<String> = sqlx::query_scalar(
        "SELECT boot FROM boots WHERE organization = ? AND agent = ? AND boot IN (?, ?) ORDER BY first, rowid",
    )
    .bind(&whose.organization)
    .bind(&whose.agent)
    .bind(boot)
    .bind(&newest.boot)
    .fetch_all(&mut *tx)
    .await?;
    if newest.boot == boot {
        refuse(tx, whose, boot, Some(&newest.epoch), now).await?;
        return Ok(Ok(()));
    }
    if first.first().is_some_and(|first| first == boot) {
        refuse(tx, whose, &newest.boot, None, now).await?;
        return Ok(Ok(()));
    }
    refuse(tx, whose, boot, None, now).await?;
    Ok(Err(told()))
}

/// Whether a batch is of the time before the newest incarnation by its sequence: a clock may have jumped between the two.
async fn is_of_before(
    tx: &mut SqliteConnection,
    whose: &Whose<'_>,
    header: &Header,
    newest: &Incarnation,
) -> Result<bool> {
    if whose.epoch == newest.epoch {
        return Ok(header.seq.cast_signed() < newest.first_seq);
    }
    let ended: Option<String> =
        sqlx::query_scalar("SELECT ended FROM epochs WHERE organization = ? AND agent = ? AND lane = ? AND epoch = ?")
            .bind(&whose.organization)
            .bind(&whose.agent)
            .bind(whose.lane)
            .bind(&whose.epoch)
            .fetch_optional(tx)
            .await?
            .flatten();
    let ended: Option<Predecessor> = ended.and_then(|ended| serde_json::from_str(&ended).ok());
    Ok(ended.is_some_and(|ended| header.seq <= ended.last_seq))
}

async fn remember(
    tx: &mut SqliteConnection,
    whose: &Whose<'_>,
    machine: &str,
    header: &Header,
    now: i64,
) -> Result<()> {
    let boots =
        sqlx::query("INSERT OR IGNORE INTO boots (organization, agent, boot, machine, first) VALUES (?, ?, ?, ?, ?)")
            .bind(&whose.organization)
            .bind(&whose.agent)
            .bind(whose.boot)
            .bind(machine)
            .bind(now)
            .execute(&mut *tx)
            .await?;
    let seq = header.seq.cast_signed();
    let known = sqlx::query(
        "UPDATE incarnations SET first_seq = min(first_seq, ?6)
         WHERE organization = ?1 AND agent = ?2 AND lane = ?3 AND epoch = ?4 AND boot = ?5",
    )
    .bind(&whose.organization)
    .bind(&whose.agent)
    .bind(whose.lane)
    .bind(&whose.epoch)
    .bind(whose.boot)
    .bind(seq)
    .execute(&mut *tx)
    .await?;
    if known.rows_affected() == 0 {
        sqlx::query(
            "INSERT INTO incarnations (organization, agent, lane, epoch, boot, first, first_sealed, first_seq)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&whose.organization)
        .bind(&whose.agent)
        .bind(whose.lane)
        .bind(&whose.epoch)
        .bind(whose.boot)
        .bind(now)
        .bind(header.sealed)
        .bind(seq)
        .execute(&mut *tx)
        .await?;
    }
    if boots.rows_affected() + u64::from(known.rows_affected() == 0) > 0 {
        for table in ["boots", "incarnations"] {
            let oldest = format!(
                "DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE organization = ? AND agent = ?
                 ORDER BY first DESC, rowid DESC LIMIT -1 OFFSET {REMEMBERED_MAX})"
            );
            sqlx::query(sqlx::AssertSqlSafe(oldest))
                .bind(&whose.organization)
                .bind(&whose.agent)
                .execute(&mut *tx)
                .await?;
        }
    }
    Ok(())
}

/// Take nothing more of a boot, or of one epoch of it, and raise an alert.
async fn refuse(tx: &mut SqliteConnection, whose: &Whose<'_>, boot: &str, epoch: Option<&str>, now: i64) -> Result<()> {
    sqlx::query(
        "UPDATE incarnations SET refused = ?1
         WHERE organization = ?2 AND agent = ?3 AND boot = ?4 AND (?5 IS NULL OR epoch = ?5) AND refused IS NULL",
    )
    .bind(now)
    .bind(&whose.organization)
    .bind(&whose.agent)
    .bind(boot)
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
mod tests {
    use super::*;
    use crate::control::tests::add;
    use vedette_wire::{Epoch, HostLabel, Lane, geo::WorkspaceGeo};

    struct World {
        _dir: tempfile::TempDir,
        control: Control,
        organization: OrganizationId,
        came: std::cell::Cell<i64>,
    }

    const AGENT: AgentId = AgentId([7; 16]);

    impl World {
        async fn new() -> Self {
            let dir = tempfile::tempdir().expect("temp dir");
            let control = Control::create(dir.path(), WorkspaceGeo::Europe).await.expect("makes");
            let organization = add(&control, "acme").await.expect("adds");
            sqlx::query("INSERT INTO agents (organization, id, hostname, version, policy_revision, enrolled) VALUES (?, ?, '', '', 0, 0)")
                .bind(organization.to_string())
                .bind(AGENT.to_string())
                .execute(&control.pool)
                .await
                .expect("enrolls");
            Self { _dir: dir, control, organization, came: std::cell::Cell::new(0) }
        }

        fn header(&self, (machine, boot): (&str, &str), (epoch, seq): (u64, u64), sealed: i64) -> Header {
            Header {
                epoch: Epoch(epoch),
                seq,
                sealed,
                host: HostLabel { machine: Some(machine.into()), boot: Some(boot.into()), ..HostLabel::default() },
                ..Header::new(self.organization, AGENT, Lane::Records, WorkspaceGeo::Europe)
            }
        }

        async fn takes(&self, machine: (&str, &str), key: (u64, u64), sealed: i64) -> bool {
            self.came.set(self.came.get() + 1);
            let header = self.header(machine, key, sealed);
            self.control.is_its_own(&header, self.came.get()).await.expect("judges").is_ok()
        }

        async fn may_rekey(&self, machine: (&str, &str)) -> bool {
            let agent = AgentId([self.came.get() as u8; 16]);
            let enrollment = Enrollment { agent, hostname: "h", machine: None, version: "0" };
            self.control.rekey((self.organization, AGENT), machine, &enrollment, 1).await.expect("asks")
        }
    }

    const A: (&str, &str) = ("m", "a");
    const B: (&str, &str) = ("m", "b");

    #[tokio::test]
    async fn another_machine_id_is_refused_and_may_make_another_key() {
        let w = World::new().await;
        assert!(w.takes(A, (1, 1), 10).await, "the first that says which machine it is, is the one");
        assert!(!w.may_rekey(A).await);
        let other = ("n", "x");
        assert!(!w.may_rekey(other).await, "it was not told to");
        assert!(!w.takes(other, (2, 1), 20).await);
        assert!(w.takes(A, (1, 2), 30).await);
        assert!(!w.takes(other, (2, 2), 40).await);
        assert!(w.may_rekey(other).await && !w.may_rekey(A).await && !w.may_rekey(("m", "x")).await);
        let alerts = w.control.alerts(w.organization).await.expect("lists");
        assert_eq!(alerts.iter().map(|alert| (alert.kind.as_str(), alert.times)).collect::<Vec<_>>(), [("clone", 2)]);
    }

    #[tokio::test]
    async fn a_machine_that_starts_again_is_no_clone_of_itself() {
        let w = World::new().await;
        assert!(w.takes(A, (1, 1), 10).await && w.takes(A, (1, 3), 30).await);
        assert!(w.takes(B, (1, 5), 50).await, "started again");
        // What was sealed before, late; and what a split has made of it, under later sequences.
        assert!(w.takes(A, (1, 2), 20).await && w.takes(A, (1, 9), 40).await && w.takes(B, (1, 4), 45).await);
        // Its clock was ahead before the start: the sequence tells.
        assert!(w.takes(A, (1, 3), 9_000).await);
        // Its queue was lost: another epoch, and what is salvaged of the old one.
        assert!(w.takes(B, (2, 1), 100).await && w.takes(B, (1, 6), 60).await && w.takes(B, (2, 2), 110).await);
        assert!(!w.may_rekey(A).await && !w.may_rekey(B).await);
    }

    #[tokio::test]
    async fn of_two_that_interleave_the_boot_that_was_seen_first_stays() {
        let w = World::new().await;
        assert!(w.takes(A, (1, 1), 10).await && w.takes(B, (2, 1), 20).await, "it may have lost its queue and started");
        assert!(w.takes(A, (1, 2), 30).await, "both go on");
        assert!(!w.takes(B, (2, 2), 40).await && !w.takes(B, (3, 1), 41).await, "in whichever epoch");
        assert!(w.may_rekey(B).await && w.takes(A, (1, 3), 50).await);
        // And when it is the later one whose batch shows it.
        let w = World::new().await;
        assert!(w.takes(A, (1, 1), 10).await && w.takes(B, (1, 2), 20).await && w.takes(A, (3, 1), 30).await);
        assert!(!w.takes(B, (1, 3), 40).await && w.takes(A, (3, 2), 50).await);
    }

    #[tokio::test]
    async fn a_machine_that_was_copied_while_it_ran_is_told_by_its_epochs() {
        let w = World::new().await;
        assert!(w.takes(A, (1, 1), 10).await);
        // One of the two met the other's batch under its key, and began another epoch.
        assert!(w.takes(A, (2, 1), 20).await);
        let mut ended = w.header(A, (2, 1), 20);
        ended.predecessor =
            Some(Predecessor { epoch: Epoch(1), last_seq: 4, lowest_held: None, set_aside: Default::default() });
        w.control.note_landed("k", "2026-11-25", 1, &crate::tiles::Noted::new(ended, []), 3).await.expect("notes");
        assert!(w.takes(A, (1, 4), 30).await, "what it had sealed before");
        assert!(!w.may_rekey(A).await);
        assert!(w.takes(A, (1, 5), 40).await, "which it cannot have");
        assert!(!w.takes(A, (2, 2), 50).await && w.may_rekey(A).await);
    }

    #[tokio::test]
    async fn no_more_is_remembered_than_there_is_room_for() {
        let w = World::new().await;
        for number in 0..REMEMBERED_MAX + 50 {
            let boot = number.to_string();
            assert!(w.takes(("m", &boot), (1, number as u64 + 1), number).await);
        }
        for table in ["boots", "incarnations"] {
            let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
            let count: i64 = sqlx::query_scalar(sql).fetch_one(&w.control.pool).await.expect("counts");
            assert_eq!(count, REMEMBERED_MAX);
        }
    }
}
