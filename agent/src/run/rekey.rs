//! Re-keying: the workspace found this agent's key on another machine, after an image or a disk with the identity was copied.
//! Nothing of this machine lands under the old key. The agent keeps collecting to disk, becomes another agent with the old
//! certificate, and reseals its queue.

use super::{VERSION, post::WorkspaceClient};
use crate::{
    config::Resolved,
    identity::{Enrollment, IdentityDir, Next, signing_request},
    policy,
};
use rcgen::PublicKeyData;
use std::{sync::Arc, time::Duration};
use vedette_transport::Lane;
use vedette_wire::{AgentId, HostLabel, reply::RekeyRequest};

/// Poll interval for the workspace's refusal.
const REFUSAL_POLL: Duration = Duration::from_secs(5);
/// Shortest and longest pause between attempts.
const PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(300);

/// Ends when the new identity is on disk; the agent then restarts with it.
pub(super) async fn rekey(
    identity: IdentityDir,
    enrollment: Enrollment,
    lane: Arc<Lane>,
    post: Arc<WorkspaceClient>,
    host: HostLabel,
) {
    let (mut pause, mut must_rekey) = (*PAUSE.start(), false);
    loop {
        if !must_rekey {
            must_rekey = lane.take_rekey();
            if !must_rekey {
                tokio::time::sleep(REFUSAL_POLL).await;
                continue;
            }
            tracing::warn!("another machine uses the key of this agent; making a new key");
            pause = *PAUSE.start();
        }
        match attempt(&identity, &enrollment, &post, &host).await {
            Ok(true) => return,
            Ok(false) => {
                not_demanded(&identity, &lane, &host).await;
                must_rekey = false;
            }
            Err(why) => tracing::warn!(why, "no new key yet; records wait on disk"),
        }
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(*PAUSE.end());
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
    if let Err(err) = identity.forget_next_key() {
        tracing::warn!(error = format!("{err:#}"), "an unused key cannot be deleted");
    }
    lane.try_again();
}

/// False if the workspace has not demanded a new key of this machine.
async fn attempt(
    identity: &IdentityDir,
    enrollment: &Enrollment,
    post: &WorkspaceClient,
    host: &HostLabel,
) -> Result<bool, String> {
    let text = |err: &dyn std::fmt::Display| format!("{err:#}");
    let key = identity.next_key().map_err(|err| text(&err))?;
    let request = RekeyRequest {
        csr: signing_request(&key).map_err(|err| text(&err))?,
        hostname: host.hostname.clone(),
        machine: host.machine.clone().unwrap_or_default(),
        version: VERSION.to_owned(),
    };
    // The secondary of a pair refuses, and names the primary.
    let mut answer = Err("no workspace was asked".to_owned());
    for post in post.all() {
        answer = post.rekey(&request).await;
        if matches!(answer, Ok(Some(_))) {
            break;
        }
    }
    let Some(reply) = answer? else { return Ok(false) };
    if reply.agent != AgentId::of_public_key(&key.subject_public_key_info()) {
        return Err("the workspace answered for another agent".to_owned());
    }
    if (reply.organization, reply.geo) != (enrollment.organization, enrollment.geo) {
        return Err("the workspace answered for another organization or geography".to_owned());
    }
    if let Some(policy) = &reply.policy {
        policy::keep(identity, policy).map_err(|err| text(&err))?;
    }
    let (certificate, mut next) = (reply.certificate.clone(), Enrollment::of(reply, &enrollment.workspace));
    next.replaces.clone_from(&enrollment.replaces);
    next.replaces.push(enrollment.agent);
    let agent = next.agent;
    let next = Next { key: key.serialize_pem(), certificate, enrollment: next };
    identity.keep_next(&next).map_err(|err| text(&err))?;
    tracing::warn!(was = %enrollment.agent, is = %agent, "this machine is another agent now");
    Ok(true)
}

/// Adds the hashes of machine id and boot id, by which the workspace recognises clones. machine-id(5) asks not to reveal the id
/// itself.
pub(super) fn with_machine(config: &Resolved, label: HostLabel) -> HostLabel {
    let cx = super::context(config, Vec::new(), Vec::new());
    let (machine, boot) = (crate::identity::machine(&cx), crate::identity::boot(&cx));
    HostLabel { machine, boot, ..label }
}
