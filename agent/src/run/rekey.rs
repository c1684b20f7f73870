//! Another key for this machine, when the workspace has found its own in use on another one: an image that was made with the
//! agent's identity in it, a copy of a disk. Nothing of this machine lands under the old key any more; it goes on collecting
//! to disk, becomes another agent over the old certificate, and seals again what it has not delivered.

use super::{VERSION, post::Reloading};
use crate::{
    config::Resolved,
    identity::{Enrollment, IdentityDir, Next, signing_request},
    policy,
};
use rcgen::PublicKeyData;
use std::{sync::Arc, time::Duration};
use vedette_transport::Lane;
use vedette_wire::{AgentId, HostLabel, reply::RekeyRequest};

/// How often it is looked whether the workspace has said so.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The shortest pause between two attempts, and the longest.
const PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(300);

/// Ends when this machine has another identity on disk; the agent then begins again with it.
pub(super) async fn rekey(
    identity: IdentityDir,
    enrollment: Enrollment,
    lane: Arc<Lane>,
    post: Arc<Reloading>,
    host: HostLabel,
) {
    let (mut pause, mut told) = (*PAUSE.start(), false);
    loop {
        if !told {
            told = lane.take_rekey();
            if !told {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            tracing::warn!("the key of this agent is in use on another machine; this one makes another");
            pause = *PAUSE.start();
        }
        match attempt(&identity, &enrollment, &post, &host).await {
            Ok(true) => return,
            Ok(false) => {
                not_told(&identity, &lane, &host).await;
                told = false;
            }
            Err(why) => tracing::warn!(why, "no other key yet; what is collected waits on disk"),
        }
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(*PAUSE.end());
    }
}

/// What is refused was sealed when this machine had another id, or none: it is sealed again with the one that it has. And the
/// key that was made is another agent's, where an answer was lost: the next attempt makes a new one.
async fn not_told(identity: &IdentityDir, lane: &Lane, host: &HostLabel) {
    let (queue, label) = (Arc::clone(lane.queue()), host.clone());
    match tokio::task::spawn_blocking(move || queue.seal_for(&label)).await.expect("the queue does not panic") {
        Ok(batches) => tracing::warn!(batches, "sealed again: the machine had another id when they were sealed"),
        Err(err) => tracing::error!(error = %err, "what another id sealed cannot be sealed again; tried again"),
    }
    if let Err(err) = identity.forget_next_key() {
        tracing::warn!(error = format!("{err:#}"), "a key that is not used cannot be deleted");
    }
    lane.try_again();
}

/// False where this machine was not told to make another key.
async fn attempt(
    identity: &IdentityDir,
    enrollment: &Enrollment,
    post: &Reloading,
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
    // The second workspace of a pair sends to the first.
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

/// What a workspace tells two machines apart by, beside the host's name: both hashed, machine-id(5) asks not to show it.
pub(super) fn told_apart(config: &Resolved, label: HostLabel) -> HostLabel {
    let cx = super::context(config, Vec::new(), Vec::new());
    let (machine, boot) = (crate::identity::machine(&cx), crate::identity::boot(&cx));
    HostLabel { machine, boot, ..label }
}
