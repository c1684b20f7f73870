#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

use super::*;
use parking_lot::Mutex;
use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    sync::Arc,
};

/// A metadata service that answers by the head of the request, and records requests.
fn service(answer: fn(&str) -> Option<String>) -> (Url, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = Url::parse(&format!("http://{}", listener.local_addr().expect("is bound"))).expect("a URL");
    let queried = Arc::<Mutex<Vec<String>>>::default();
    let seen = Arc::clone(&queried);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (mut reader, mut head) = (BufReader::new(stream.try_clone().expect("clones")), String::new());
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|read| read > 0) {}
            seen.lock().push(head.clone());
            let answer = match answer(&head) {
                Some(body) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
                None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            };
            let mut stream = stream;
            drop(stream.write_all(answer.as_bytes()));
            // Keeps the connection open.
            std::mem::forget(stream);
        }
    });
    (url, queried)
}

fn place(cloud: CloudSetting, url: Option<Url>) -> HostLocation {
    HostLocation { cloud, geography: None, metadata_url: url, cloud_tags: vec!["team".to_owned()] }
}

fn nowhere() -> (tempfile::TempDir, CollectorContext) {
    let host = tempfile::tempdir().expect("temp dir");
    let context = CollectorContext::new(host.path(), Arc::new(|| 1));
    (host, context)
}

#[test]
fn azure_is_asked_once_with_its_header() {
    let (url, queried) = service(|head| {
        (head.starts_with("GET /metadata/instance?api-version=2021-02-01 ") && head.contains("\r\nMetadata: true\r\n")).then(|| {
            serde_json::json!({"compute": {"location": "uksouth", "zone": "2", "vmId": "id", "vmSize": "Standard_D2s_v5",
                "subscriptionId": "sub", "tagsList": [{"name": "team", "value": "blue"}, {"name": "secret", "value": "no"}],
                "storageProfile": {"imageReference": {"publisher": "Debian", "offer": "debian-12", "sku": "12", "version": "1"}}}})
            .to_string()
        })
    });
    let (_host, context) = nowhere();
    let place = place(CloudSetting::Azure, Some(url));
    let instance = instance(&place, &context).expect("answers");
    assert_eq!(
        instance,
        CloudInstance {
            cloud: "azure".to_owned(),
            region: Some("uksouth".to_owned()),
            zone: Some("2".to_owned()),
            instance_id: Some("id".to_owned()),
            instance_type: Some("Standard_D2s_v5".to_owned()),
            image: Some("Debian:debian-12:12:1".to_owned()),
            account: Some("sub".to_owned()),
            tags: BTreeMap::from([("team".to_owned(), "blue".to_owned())]),
        }
    );
    assert_eq!(geography(&place, Some(&instance)), Ok(Some(HostGeo::UnitedKingdom)));
    assert_eq!(queried.lock().len(), 1);
}

#[test]
fn aws_is_asked_with_a_token_and_for_allowed_tags_alone() {
    let (url, queried) = service(|head| {
        let with_token = head.contains("\r\nX-aws-ec2-metadata-token: a-token\r\n");
        match head.split_whitespace().nth(1)? {
            "/latest/api/token" => {
                let put = head.starts_with("PUT ") && head.contains("\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n");
                put.then(|| "a-token".to_owned())
            }
            "/latest/dynamic/instance-identity/document" if with_token => Some(
                serde_json::json!({"region": "sa-east-1", "availabilityZone": "sa-east-1a", "instanceId": "i-1",
                    "instanceType": "t3.micro", "imageId": "ami-1", "accountId": "42"})
                .to_string(),
            ),
            "/latest/meta-data/tags/instance/team" if with_token => Some("blue".to_owned()),
            _ => None,
        }
    });
    let (_host, context) = nowhere();
    let place = place(CloudSetting::Aws, Some(url));
    let instance = instance(&place, &context).expect("answers");
    assert_eq!((instance.region.as_deref(), instance.account.as_deref()), (Some("sa-east-1"), Some("42")));
    assert_eq!(instance.tags.get("team").map(String::as_str), Some("blue"));
    assert_eq!(geography(&place, Some(&instance)), Ok(Some(HostGeo::Brazil)));
    assert_eq!(queried.lock().len(), 3);
}

#[test]
fn google_is_asked_value_by_value_since_the_whole_document_holds_scripts() {
    let (url, queried) = service(|head| {
        let flavor = head.contains("\r\nMetadata-Flavor: Google\r\n");
        let value = match head.split_whitespace().nth(1)?.strip_prefix("/computeMetadata/v1/")? {
            "instance/zone" => "projects/1/zones/europe-west10-b",
            "instance/id" => "77",
            "instance/machine-type" => "projects/1/machineTypes/e2-small",
            "instance/image" => "projects/debian-cloud/global/images/debian-12",
            "project/project-id" => "acme",
            _ => return None,
        };
        flavor.then(|| value.to_owned())
    });
    let (_host, context) = nowhere();
    let place = place(CloudSetting::Gcp, Some(url));
    let instance = instance(&place, &context).expect("answers");
    assert_eq!(
        (instance.region.as_deref(), instance.zone.as_deref()),
        (Some("europe-west10"), Some("europe-west10-b"))
    );
    assert_eq!(instance.instance_type.as_deref(), Some("e2-small"));
    assert!(instance.tags.is_empty());
    assert_eq!(geography(&place, Some(&instance)), Ok(Some(HostGeo::Europe)));
    assert!(!queried.lock().iter().any(|head| head.contains("recursive")));
}

#[test]
fn nobody_is_asked_unless_the_firmware_or_the_configuration_names_a_cloud() {
    for (file, text, expected) in [
        ("chassis_asset_tag", AZURE_ASSET_TAG, Some(Cloud::Azure)),
        ("sys_vendor", "Microsoft Corporation", None),
        ("sys_vendor", "Amazon EC2", Some(Cloud::Aws)),
        ("bios_version", "4.11.amazon", Some(Cloud::Aws)),
        ("product_name", "Google Compute Engine", Some(Cloud::Gcp)),
        ("product_name", "Standard PC (Q35 + ICH9, 2009)", None),
    ] {
        let (host, context) = nowhere();
        let dmi = host.path().join("sys/class/dmi/id");
        std::fs::create_dir_all(&dmi).expect("makes");
        std::fs::write(dmi.join(file), text).expect("writes");
        assert_eq!(cloud(CloudSetting::Auto, &context), expected, "{text}");
        assert_eq!(cloud(CloudSetting::Off, &context), None);
    }
    let (_host, context) = nowhere();
    let (url, queried) = service(|_| None);
    assert_eq!(instance(&place(CloudSetting::Off, Some(url.clone())), &context), None);
    assert_eq!(instance(&place(CloudSetting::Auto, Some(url)), &context), None);
    assert!(queried.lock().is_empty());
}

#[test]
fn a_service_that_says_nothing_costs_a_second_and_what_is_stated_comes_first() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = Url::parse(&format!("http://{}", silent.local_addr().expect("is bound"))).expect("a URL");
    let (_host, context) = nowhere();
    let began = Instant::now();
    assert_eq!(instance(&place(CloudSetting::Azure, Some(url)), &context), None);
    assert!(began.elapsed() < 3 * METADATA_TIMEOUT, "{:?}", began.elapsed());
    let region = |region: &str| CloudInstance {
        cloud: "aws".to_owned(),
        region: Some(region.to_owned()),
        ..CloudInstance::default()
    };
    let unknown = geography(&place(CloudSetting::Aws, None), Some(&region("me-south-1"))).expect_err("is in no table");
    assert!(unknown.to_string().contains("set [host] geography"), "{unknown}");
    let stated = HostLocation { geography: Some(HostGeo::Europe), ..place(CloudSetting::Aws, None) };
    assert_eq!(geography(&stated, Some(&region("me-south-1"))), Ok(Some(HostGeo::Europe)));
    assert_eq!(geography(&place(CloudSetting::Off, None), None), Ok(None));
}
