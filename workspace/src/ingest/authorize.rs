//! Authorization: a batch holds nothing that the policy of its own revision forbids.

use super::{Ingest, IngestError, check::Checked};
use crate::{clock::now, store::AgentKey};
use anyhow::Result;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use vedette_wire::{Header, HostLabel, LaneName, OrganizationId, Policy, policy::StoreLevel};

/// Maximum delay of batches that were observed before collection was switched off, nanoseconds.
const POLICY_GRACE_NS: i64 = 24 * 3600 * 1_000_000_000;
/// Maximum number of cached policies.
const CACHED_MAX: usize = 1000;

/// Policies by organization and revision.
#[derive(Default)]
pub(super) struct PolicyCache(Mutex<HashMap<(OrganizationId, u64), Arc<Policy>>>);

/// Store level of a batch under these policies.
pub(super) fn store_level(policies: &[Arc<Policy>]) -> StoreLevel {
    policies.iter().map(|policy| policy.store).min().unwrap_or(StoreLevel::All)
}

impl Ingest {
    /// The policy of a batch; none if there never was one, if it will be known later, or if the batch has no records. If a
    /// restore lost the revision, the two neighbouring ones apply, and what either allows is accepted.
    pub(super) async fn policies_of(&self, header: &Header, in_force: u64) -> Result<Vec<Arc<Policy>>> {
        let (organization, revision) = (header.organization, header.policy_revision);
        if header.records == 0 || revision > in_force {
            return Ok(Vec::new());
        }
        if let Some(policy) = self.policy(organization, revision).await? {
            return Ok(vec![policy]);
        }
        let mut beside = Vec::new();
        for revision in self.control.revisions_beside(organization, revision).await? {
            beside.extend(self.policy(organization, revision).await?);
        }
        Ok(beside)
    }

    async fn policy(&self, organization: OrganizationId, revision: u64) -> Result<Option<Arc<Policy>>> {
        let key = (organization, revision);
        let cached = self.policies.0.lock().get(&key).cloned();
        if cached.is_some() {
            return Ok(cached);
        }
        let Some((policy, _)) = self.control.policy(organization, revision).await? else { return Ok(None) };
        let policy = Arc::new(policy);
        let mut cache = self.policies.0.lock();
        if cache.len() >= CACHED_MAX {
            cache.clear();
        }
        cache.insert(key, Arc::clone(&policy));
        Ok(Some(policy))
    }

    /// Refuses a batch that all of its policies forbid, and raises an alert.
    pub(super) async fn authorize(
        &self,
        batch: &Checked,
        policies: &[Arc<Policy>],
        in_force: u64,
    ) -> Result<(), IngestError> {
        let header = &batch.index.header;
        if header.policy_revision > in_force {
            return Err(IngestError::PolicyRevision(header.policy_revision));
        }
        if header.records == 0 {
            return Ok(());
        }
        let mut why = Some(format!("policy revision {} does not exist", header.policy_revision));
        for policy in policies {
            if why.is_some() {
                why = self.forbidden(batch, policy, in_force).await?;
            }
        }
        let Some(why) = why else { return Ok(()) };
        tracing::warn!(agent = %header.agent, why, "a batch was refused");
        let agent = AgentKey { organization: header.organization, agent: header.agent };
        self.control.alert(agent, "policy", &why, now()).await?;
        Err(IngestError::Policy(why))
    }

    /// Why a policy forbids a batch.
    async fn forbidden(&self, batch: &Checked, policy: &Policy, in_force: u64) -> Result<Option<String>> {
        let (header, collected) = (&batch.index.header, batch.contents.collected);
        let revision = header.policy_revision;
        if !policy.collect {
            let of_host =
                header.sources.iter().find(|source| !matches!(source.collector.as_str(), "agent" | "artifacts"));
            let cursor = header.cursors.iter().find(|update| update.collector != "artifacts");
            if of_host.is_some() || cursor.is_some() || header.host != HostLabel::default() {
                return Ok(Some(format!("policy revision {revision} forbids what the header says of the host")));
            }
            return Ok(collected.map(|kind| format!("policy revision {revision} forbids a {kind}")));
        }
        if let Some(source) = header.sources.iter().find(|source| !policy.allows(&source.collector)) {
            return Ok(Some(format!("policy revision {revision} switches collector {} off", source.collector)));
        }
        if revision == in_force {
            return Ok(None);
        }
        // Its own policy allows it; a later one may have forbidden it long ago.
        let off = self.control.switched_off_after(header.organization, revision).await?;
        let late = off.filter(|issued| now().saturating_sub(*issued) > POLICY_GRACE_NS);
        Ok(match (late, header.lane) {
            (None, _) => None,
            // An artifact may arrive at any time. Any other record in the lane `blobs` is late.
            (Some(_), LaneName::Blobs) => {
                collected.map(|kind| format!("a {kind} of policy revision {revision} comes too late"))
            }
            (Some(_), LaneName::Records) => {
                Some(format!("a policy after revision {revision} switched collection off more than 24 hours ago"))
            }
        })
    }
}
