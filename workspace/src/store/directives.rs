//! What waits for agents: policy revisions in force, and open artifact requests.

use super::{AgentKey, ControlStore};
use crate::clock::now;
use anyhow::Result;
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use tokio::sync::watch;
use vedette_wire::OrganizationId;

/// Poll interval for revisions and requests in the control store, since commands are other processes.
pub(crate) const DIRECTIVES_POLL: Duration = Duration::from_secs(1);

/// Revisions in force, and agents with pending requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PendingDirectives {
    revisions: HashMap<OrganizationId, u64>,
    requested: HashSet<AgentKey>,
}

impl PendingDirectives {
    /// Whether there is anything for an agent with this policy revision.
    pub(crate) fn has(&self, agent: AgentKey, revision: u64) -> bool {
        self.requested.contains(&agent) || self.revision(agent.organization) > revision
    }

    /// Policy revision in force, or 0.
    pub(crate) fn revision(&self, organization: OrganizationId) -> u64 {
        self.revisions.get(&organization).copied().unwrap_or(0)
    }
}

impl ControlStore {
    async fn pending_directives(&self) -> Result<PendingDirectives> {
        let (revisions, requested) = (self.policy_revisions().await?, self.agents_with_requests(now()).await?);
        Ok(PendingDirectives { revisions, requested })
    }

    /// Updates pending directives until nobody reads them, or the workspace stops.
    pub(crate) fn watch_directives(&self, mut stop: watch::Receiver<bool>) -> watch::Receiver<PendingDirectives> {
        let (control, (pending, followed)) = (self.clone(), watch::channel(PendingDirectives::default()));
        tokio::spawn(async move {
            loop {
                match control.pending_directives().await {
                    Ok(now) => drop(pending.send_if_modified(|known| {
                        let changed = *known != now;
                        *known = now;
                        changed
                    })),
                    Err(err) => tracing::error!(error = format!("{err:#}"), "policies and requests cannot be read"),
                }
                tokio::select! {
                    () = pending.closed() => return,
                    // Held polls are answered now.
                    _ = stop.wait_for(|stop| *stop) => return,
                    () = tokio::time::sleep(DIRECTIVES_POLL) => {}
                }
            }
        });
        followed
    }
}
