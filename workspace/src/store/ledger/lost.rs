//! Loss in the workspace: batches that agents consider delivered, after a restore from an older backup or a lost disk.

use super::{
    Epoch, Gap,
    balance::{Fate, fate},
};
use crate::store::{AgentKey, ControlStore, alerts::raise_alert};
use anyhow::Result;
use std::collections::BTreeSet;
use vedette_wire::{Header, set_aside::RANGES_MAX};

/// Batches in flight no longer close a gap that is older than this, nanoseconds.
const SETTLED_NS: i64 = 600_000_000_000;

/// Maximum number of sequence runs per epoch to look at.
const RUNS_MAX: i64 = 1000;

fn alert_text(collector: &str, gap: &Gap) -> String {
    format!(
        "records of {collector} are missing, {} {} to {} of {}: they were emitted and are not here; see `vedette-workspace ledger`",
        gap.what, gap.from, gap.to, gap.of
    )
}

impl ControlStore {
    /// First and last sequence, in the epoch of a batch, that its agent neither holds nor has set aside, and that did not land
    /// here. None for an organization with two endpoints, since they may have landed at the other.
    pub(crate) async fn lost(&self, header: &Header) -> Result<Option<(u64, u64)>> {
        let (organization, agent) = (header.organization.to_string(), header.agent.to_string());
        let mut tx = self.pool.begin().await?;
        let runs: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT first, last FROM sequences
             WHERE organization = ? AND agent = ? AND lane = ? AND epoch = ? ORDER BY first LIMIT ?",
        )
        .bind(&organization)
        .bind(&agent)
        .bind(header.lane.name())
        .bind(header.epoch.to_string())
        .bind(RUNS_MAX)
        .fetch_all(&mut *tx)
        .await?;
        // A single run from the first sequence on has no gap.
        if runs.len() < 2 && runs.first().is_none_or(|(first, _)| *first == 1) {
            return Ok(None);
        }
        let epoch: Option<Epoch> = sqlx::query_as(
            "SELECT agent, lane, epoch, seq, lowest_held, counters, set_aside, ended FROM epochs
             WHERE organization = ? AND agent = ? AND lane = ? AND epoch = ?",
        )
        .bind(&organization)
        .bind(&agent)
        .bind(header.lane.name())
        .bind(header.epoch.to_string())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(epoch) = epoch else { return Ok(None) };
        let (lowest_held, set_aside) = epoch.held()?;
        // If more was set aside than a header names, the oldest ranges are omitted.
        let full = set_aside.all().into_iter().filter(|ranges| ranges.len() >= RANGES_MAX);
        let named_from = full.filter_map(|ranges| Some(ranges.first()?.0)).max().unwrap_or(0);
        let (mut next, mut lost) = (1, None);
        for (first, last) in runs {
            let (from, to) = (next, first.cast_unsigned());
            next = last.cast_unsigned() + 1;
            if from < to && to > named_from && fate(lowest_held, &set_aside, from, to) == Fate::Missing {
                let last = to.min(lowest_held.max(from + 1)) - 1;
                lost = Some((lost.map_or(from, |(first, _)| first), last));
            }
        }
        if lost.is_none() {
            return Ok(None);
        }
        drop(tx);
        Ok(if self.is_one_of_two(&organization).await? { None } else { lost })
    }

    /// Whether an organization has or had two endpoints: what is not here may be at the other.
    async fn is_one_of_two(&self, organization: &str) -> Result<bool> {
        let elsewhere = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM settings WHERE name = 'pair_of') OR EXISTS (
               SELECT 1 FROM policies WHERE organization = ? AND json_array_length(document, '$.endpoints') > 1)",
        )
        .bind(organization)
        .fetch_one(&self.pool)
        .await?;
        Ok(elsewhere)
    }

    /// Raises an alert `gap` for each collector of an agent with a lasting gap in sequences or positions; names
    /// the first one. Withdraws the alert when the gap closes.
    pub(crate) async fn alert_gaps(&self, now: i64) -> Result<()> {
        for organization in self.organization_ids().await? {
            let id = organization.to_string();
            if self.is_one_of_two(&id).await? {
                self.replace_gap_alerts(&id, BTreeSet::new(), now).await?;
                continue;
            }
            let agents: Vec<String> = sqlx::query_scalar(
                "SELECT agent FROM (
                   SELECT agent FROM positions WHERE organization = ?1
                   GROUP BY agent, collector, source HAVING count(*) > 1)
                 UNION SELECT agent FROM (
                   SELECT agent FROM sequences WHERE organization = ?1
                   GROUP BY agent, lane, epoch HAVING count(*) > 1 OR min(first) > 1)",
            )
            .bind(&id)
            .fetch_all(&self.pool)
            .await?;
            let mut gaps = BTreeSet::new();
            for agent in agents {
                for account in self.ledger(organization, Some(&agent)).await? {
                    let stays = account.gaps.iter().find(|gap| gap.until < now - SETTLED_NS);
                    gaps.extend(stays.map(|gap| (account.agent.clone(), alert_text(&account.collector, gap))));
                }
            }
            self.replace_gap_alerts(&id, gaps, now).await?;
        }
        Ok(())
    }

    /// Raises alerts for these gaps of an organization (agent and text), and withdraws all others.
    async fn replace_gap_alerts(
        &self,
        organization: &str,
        mut gaps: BTreeSet<(String, String)>,
        now: i64,
    ) -> Result<()> {
        let raised: Vec<(String, String)> =
            sqlx::query_as("SELECT agent, detail FROM alerts WHERE organization = ? AND kind = 'gap'")
                .bind(organization)
                .fetch_all(&self.pool)
                .await?;
        for alert in raised {
            if !gaps.remove(&alert) {
                sqlx::query("DELETE FROM alerts WHERE organization = ? AND agent = ? AND kind = 'gap' AND detail = ?")
                    .bind(organization)
                    .bind(&alert.0)
                    .bind(&alert.1)
                    .execute(&self.pool)
                    .await?;
                tracing::info!(organization, agent = alert.0, alert = alert.1, "a gap closed; its alert is withdrawn");
            }
        }
        for (agent, detail) in gaps {
            raise_alert(&self.pool, (organization, &agent), ("gap", &detail), now).await?;
        }
        Ok(())
    }

    /// Raises an alert for what is lost here, once, and states the consequences.
    pub(crate) async fn alert_lost(&self, header: &Header, lost: (u64, u64), now: i64) -> Result<()> {
        let agent = AgentKey { organization: header.organization, agent: header.agent };
        let detail = format!(
            "batches {} to {} of {}/{} were acknowledged and are not here: this workspace was restored from an older backup, \
             or lost files; the agent reads again what its host still has, `vedette-workspace ledger` shows the rest",
            lost.0, lost.1, header.lane, header.epoch
        );
        self.alert(agent, "missing", &detail, now).await
    }
}
