//! The only place that decides whether a collector runs.
//!
//! Two sources decide: the organization's signed policy and the host's configuration. Either can switch a collector
//! off. On the standard tier neither can if a required group would have no collector left.

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
    pub(crate) run: bool,
    /// The policy switches it off: what is written meanwhile is not collected, unless `policy.resume` is `cursor`.
    pub(crate) by_policy: bool,
    /// Why it is off, or runs in spite of its settings.
    pub(crate) why: Option<String>,
    /// The configuration demands what the policy does not allow.
    pub(crate) conflict: bool,
}

/// Decides on each collector, in the order of the plans.
pub(crate) fn decide(policy: &Policy, plans: &[ConfiguredCollector], context: &CollectorContext) -> Vec<Decision> {
    // A policy cannot switch artifacts off.
    let of_policy = |id: &str| {
        let artifact = vedette_collectors::find(id).is_some_and(|spec| spec.class == CollectorClass::Artifact);
        policy.collectors.get(id).and_then(|collector| collector.enabled).filter(|_| !artifact)
    };
    // Collectors that configuration and policy leave on, and that would observe something.
    let selected: BTreeSet<&'static str> = plans
        .iter()
        .filter(|plan| plan.settings.enabled() && of_policy(plan.spec.id) != Some(false))
        .map(|plan| plan.spec.id)
        .collect();
    let observes = |plan: &ConfiguredCollector| {
        let context = CollectorContext { enabled: selected.clone(), ..context.clone() };
        selected.contains(plan.spec.id) && matches!(plan.settings.build(&context), Ok(Plan::Poll(..) | Plan::Watch(_)))
    };
    plans
        .iter()
        .map(|plan| {
            let id = plan.spec.id;
            let off = Decision {
                id,
                settings: settings(policy, plan),
                run: false,
                by_policy: false,
                why: None,
                conflict: false,
            };
            let revision = policy.revision;
            let required = REQUIRED.iter().find(|(_, ids)| ids.contains(&id)).filter(|_| policy.tier == Tier::Standard);
            if !policy.collect && plan.spec.class != CollectorClass::Artifact {
                let why = Some(format!("policy revision {revision} switches collection off"));
                return Decision { by_policy: true, why, ..off };
            }
            if selected.contains(id) {
                return Decision { run: true, ..off };
            }
            let missing = required.filter(|(_, ids)| {
                // The first of a group runs in place of the others.
                ids[0] == id && !plans.iter().any(|other| ids.contains(&other.spec.id) && observes(other))
            });
            if let Some((what, _)) = missing {
                let who = if plan.settings.enabled() {
                    format!("policy revision {revision}")
                } else {
                    "the configuration".to_owned()
                };
                let why = format!("{who} switches it off; the standard tier requires {what}, so it runs");
                return Decision { run: true, why: Some(why), conflict: !plan.settings.enabled(), ..off };
            }
            if plan.settings.enabled() {
                let why = Some(format!("policy revision {revision} switches it off"));
                return Decision { by_policy: true, why, ..off };
            }
            off
        })
        .collect()
}

/// The host's settings of a collector, with those of the policy.
fn settings(policy: &Policy, plan: &ConfiguredCollector) -> AnySettings {
    let every = policy.collectors.get(plan.spec.id).and_then(|collector| collector.every_seconds);
    every.map_or_else(|| plan.settings.clone(), |seconds| plan.settings.with_every(Duration::from_secs(seconds.into())))
}
