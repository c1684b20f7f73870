//! Location of this host: its cloud's instance metadata, and the geography that follows from it or from the configuration.
//!
//! The three clouds share a link-local address for their metadata services. The agent queries it over plain HTTP, without a
//! proxy or name resolution, and only if the firmware or the configuration names the cloud.
//!
//! Azure: <https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service>. AWS, version 2 with a token:
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>. Google:
//! <https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys>.

use crate::config::{CloudSetting, HostLocation};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};
use url::Url;
use vedette_collectors::{CollectorContext, Dmi};
use vedette_wire::{
    body::CloudInstance,
    geo::{Cloud, HostGeo, UnknownGeography},
};

/// Address of the metadata service (RFC 3927).
const LINK_LOCAL: &str = "http://169.254.169.254";
/// Time limit for all queries together.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum size of a response.
const RESPONSE_BYTES_MAX: u64 = 64 << 10;
/// Chassis asset tag of Azure's machines; Hyper-V elsewhere does not set it.
const AZURE_ASSET_TAG: &str = "7783-7084-3265-9085-8269-3286-77";

/// The cloud of this host; absent on premises, and if the configuration says `off`.
fn cloud(setting: CloudSetting, context: &CollectorContext) -> Option<Cloud> {
    let dmi = match setting {
        CloudSetting::Auto => vedette_collectors::dmi(context),
        _ => Dmi::default(),
    };
    match setting {
        CloudSetting::Off => None,
        CloudSetting::Azure => Some(Cloud::Azure),
        CloudSetting::Aws => Some(Cloud::Aws),
        CloudSetting::Gcp => Some(Cloud::Gcp),
        CloudSetting::Auto if dmi.chassis_asset_tag == AZURE_ASSET_TAG => Some(Cloud::Azure),
        CloudSetting::Auto if dmi.vendor == "Amazon EC2" || dmi.bios_version.contains("amazon") => Some(Cloud::Aws),
        CloudSetting::Auto if dmi.product == "Google Compute Engine" => Some(Cloud::Gcp),
        CloudSetting::Auto => None,
    }
}

/// Instance metadata of this host; absent if it is in no cloud, or if the metadata cannot be read, which is logged.
pub(crate) fn instance(location: &HostLocation, context: &CollectorContext) -> Option<CloudInstance> {
    let cloud = cloud(location.cloud, context)?;
    let base = location.metadata_url.clone().unwrap_or_else(|| Url::parse(LINK_LOCAL).expect("is a URL"));
    let client = MetadataClient { base, deadline: Instant::now() + METADATA_TIMEOUT };
    let metadata = match cloud {
        Cloud::Azure => azure(&client, &location.cloud_tags),
        Cloud::Aws => aws(&client, &location.cloud_tags),
        Cloud::Gcp => gcp(&client, &location.cloud_tags),
    };
    metadata
        .map_err(|err| tracing::warn!(%cloud, error = %err, "cannot read the cloud's instance metadata; records have no cloud fields; set [host] cloud = \"off\" if this host is in no cloud"))
        .ok()
}

/// Geography of this host, from the configuration or the cloud's region; absent if neither is known.
///
/// # Errors
/// If the region is not listed; a geography is never guessed.
pub(crate) fn geography(
    location: &HostLocation,
    instance: Option<&CloudInstance>,
) -> Result<Option<HostGeo>, UnknownGeography> {
    if location.geography.is_some() {
        return Ok(location.geography);
    }
    let cloud = |name: &str| [Cloud::Azure, Cloud::Aws, Cloud::Gcp].into_iter().find(|cloud| cloud.name() == name);
    let region = instance.and_then(|instance| Some((cloud(&instance.cloud)?, instance.region.clone()?)));
    region.map(|(cloud, region)| HostGeo::of_region(cloud, &region)).transpose()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// The last segment of `projects/123/zones/europe-west2-a`.
fn last(path: &str) -> Option<String> {
    path.rsplit('/').next().map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned)
}

fn azure(client: &MetadataClient, tags: &[String]) -> io::Result<CloudInstance> {
    let response = client.get("/metadata/instance?api-version=2021-02-01", &[("Metadata", "true")])?;
    let response: Value = serde_json::from_str(&response)?;
    let (compute, image) = (&response["compute"], &response["compute"]["storageProfile"]["imageReference"]);
    let parts = ["publisher", "offer", "sku", "version"].map(|key| text(&image[key]));
    let image: Vec<String> = parts.into_iter().flatten().collect();
    let listed = compute["tagsList"].as_array().cloned().unwrap_or_default();
    let tag = |tag: &Value| Some((text(&tag["name"])?, text(&tag["value"])?));
    Ok(CloudInstance {
        cloud: Cloud::Azure.name().to_owned(),
        region: text(&compute["location"]),
        zone: text(&compute["zone"]),
        instance_id: text(&compute["vmId"]),
        instance_type: text(&compute["vmSize"]),
        image: (!image.is_empty()).then(|| image.join(":")),
        account: text(&compute["subscriptionId"]),
        tags: listed.iter().filter_map(tag).filter(|(name, _)| tags.contains(name)).collect(),
    })
}

fn aws(client: &MetadataClient, tags: &[String]) -> io::Result<CloudInstance> {
    let token = client.send("PUT", "/latest/api/token", &[("X-aws-ec2-metadata-token-ttl-seconds", "60")])?;
    let with_token = [("X-aws-ec2-metadata-token", token.trim())];
    let document: Value =
        serde_json::from_str(&client.get("/latest/dynamic/instance-identity/document", &with_token)?)?;
    // Answers 404 if the instance does not expose its tags.
    let tag = |name: &String| {
        let value = client.get(&format!("/latest/meta-data/tags/instance/{name}"), &with_token).ok()?;
        Some((name.clone(), value))
    };
    Ok(CloudInstance {
        cloud: Cloud::Aws.name().to_owned(),
        region: text(&document["region"]),
        zone: text(&document["availabilityZone"]),
        instance_id: text(&document["instanceId"]),
        instance_type: text(&document["instanceType"]),
        image: text(&document["imageId"]),
        account: text(&document["accountId"]),
        tags: tags.iter().filter_map(tag).collect(),
    })
}

fn gcp(client: &MetadataClient, tags: &[String]) -> io::Result<CloudInstance> {
    // Queries single values: the whole document includes start-up scripts and their secrets.
    let get = |path: &str| client.get(&format!("/computeMetadata/v1/{path}"), &[("Metadata-Flavor", "Google")]);
    let zone = last(&get("instance/zone")?);
    let attribute = |name: &String| Some((name.clone(), get(&format!("instance/attributes/{name}")).ok()?));
    Ok(CloudInstance {
        cloud: Cloud::Gcp.name().to_owned(),
        region: zone.as_deref().and_then(|zone| zone.rsplit_once('-')).map(|(region, _)| region.to_owned()),
        zone,
        instance_id: get("instance/id").ok(),
        instance_type: get("instance/machine-type").ok().as_deref().and_then(last),
        image: get("instance/image").ok().filter(|image| !image.is_empty()),
        account: get("project/project-id").ok(),
        tags: tags.iter().filter_map(attribute).collect::<BTreeMap<_, _>>(),
    })
}

/// Queries one metadata service within a time limit.
struct MetadataClient {
    base: Url,
    deadline: Instant,
}

impl MetadataClient {
    fn get(&self, path: &str, headers: &[(&str, &str)]) -> io::Result<String> {
        self.send("GET", path, headers)
    }

    /// Sends an HTTP/1.0 request: no proxy, redirect or encoding.
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<String> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no response within the time limit"));
        }
        let address = self.base.socket_addrs(|| None)?.first().copied().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut stream = TcpStream::connect_timeout(&address, left)?;
        stream.set_read_timeout(Some(left))?;
        stream.set_write_timeout(Some(left))?;
        let host = self.base.host_str().unwrap_or_default();
        let mut request = format!("{method} {path} HTTP/1.0\r\nHost: {host}\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if method == "PUT" {
            request.push_str("Content-Length: 0\r\n");
        }
        stream.write_all(format!("{request}\r\n").as_bytes())?;
        let mut response = Vec::new();
        let mut limited = stream.take(RESPONSE_BYTES_MAX);
        let mut block = [0; 4096];
        loop {
            let read = limited.read(&mut block)?;
            response.extend_from_slice(&block[..read]);
            if read == 0 || is_complete(&response) {
                break;
            }
            if Instant::now() > self.deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no complete response within the time limit"));
            }
        }
        let response = String::from_utf8_lossy(&response);
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
        match head.split_whitespace().nth(1) {
            Some("200") => Ok(body.to_owned()),
            Some(status) => Err(io::Error::other(format!("{path}: HTTP status {status}"))),
            None => Err(io::Error::other(format!("{path}: no HTTP response"))),
        }
    }
}

/// Whether the body is complete by its stated length. A service may keep the connection open.
fn is_complete(response: &[u8]) -> bool {
    let text = String::from_utf8_lossy(response);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_some_and(|length| body.len() >= length)
}

#[cfg(test)]
mod tests;
