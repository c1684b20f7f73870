//! A policy, directives and an artifact request, as JSON; and what an agent asks a policy.
#![no_main]

use vedette_wire::policy::{ArtifactRequest, Directives, Policy, ReportedCollectors};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = serde_json::from_str::<ArtifactRequest>(text);
    let _ = serde_json::from_str::<Directives>(text);
    let _ = text.parse::<ReportedCollectors>();
    if let Ok(policy) = serde_json::from_str::<Policy>(text) {
        let _ = policy.check();
        policy.allows("syslog");
        let written = serde_json::to_string(&policy).expect("serializes");
        assert_eq!(serde_json::from_str::<Policy>(&written).expect("is one"), policy);
    }
});
