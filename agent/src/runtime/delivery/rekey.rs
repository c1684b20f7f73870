//! Re-keying: the workspace found this agent's key on another machine, after an image or a disk with the identity was copied.
//! Nothing of this machine lands under the old key. The agent keeps collecting to disk, becomes another agent with the old
//! certificate, and reseals its queue.

use super::{LaneDelivery, WorkspaceClient};
use crate::{
    config::{Resolved, collector_context},
    exit::VERSION,
    identity::{Enrollment, IdentityDir, PendingIdentity, signing_request},
    runtime::policy,
};
use anyhow::{Context, Result, ensure};
use rcgen::PublicKeyData;
use std::{sync::Arc, time::Duration};
use vedette_transport::{Backoff, Lane};
use vedette_wire::{AgentId, HostLabel, reply::RekeyRequest};

/// Poll interval for the workspace's refusal.
const REFUSAL_POLL: Duration = Duration::from_secs(5);
/// First and longest pause between attempts.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// Ends when the new identity is on disk; the agent then begins again with it.
pub(in crate::runtime) async fn rekey(
    (identity, enrollment, host): (&IdentityDir, &Enrollment, &HostLabel),
    lane: &Lane,
    (client, delivery): (&WorkspaceClient, &LaneDelivery),
) {
    loop {
        while !delivery.take_rekey() {
            tokio::time::sleep(REFUSAL_POLL).await;
        }
        tracing::warn!("another machine uses the key of this agent; making a new key");
        let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
        loop {
            match attempt(identity, enrollment, host, client).await {
                Ok(true) => return,
                Ok(false) => break not_demanded(identity, lane, host).await,
                Err(why) => {
                    tracing::warn!(why = format!("{why:#}"), "the new key is not certified yet; records wait on disk")
                }
            }
            tokio::time::sleep(backoff.pause()).await;
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

/// The refused batches were sealed with an earlier machine id, or none: reseals them with the present one. Deletes the unused
/// key, since a lost answer may have enrolled it: the next attempt makes another.
async fn not_demanded(identity: &IdentityDir, lane: &Lane, host: &HostLabel) {
    let (queue, label) = (Arc::clone(lane.queue()), host.clone());
    match tokio::task::spawn_blocking(move || queue.seal_for(&label)).await.expect("the queue does not panic") {
        Ok(batches) => tracing::warn!(batches, "batches resealed, since they were sealed with another machine id"),
        Err(err) => tracing::error!(error = %err, "batches with another machine id cannot be resealed; trying again"),
    }
    if let Err(err) = identity.delete_pending_key() {
        tracing::warn!(error = format!("{err:#}"), "an unused key cannot be deleted");
    }
    lane.try_again();
}

/// False if the workspace has not demanded a new key of this machine.
async fn attempt(
    identity: &IdentityDir,
    enrollment: &Enrollment,
    host: &HostLabel,
    client: &WorkspaceClient,
) -> Result<bool> {
    let key = identity.pending_key()?;
    let request = RekeyRequest {
        csr: signing_request(&key)?,
        hostname: host.hostname.clone(),
        machine: host.machine.clone().unwrap_or_default(),
        version: VERSION.to_owned(),
    };
    // The secondary of a pair refuses, and names the primary.
    let mut answer = None;
    for client in client.all() {
        let last = client.rekey(&request).await;
        let is_done = matches!(last, Ok(Some(_)));
        answer = Some(last);
        if is_done {
            break;
        }
    }
    let Some(reply) = answer.context("no workspace is known")?? else { return Ok(false) };
    let is_own = reply.agent == AgentId::of_public_key(&key.subject_public_key_info());
    ensure!(is_own, "the workspace answered for another agent");
    ensure!(
        (reply.organization, reply.geo) == (enrollment.organization, enrollment.geo),
        "the workspace answered for another organization or geography"
    );
    if let Some(policy) = &reply.policy {
        policy::store_policy(identity, policy)?;
    }
    let (certificate, mut next) = (reply.certificate.clone(), Enrollment::of(reply, &enrollment.workspace));
    next.replaces.clone_from(&enrollment.replaces);
    next.replaces.push(enrollment.agent);
    let agent = next.agent;
    identity.store_pending(&PendingIdentity { key: key.serialize_pem(), certificate, enrollment: next })?;
    tracing::warn!(old_agent = %enrollment.agent, new_agent = %agent, "re-keyed: this machine has a new agent id");
    Ok(true)
}

/// Adds the hashes of machine id and boot id, by which the workspace recognises clones. machine-id(5) asks not to reveal the id
/// itself.
pub(in crate::runtime) fn with_machine(config: &Resolved, label: HostLabel) -> HostLabel {
    let context = collector_context(config);
    let (machine, boot) = (crate::identity::machine(&context), crate::identity::boot(&context));
    HostLabel { machine, boot, ..label }
}
