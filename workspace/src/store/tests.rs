use super::*;
use crate::keys::Signer;
use vedette_wire::{AgentId, policy::Tier};

async fn control() -> (tempfile::TempDir, ControlStore) {
    let dir = tempfile::tempdir().expect("temp dir");
    let control = ControlStore::create(dir.path(), WorkspaceGeo::Europe).await.expect("makes");
    (dir, control)
}

/// Adds an organization on the free tier, with its own signer.
pub(in crate::store) async fn add(control: &ControlStore, name: &str) -> Result<OrganizationId> {
    let dir = tempfile::tempdir().expect("temp dir");
    let change = Change { who: "somebody", reason: "a test", now: 1 };
    control.add_organization(name, Tier::Free, &Signer::create(dir.path()).expect("makes"), change).await
}

fn enrollment() -> Enrollment<'static> {
    Enrollment { agent: AgentId([7; 16]), hostname: "web1", machine: None, version: "0.1.0" }
}

#[tokio::test]
async fn a_token_enrolls_as_often_as_it_says_and_not_after_it_expires() {
    let (_dir, control) = control().await;
    add(&control, "acme").await.expect("adds");
    let organization = control.organization("acme").await.expect("is there");
    control.add_token(&organization, "d1", 1, 1, 100).await.expect("adds");
    control.add_token(&organization, "d2", 5, 1, 100).await.expect("adds");
    assert_eq!(control.enroll("d1", &enrollment(), 50).await.expect("runs").expect("enrolls").id, organization.id);
    assert_eq!(control.enroll("d1", &enrollment(), 50).await.expect("runs").err(), Some(TokenError::Used));
    assert_eq!(control.enroll("d2", &enrollment(), 100).await.expect("runs").err(), Some(TokenError::Expired));
    assert_eq!(control.enroll("d3", &enrollment(), 50).await.expect("runs").err(), Some(TokenError::Unknown));
    assert_eq!(
        control
            .admitted_revision(AgentKey { organization: organization.id, agent: AgentId([7; 16]) })
            .await
            .expect("runs"),
        Some(1)
    );
    assert_eq!(
        control
            .admitted_revision(AgentKey { organization: organization.id, agent: AgentId([8; 16]) })
            .await
            .expect("runs"),
        None
    );
}

#[tokio::test]
async fn a_lease_has_one_holder_until_it_expires() {
    let (_dir, control) = control().await;
    assert!(control.lease("a", "one", 10, 20).await.expect("runs"));
    assert!(!control.lease("a", "two", 15, 25).await.expect("runs"));
    assert!(control.lease("a", "one", 15, 30).await.expect("runs"), "its holder renews it");
    assert!(control.lease("a", "two", 31, 40).await.expect("runs"));
}

#[tokio::test]
async fn what_is_missing_or_there_already_is_said() {
    let (dir, control) = control().await;
    add(&control, "acme").await.expect("adds");
    let twice = add(&control, "acme").await.expect_err("is there");
    assert!(twice.to_string().contains("already"), "{twice}");
    let unknown = control.organization("nobody").await.expect_err("is not there");
    assert!(unknown.to_string().contains("org add nobody"), "{unknown}");
    let near = control.organization("acmee").await.expect_err("is not there");
    assert!(near.to_string().contains("is it \"acme\"?"), "{near}");
    let empty = ControlStore::open(&dir.path().join("elsewhere")).await.expect_err("is not there");
    assert!(empty.to_string().contains("vedette-workspace init"), "{empty}");
}

#[tokio::test]
async fn a_marked_batch_is_not_pending_and_a_repeat_stays_marked() {
    let (_dir, control) = control().await;
    let id = add(&control, "acme").await.expect("adds");
    let pending = async || control.pending(id, 10).await.expect("reads");
    assert!(control.record_found("k1", &id.to_string(), "2026-11-23", 5, None, 1).await.expect("notes"));
    assert_eq!(pending().await.batches.len(), 1);
    let versions = [("base_event".to_owned(), (3, 7))].into();
    control.mark_materialised(id, &["k1".to_owned()], &[], &versions).await.expect("marks");
    assert!(!control.record_found("k1", &id.to_string(), "2026-11-23", 5, None, 1).await.expect("notes"));
    let now = pending().await;
    assert_eq!((now.batches.len(), now.versions), (0, versions));
}

#[tokio::test]
async fn the_state_of_organizations_counts_what_waits_what_is_silent_and_what_was_queried() {
    let (_dir, control) = control().await;
    let id = add(&control, "acme").await.expect("adds");
    let other = add(&control, "other").await.expect("adds");
    let organization = control.organization("acme").await.expect("is there");
    control.add_token(&organization, "d1", 9, 1, 100).await.expect("adds");
    control.enroll("d1", &enrollment(), 50).await.expect("runs").expect("enrolls");
    control.record_found("k1", &id.to_string(), "2026-11-23", 5, None, 2_000_000_000).await.expect("records");
    control.record_found("k2", &id.to_string(), "2026-11-23", 7, None, 4_000_000_000).await.expect("records");
    control.record_found("k3", &id.to_string(), "2026-11-23", 7, None, 1).await.expect("records");
    control.mark_materialised(id, &[], &["k3".to_owned()], &Marks::new()).await.expect("marks");
    for _ in 0..2 {
        control.record_query(id, Duration::from_millis(1500)).await.expect("records");
    }
    let key = AgentKey { organization: id, agent: AgentId([7; 16]) };
    control.alert(key, "gap", "a gap", 1).await.expect("raises");
    let states = control.organization_states(5_000_000_000).await.expect("reads");
    let of = |id: OrganizationId| states.iter().find(|state| state.organization == id.to_string()).expect("is there");
    let acme = of(id);
    assert_eq!((acme.agents, acme.silent_agents), (1, 1), "it never was in contact");
    assert_eq!((acme.pending_batches, acme.pending_bytes, acme.pending_seconds), (2, 12, 3.0));
    assert_eq!((acme.unreadable_batches, acme.queries, acme.query_seconds), (1, 2, 3.0));
    assert_eq!(acme.alerts, [("gap".to_owned(), 1)]);
    let other = of(other);
    assert_eq!((other.agents, other.pending_batches, other.queries), (0, 0, 0));
}

#[tokio::test]
async fn a_request_is_offered_at_intervals_also_after_the_clock_was_set_back() {
    let (dir, control) = control().await;
    add(&control, "acme").await.expect("adds");
    let organization = control.organization("acme").await.expect("is there");
    control.add_token(&organization, "d", 1, 1, i64::MAX).await.expect("adds");
    control.enroll("d", &enrollment(), 1).await.expect("runs").expect("enrolls");
    let key = AgentKey { organization: organization.id, agent: AgentId([7; 16]) };
    let signer = Signer::create(dir.path()).expect("makes");
    let change = Change { who: "somebody", reason: "a test", now: 1 };
    control.request_artifact(&organization, (key.agent, "/f", i64::MAX), &signer, change).await.expect("adds");
    let second = 1_000_000_000;
    for (at, is_due) in [(100, true), (105, false), (111, true), (50, true), (55, false)] {
        let now = at * second;
        assert_eq!(control.agents_with_requests(now).await.expect("runs").contains(&key), is_due, "{at} s");
        assert_eq!(control.offer(key, now).await.expect("runs").len(), usize::from(is_due), "{at} s");
    }
}

#[tokio::test]
async fn a_second_workspace_is_not_created_in_a_directory() {
    let (dir, _control) = control().await;
    let err = ControlStore::create(dir.path(), WorkspaceGeo::Europe).await.expect_err("is there already");
    assert_eq!(err.to_string(), "this directory already holds a workspace");
}
