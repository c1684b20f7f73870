//! The only place that decides whether a collector runs.
//!
//! Two sources decide: the organization's signed policy and the host's configuration. Either can switch a collector
//! off, but artifacts, which only the configuration can. On the standard tier neither can if a required group would have no
//! collector left.

use crate::config::ConfiguredCollector;
use std::{collections::BTreeSet, time::Duration};
use vedette_collectors::{AnySettings, CollectorClass, CollectorContext, Plan};
use vedette_wire::policy::{Policy, REQUIRED, Tier};

/// Decision on one collector.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decision {
    pub(crate) id: &'static str,
    /// Its settings, including those of the policy.
    pub(crate) settings: AnySettings,
    pub(crate) runs: bool,
    /// The policy switches it off: what is written meanwhile is not collected, unless `policy.resume` is `cursor`.
    pub(crate) is_off_by_policy: bool,
    /// Why it is off, or runs in spite of its settings.
    pub(crate) why: Option<String>,
    /// The configuration switches off a collector that the standard tier requires.
    pub(crate) is_conflict: bool,
}

/// Decides on each collector, in their order.
pub(crate) fn decide(policy: &Policy, configured: &[ConfiguredCollector], context: &CollectorContext) -> Vec<Decision> {
    // A policy cannot switch artifacts off.
    let of_policy = |id: &str| {
        let artifact = vedette_collectors::find(id).is_some_and(|spec| spec.class == CollectorClass::Artifact);
        policy.collectors.get(id).and_then(|collector| collector.enabled).filter(|_| !artifact)
    };
    // Collectors that neither the configuration nor the policy switches off.
    let selected: BTreeSet<&'static str> = configured
        .iter()
        .filter(|collector| collector.settings.enabled() && of_policy(collector.spec.id) != Some(false))
        .map(|collector| collector.spec.id)
        .collect();
    // Whether one of them would observe something.
    let observes = |collector: &ConfiguredCollector| {
        let context = CollectorContext { enabled: selected.clone(), ..context.clone() };
        selected.contains(collector.spec.id)
            && matches!(collector.settings.build(&context), Ok(Plan::Poll(..) | Plan::Watch(_)))
    };
    configured
        .iter()
        .map(|collector| {
            let id = collector.spec.id;
            let off = Decision {
                id,
                settings: settings(policy, collector),
                runs: false,
                is_off_by_policy: false,
                why: None,
                is_conflict: false,
            };
            let revision = policy.revision;
            let required = REQUIRED.iter().find(|(_, ids)| ids.contains(&id)).filter(|_| policy.tier == Tier::Standard);
            if !policy.collect && collector.spec.class != CollectorClass::Artifact {
                let why = Some(format!("policy revision {revision} switches collection off"));
                return Decision { is_off_by_policy: true, why, ..off };
            }
            if selected.contains(id) {
                return Decision { runs: true, ..off };
            }
            let missing = required.filter(|(_, ids)| {
                // The first of a group runs in place of the others.
                ids[0] == id && !configured.iter().any(|other| ids.contains(&other.spec.id) && observes(other))
            });
            if let Some((what, _)) = missing {
                let who = if collector.settings.enabled() {
                    format!("policy revision {revision}")
                } else {
                    "the configuration".to_owned()
                };
                let why = format!("{who} switches it off; the standard tier requires {what}, so it runs");
                return Decision { runs: true, why: Some(why), is_conflict: !collector.settings.enabled(), ..off };
            }
            if collector.settings.enabled() {
                let why = Some(format!("policy revision {revision} switches it off"));
                return Decision { is_off_by_policy: true, why, ..off };
            }
            off
        })
        .collect()
}

/// The host's settings of a collector, with those of the policy.
fn settings(policy: &Policy, collector: &ConfiguredCollector) -> AnySettings {
    let every = policy.collectors.get(collector.spec.id).and_then(|collector| collector.every_seconds);
    every.map_or_else(
        || collector.settings.clone(),
        |seconds| collector.settings.with_every(Duration::from_secs(seconds.into())),
    )
}
