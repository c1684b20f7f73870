use super::*;
use crate::runtime::delivery::LaneDelivery;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vedette_transport::Outcome;
use vedette_wire::{AgentId, BatchKey, Compression, Epoch, LaneName, OrganizationId, frame, id::Uuid};

/// Answers requests of the renewed certificate, which a header stands for, with one status and all others with another; counts
/// the former.
async fn workspace(renewed: u16, present: u16) -> (String, Arc<Mutex<u32>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("is bound");
    let seen = Arc::<Mutex<u32>>::default();
    let count = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (mut request, mut block) = (Vec::new(), [0; 4096]);
            while !request.ends_with(b"sealed") {
                let got = socket.read(&mut block).await.expect("reads");
                request.extend_from_slice(&block[..got]);
            }
            let of_renewed = String::from_utf8_lossy(&request).contains("x-renewed");
            *count.lock() += u32::from(of_renewed);
            let status = if of_renewed { renewed } else { present };
            let body = match status {
                200 => r#"{"duplicate":false,"policy_revision":1,"limits":{"batch_bytes_max":1,"plain_bytes_max":1}}"#,
                _ => r#"{"status":0,"code":"identity","title":"not admitted"}"#,
            };
            let length = body.len();
            let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            socket.write_all(answer.as_bytes()).await.expect("writes");
        }
    });
    (format!("http://{address}"), seen)
}

fn posting(dir: &std::path::Path, url: &str) -> WorkspaceClient {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let identity = IdentityDir::new(dir);
    identity.write("cert.pem", b"present").expect("writes");
    let enrollment = Enrollment::sample(url);
    let client = |headers: &[&'static str]| {
        let headers = headers.iter().map(|name| ((*name).parse().expect("a name"), "1".parse().expect("a value")));
        let client = reqwest::Client::builder().no_proxy().default_headers(headers.collect());
        WorkspaceApi::new(client.build().expect("builds"), url)
    };
    let fingerprints = fingerprints(&identity);
    WorkspaceClient {
        options: (None, Roots::Ca),
        state: Mutex::new(State { post: client(&[]), fingerprints, checked: Instant::now(), refused: fingerprints }),
        trial: Mutex::new(Some(Trial { post: client(&["x-renewed"]), certificate: "renewed".to_owned() })),
        policy: Mutex::new(watch::channel(PolicyStatus::default()).1),
        endpoints: Mutex::new(Endpoints::new(&enrollment, (Duration::from_secs(60), Duration::from_secs(300)))),
        probing: AtomicBool::new(false),
        closed: AtomicBool::new(false),
        identity,
        enrollment,
    }
}

fn a_frame() -> Vec<u8> {
    let key = BatchKey {
        organization: OrganizationId(Uuid::nil()),
        agent: AgentId([1; 16]),
        lane: LaneName::Records,
        epoch: Epoch(1),
        seq: 1,
    };
    let (compression, digest) = (Compression::Zstd, frame::sha256(b"sealed"));
    frame::build(&frame::FrameHead { key, compression, sealed: 1, records: 1, digest }, b"sealed")
}

/// Outcome for two answers: whether the batch is delivered, whether the renewed certificate is still on trial, and which
/// certificate is on disk.
async fn outcome(renewed: u16, present: u16) -> (bool, bool, String) {
    let dir = tempfile::tempdir().expect("temp dir");
    let (url, seen) = workspace(renewed, present).await;
    let posting = posting(dir.path(), &url);
    let delivered = matches!(posting.deliver(a_frame()).await, Answer::Acknowledged { .. });
    let trying = posting.has_trial();
    drop(posting.deliver(a_frame()).await);
    assert_eq!(*seen.lock(), if present == 200 && renewed != 200 { 1 } else { 2 });
    (delivered, trying, std::fs::read_to_string(dir.path().join("cert.pem")).expect("is there"))
}

#[tokio::test]
async fn a_renewed_certificate_that_does_not_deliver_is_given_up_where_the_old_one_does() {
    assert_eq!(outcome(403, 200).await, (true, false, "present".to_owned()));
    assert_eq!(outcome(503, 503).await, (false, true, "present".to_owned()), "the workspace is away, as it seems");
    assert_eq!(outcome(200, 403).await, (true, false, "renewed".to_owned()), "it has delivered and is kept");
}

#[test]
fn one_of_a_pair_does_not_have_batches_wait_for_longer_than_it_takes_to_use_the_other() {
    let retry_after = |seconds| Answer::Retry { after: Some(Duration::from_secs(seconds)), why: String::new() };
    let minute = Some(Duration::from_secs(60));
    for (outcome, most, expected) in [
        (retry_after(3600), minute, Some(60)),
        (retry_after(5), minute, Some(5)),
        (retry_after(3600), None, Some(3600)),
        (Answer::Misdirected { why: String::new() }, minute, None),
    ] {
        let Answer::Retry { after, .. } = limit_retry_after(outcome, most) else { panic!("it is tried again") };
        assert_eq!(after.map(|after| after.as_secs()), expected);
    }
    let alone = limit_retry_after(Answer::Misdirected { why: String::new() }, None);
    assert!(matches!(alone, Answer::Misdirected { .. }));
}

/// What a lane must know of an answer is in the outcome; what only a workspace says is taken once, by whoever acts on it.
#[tokio::test]
async fn the_lane_gets_an_outcome_and_the_agent_what_the_workspace_says_besides() {
    let dir = tempfile::tempdir().expect("temp dir");
    let delivery = LaneDelivery::new(&Arc::new(posting(dir.path(), "https://one:1")));
    let codec = delivery.codec();
    let why = || "no".to_owned();
    let minute = Some(Duration::from_secs(60));
    let acknowledged = Answer::Acknowledged {
        duplicate: false,
        policy_revision: 9,
        compression: Some(Compression::Gzip),
        lost: Some((2, 3)),
    };
    for (answer, expected) in [
        (acknowledged, Outcome::Accepted),
        (Answer::Retry { after: minute, why: why() }, Outcome::Retry { after: minute, why: why() }),
        (
            Answer::Quarantine { code: vedette_wire::ProblemCode::Shape, why: why() },
            Outcome::Rejected { code: "shape".to_owned(), why: why() },
        ),
        (Answer::Purge, Outcome::Forbidden),
        (Answer::TooLarge { why: why() }, Outcome::Split { why: why() }),
        (Answer::Damaged { why: why() }, Outcome::Damaged { why: why() }),
        (Answer::Conflict { why: why() }, Outcome::Reseal { why: why() }),
    ] {
        assert_eq!(delivery.outcome(5, answer), expected);
    }
    let half = Duration::from_secs(30);
    for answer in [Answer::Renew { why: why() }, Answer::Identity { why: why() }, Answer::Misdirected { why: why() }] {
        let Outcome::Retry { after: Some(after), .. } = delivery.outcome(1, answer) else {
            panic!("it is tried again")
        };
        assert!((half..=2 * half).contains(&after), "{after:?}");
    }
    assert_eq!(*codec.borrow(), Some(Compression::Gzip));
    assert!(delivery.has_newer_policy(8) && !delivery.has_newer_policy(9));
    assert_eq!((delivery.take_lost(), delivery.take_lost()), (Some((5, (2, 3))), None));
    assert!(!delivery.take_rekey());
    let rekey = delivery.outcome(1, Answer::Rekey { why: why() });
    assert!(matches!(rekey, Outcome::Retry { after: Some(_), .. }));
    assert!(delivery.take_rekey() && !delivery.take_rekey(), "it is demanded once");
}
