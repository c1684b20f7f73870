use super::*;
use crate::config::ConfiguredCollector;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use vedette_collectors::{CollectorClass, CollectorContext, REGISTRY, Spec};
use vedette_wire::{
    OrganizationId,
    policy::{CollectorPolicy, Policy, Tier},
};

fn plans(off: &[&str]) -> Vec<ConfiguredCollector> {
    let configured = |spec: &'static Spec| {
        let mut settings = toml::Table::new();
        if spec.class != CollectorClass::Artifact {
            let enabled = !off.contains(&spec.id) && !["syslog_listener", "container_logs"].contains(&spec.id);
            settings.insert("enabled".to_owned(), enabled.into());
        }
        ConfiguredCollector { spec, settings: (spec.parse)(settings).expect("are settings") }
    };
    REGISTRY.iter().map(configured).collect()
}

fn policy(tier: Tier, collect: bool) -> Policy {
    let organization = OrganizationId("01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("a UUID"));
    Policy { collect, revision: 5, ..Policy::first(organization, tier, 1) }
}

/// Collectors that run, those that run in spite of the configuration, and those that the policy switches off, on a host without
/// files.
fn decided(policy: &Policy, off: &[&str]) -> (BTreeSet<&'static str>, Vec<&'static str>, Vec<&'static str>) {
    let host = tempfile::tempdir().expect("temp dir");
    let decisions = decide(policy, &plans(off), &CollectorContext::new(host.path(), Arc::new(|| 1)));
    let of = |which: fn(&Decision) -> bool| decisions.iter().filter(|d| which(d)).map(|d| d.id).collect::<Vec<_>>();
    (of(|d| d.runs).into_iter().collect(), of(|d| d.is_conflict), of(|d| d.is_off_by_policy))
}

#[test]
fn with_collection_off_nothing_runs_and_all_of_it_is_off_by_policy() {
    let (run, conflicts, by_policy) = decided(&policy(Tier::Free, false), &["syslog"]);
    assert_eq!((run, conflicts.len()), (BTreeSet::from(["artifacts"]), 0));
    assert_eq!(
        by_policy.len(),
        REGISTRY.len() - 1,
        "also those that the configuration switches off, since it may switch them on later"
    );
}

#[test]
fn the_host_may_switch_off_any_collector_on_free_and_only_optional_ones_on_standard() {
    let (run, conflicts, _) = decided(&policy(Tier::Free, true), &["processes", "syslog", "journal"]);
    assert!(!run.contains("processes") && !run.contains("syslog") && conflicts.is_empty());
    let (run, conflicts, _) = decided(&policy(Tier::Standard, true), &["processes", "crash_dumps"]);
    assert!(run.contains("processes") && run.contains("crash_dumps"));
    assert_eq!(conflicts, ["processes", "crash_dumps"]);
    let (run, conflicts, _) = decided(&policy(Tier::Standard, true), &[]);
    assert!(!run.contains("syslog_listener") && conflicts.is_empty(), "it is off by default and nobody requires it");
}

#[test]
fn one_collector_of_system_logs_suffices_if_its_source_exists() {
    let (run, conflicts, _) = decided(&policy(Tier::Standard, true), &["journal"]);
    assert!(run.contains("syslog") && conflicts.is_empty());
    // This host has no journal, so the journal collector observes nothing.
    let (run, conflicts, _) = decided(&policy(Tier::Standard, true), &["syslog"]);
    assert!(run.contains("syslog"));
    assert_eq!(conflicts, ["syslog"]);
}

#[test]
fn a_policy_switches_single_collectors_and_sets_how_often_they_look() {
    let mut policy = policy(Tier::Free, true);
    let one = CollectorPolicy { enabled: Some(false), every_seconds: None };
    policy.collectors.insert("processes".to_owned(), one);
    let often = CollectorPolicy { enabled: None, every_seconds: Some(7) };
    policy.collectors.insert("sessions".to_owned(), often.clone());
    policy.collectors.insert("syslog".to_owned(), often);
    let (run, _, by_policy) = decided(&policy, &[]);
    assert!(!run.contains("processes") && run.contains("sessions"));
    assert_eq!(by_policy, ["processes"]);
    let decisions = decide(&policy, &plans(&[]), &CollectorContext::new("/nonexistent", Arc::new(|| 1)));
    let every = |id: &str| decisions.iter().find(|d| d.id == id).and_then(|d| d.settings.every());
    assert_eq!(every("sessions"), Some(Duration::from_secs(7)));
    assert_eq!(every("syslog"), None, "it has no such setting");
}

mod store {
    use super::*;
    use crate::identity::{Enrollment, IdentityDir};
    use crate::runtime::policy::store::PolicyError;
    use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData, SigningKey};
    use vedette_wire::policy::SignedPolicy;

    fn sign(key: &KeyPair, policy: &Policy) -> SignedPolicy {
        let policy = serde_json::to_string(policy).expect("serializes");
        let signature = hex::encode(key.sign(&SignedPolicy::message(&policy)).expect("signs"));
        SignedPolicy { policy, signature }
    }

    #[test]
    fn only_a_newer_policy_of_this_organization_signed_by_its_workspace_is_accepted_and_stored() {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let (dir, key) = (tempfile::tempdir().expect("temp dir"), KeyPair::generate_for(&PKCS_ED25519).expect("makes"));
        let identity = IdentityDir::new(dir.path());
        let enrollment = Enrollment {
            organization: policy(Tier::Free, true).organization,
            policy_revision: 5,
            policy_key: Some(hex::encode(key.der_bytes())),
            ..Enrollment::sample("")
        };
        let load = || PolicyStore::load(&identity, &enrollment);
        let problem = |store: &PolicyStore| store.problem().unwrap_or_default();
        let store = load();
        assert!(store.policy().is_none() && problem(&store).contains("cannot be used"), "{store:?}");
        assert!(store.subscribe().borrow().are_own_events_off, "nothing is emitted without a policy");
        let first = sign(&key, &policy(Tier::Free, true));
        store_policy(&identity, &first).expect("writes");
        let store = load();
        assert_eq!((store.revision(), store.problem()), (5, None));
        let mut followed = store.subscribe();
        assert!(!followed.borrow_and_update().are_own_events_off);

        let later = |change: fn(&mut Policy)| {
            let mut later = Policy { revision: 6, ..policy(Tier::Free, false) };
            change(&mut later);
            later
        };
        let other = KeyPair::generate_for(&PKCS_ED25519).expect("makes");
        assert_eq!(store.accept(&sign(&other, &later(|_| ()))).err(), Some(PolicyError::Forged));
        let mut changed = sign(&key, &later(|_| ()));
        changed.policy = changed.policy.replace("\"revision\":6", "\"revision\":7");
        assert_eq!(store.accept(&changed).err(), Some(PolicyError::Forged));
        let foreign = later(|policy| {
            policy.organization = OrganizationId("01890a5d-ac96-774b-bcce-b302099a8058".parse().expect("a UUID"))
        });
        assert!(matches!(store.accept(&sign(&key, &foreign)), Err(PolicyError::OtherOrganization(_))));
        for revision in [4, 5] {
            let older = Policy { revision, ..later(|_| ()) };
            assert_eq!(store.accept(&sign(&key, &older)).err(), Some(PolicyError::NotNewer(revision, 5)));
        }
        let forbidden = later(|policy| policy.tier = Tier::Standard);
        assert!(matches!(store.accept(&sign(&key, &forbidden)), Err(PolicyError::Invalid(_))));
        assert_eq!(load().revision(), 5, "none of them was kept");
        assert!(
            problem(&store).contains("standard tier") && store.revision() == 5,
            "the last reason is shown: {store:?}"
        );

        store.accept(&sign(&key, &later(|_| ()))).expect("is newer");
        let status = followed.borrow_and_update().clone();
        assert_eq!(
            (status.policy.map(|policy| policy.revision), status.problem),
            (Some(6), None),
            "subscribers see the new policy"
        );
        let store = load();
        let collect = store.policy().map(|policy| policy.collect);
        assert_eq!((store.revision(), collect, store.problem()), (6, Some(false), None));
        let path = identity.path("policy.json");
        let whole = std::fs::read(&path).expect("is there");
        identity.write("policy.json", &whole[..whole.len() / 2]).expect("writes");
        let store = load();
        assert!(store.policy().is_none() && problem(&store).contains("cannot be used"), "{store:?}");
        // A release without policies enrolled: there is neither a file nor a key to verify with.
        std::fs::remove_file(path).expect("removes");
        let store = PolicyStore::load(&identity, &Enrollment { policy_key: None, ..enrollment.clone() });
        assert_eq!(store.revision(), 5);
        assert!(problem(&store).contains("no key"), "{store:?}");
    }
}
