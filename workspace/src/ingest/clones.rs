//! Refusal of batches that were sealed on another machine than the agent's own. The control store decides; accepted origins are
//! remembered for a while.

use super::{Ingest, IngestError, LandingKey, check::Checked};
use crate::{clock::now, store::AgentKey};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use vedette_wire::{Epoch, Header, HostLabel, LaneName};

/// Number of remembered origins, and for how long.
const ORIGINS_MAX: usize = 100_000;
const ORIGIN_LIFE: Duration = Duration::from_secs(120);

/// Last accepted origin, by agent and lane.
#[derive(Default)]
pub(super) struct Origins(Mutex<HashMap<(AgentKey, LaneName), Origin>>);

/// Origin of an accepted batch, and when it was judged.
struct Origin {
    epoch: Epoch,
    host: HostLabel,
    judged: Instant,
}

fn agent(header: &Header) -> AgentKey {
    AgentKey { organization: header.organization, agent: header.agent }
}

impl Origins {
    fn has(&self, header: &Header) -> bool {
        let origins = self.0.lock();
        origins.get(&(agent(header), header.lane)).is_some_and(|last| {
            (last.epoch, &last.host) == (header.epoch, &header.host) && last.judged.elapsed() < ORIGIN_LIFE
        })
    }

    fn add(&self, header: &Header) {
        let mut origins = self.0.lock();
        if origins.len() >= ORIGINS_MAX {
            origins.clear();
        }
        let origin = Origin { epoch: header.epoch, host: header.host.clone(), judged: Instant::now() };
        origins.insert((agent(header), header.lane), origin);
    }

    fn forget(&self, header: &Header) {
        let mut origins = self.0.lock();
        for lane in [LaneName::Records, LaneName::Blobs] {
            origins.remove(&(agent(header), lane));
        }
    }
}

impl Ingest {
    /// Refuses a batch of a clone, unless it has landed before, with a lost answer.
    pub(super) async fn reject_clone(&self, batch: &Checked, key: &LandingKey) -> Result<(), IngestError> {
        let header = &batch.index.header;
        if self.origins.has(header) {
            return Ok(());
        }
        match self.control.judge_origin(header, now()).await? {
            Ok(other_is_refused) => {
                if other_is_refused {
                    self.origins.forget(header);
                }
                self.origins.add(header);
                Ok(())
            }
            Err(why) => {
                self.origins.forget(header);
                tracing::warn!(agent = %header.agent, why, "a batch was refused");
                if self.landing.holds(key, &batch.digest).await? { Ok(()) } else { Err(IngestError::Clone(why)) }
            }
        }
    }
}
