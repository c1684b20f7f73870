//! `vedette enroll`: creates a key and has the workspace certify it.

use crate::{
    cloud,
    config::{self, Resolved, collector_context},
    exit::{Exit, VERSION},
    identity::{self, Enrollment, IdentityDir},
    runtime::policy,
};
use anyhow::{Context, anyhow, bail};
use rcgen::PublicKeyData;
use std::{io::Read, path::Path};
use url::Url;
use vedette_transport::{
    tls::{self, ClientSettings, Proxy, Roots, root_cause},
    workspace::bounded,
};
use vedette_wire::{
    AgentId, Problem,
    geo::{HostGeo, WorkspaceGeo},
    reply::{EnrollReply, EnrollRequest},
};

/// The workspace did not answer, or cannot answer now; a retry may succeed.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub(super) struct Unreachable {
    why: String,
    /// The request may have arrived.
    is_sent: bool,
}

/// The answer cannot be read: the workspace may have admitted the key.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Undecided(String);

/// Options of an enrollment.
pub(super) struct EnrollOptions<'a> {
    pub(super) workspace: &'a str,
    pub(super) ca: Option<&'a Path>,
    /// File with the token; `-` for standard input.
    pub(super) token: &'a Path,
    /// Required geography of the workspace.
    pub(super) geo: Option<WorkspaceGeo>,
    /// Replace an existing enrollment.
    pub(super) again: bool,
}

pub(super) async fn enroll(config: &Resolved, options: &EnrollOptions<'_>) -> Result<(), Exit> {
    let EnrollOptions { workspace, ca, token, geo, again } = *options;
    let url = config::parse_workspace_url(workspace).map_err(|err| Exit::config(err.to_string()))?;
    if let Some(stated) = &config.workspace_url
        && *stated != url
    {
        return Err(Exit::config(format!(
            "workspace.url: the configuration says {stated}, the enrollment is for {url}"
        )));
    }
    let identity = IdentityDir::new(&config.identity_dir);
    let before = if again { identity.take_previous()? } else { identity.enrollment()? };
    if let Some(existing) = &before
        && !again
    {
        let at = &existing.workspace;
        return Err(anyhow!("already enrolled as {} at {at}; use --again to replace it", existing.agent).into());
    }
    let ca_pem = match ca {
        Some(ca) => tls::read_ca(ca)?,
        None if config.roots == Roots::Platform => Vec::new(),
        None => {
            return Err(Exit::config(
                "no CA is given: give the workspace's ca.pem (`--ca`, or `ca` in the bootstrap file), or set \
                 workspace.roots to platform"
                    .to_owned(),
            ));
        }
    };
    let token = read_token(token)?;
    identity.create()?;
    let had_key = identity.path("key.pem").exists();
    let key = identity.key()?;
    let request = EnrollRequest {
        token,
        csr: identity::signing_request(&key)?,
        hostname: vedette_collectors::host_label(&collector_context(config)).hostname,
        machine: identity::machine(&collector_context(config)),
        version: VERSION.to_owned(),
    };
    let geo = expected_geo(config, geo)?;
    let client = tls::client(&ClientSettings {
        ca_pem: ca_pem.clone(),
        roots: config.roots,
        proxy: config.proxy.clone(),
        geo,
        ..ClientSettings::default()
    })?;
    // With the platform's authorities alone the CA file is not consulted.
    let trusted = ca.filter(|_| config.roots != Roots::Platform);
    let reply = match ask(&client, (&url, config.proxy.as_ref()), trusted, &request).await {
        Ok(reply) => reply,
        Err(err) => {
            // After a refusal, or without contact, the workspace does not know the key. After a lost answer it may have
            // admitted it.
            let may_be_known =
                err.is::<Undecided>() || err.downcast_ref::<Unreachable>().is_some_and(|err| err.is_sent);
            if !had_key && !may_be_known {
                drop(std::fs::remove_file(identity.path("key.pem")));
            }
            return Err(err.into());
        }
    };
    if reply.agent != AgentId::of_public_key(&key.subject_public_key_info()) {
        return Err(anyhow!("the workspace's reply is for another agent; enroll again").into());
    }
    let enrollment = keep(&identity, &ca_pem, reply, (&url, before))?;
    tracing::info!(agent = %enrollment.agent, organization = enrollment.organization_name, geo = %enrollment.geo,
        "enrolled; start the agent with `vedette run`");
    Ok(())
}

/// Writes the files of an enrollment. `enrollment.json` comes last, since it marks the others as complete.
fn keep(
    identity: &IdentityDir,
    ca_pem: &[u8],
    reply: EnrollReply,
    (url, before): (&Url, Option<Enrollment>),
) -> anyhow::Result<Enrollment> {
    identity.write("ca.pem", ca_pem)?;
    identity.write("cert.pem", reply.certificate.as_bytes())?;
    if let Some(policy) = &reply.policy {
        policy::store_policy(identity, policy)?;
    }
    let mut enrollment = Enrollment::of(reply, url.as_str().trim_end_matches('/'));
    // Queued records are of the same organization, so they are resealed under the new name.
    if let Some(before) = before.filter(|before| before.organization == enrollment.organization) {
        enrollment.replaces = before.replaces;
        if before.agent != enrollment.agent {
            enrollment.replaces.push(before.agent);
        }
    }
    identity.write("enrollment.json", &serde_json::to_vec_pretty(&enrollment)?)?;
    identity.delete_pending_key()?;
    Ok(enrollment)
}

/// Geography that the workspace must have before it is sent anything: that of this host. Absent if neither the configuration
/// nor a cloud states it.
fn expected_geo(config: &Resolved, bootstrap: Option<WorkspaceGeo>) -> Result<Option<WorkspaceGeo>, Exit> {
    if let (Some(bootstrap), Some(stated)) = (bootstrap, config.workspace_geo)
        && bootstrap != stated
    {
        let message = format!("workspace.geo: the configuration says {stated}, the bootstrap file {bootstrap}");
        return Err(Exit::config(message));
    }
    let stated = bootstrap.or(config.workspace_geo);
    let instance = cloud::instance(&config.place, &collector_context(config));
    let host = cloud::geography(&config.place, instance.as_ref()).map_err(|err| Exit::config(err.to_string()))?;
    match (host.map(HostGeo::workspace), stated) {
        (Some(belongs), Some(stated)) if belongs != stated => Err(Exit::config(format!(
            "workspace.geo: the configuration says {stated}, but data of this host must go to {belongs}"
        ))),
        (None, None) => {
            tracing::warn!(
                "the geography of this host is unknown, so the workspace's is not checked; set [host] geography"
            );
            Ok(None)
        }
        (belongs, stated) => Ok(belongs.or(stated)),
    }
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("cannot read the token from stdin")?;
    } else {
        text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read the token file {}", path.display()))?;
    }
    let token = text.trim();
    if token.is_empty() {
        bail!("{} is empty; write the output of `vedette-workspace token new` to it", path.display());
    }
    Ok(token.to_owned())
}

/// Many times the size of a certificate and a policy.
const ANSWER_BYTES_MAX: usize = 1 << 20;

async fn ask(
    client: &reqwest::Client,
    (url, proxy): (&Url, Option<&Proxy>),
    ca: Option<&Path>,
    request: &EnrollRequest,
) -> anyhow::Result<EnrollReply> {
    let mut response = client.post(url.join("/v1/enroll")?).json(request).send().await.map_err(|err| {
        let why = explain(&root_cause(&err), (url, proxy), ca);
        Unreachable { why, is_sent: !err.is_connect() }
    })?;
    let status = response.status();
    let body = bounded(&mut response, ANSWER_BYTES_MAX).await.map_err(|err| Undecided(format!("{url}: {err}")))?;
    if status.is_success() {
        let undecided =
            |err| Undecided(format!("{url} answered, but not as a workspace; check the workspace's URL: {err}"));
        return Ok(serde_json::from_slice(&body).map_err(undecided)?);
    }
    if status.is_server_error() || status.as_u16() == 429 {
        return Err(Unreachable { why: format!("{url} answered {status}"), is_sent: true }.into());
    }
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => bail!("the workspace refused: {}", problem.title),
        // A proxy or a load balancer, perhaps for a moment.
        Err(_) => {
            let why = format!("{url} answered {status}, but not as a workspace; check the workspace's URL");
            Err(Unreachable { why, is_sent: true }.into())
        }
    }
}

/// Advice on a failed connection.
fn explain(cause: &str, (url, proxy): (&Url, Option<&Proxy>), ca: Option<&Path>) -> String {
    let proxy = proxy.and_then(Proxy::authority);
    let advice = if cause.contains("UnknownIssuer") || cause.contains("BadSignature") {
        match ca {
            Some(ca) => {
                format!(
                    "its certificate was not signed by the CA in {}; use the ca.pem of that workspace",
                    ca.display()
                )
            }
            None => "the platform trusts no authority of its certificate; make it trust the workspace's ca.pem, or \
                     set workspace.roots to ca and give --ca"
                .to_owned(),
        }
    } else if cause.contains("not valid for name") || cause.contains("NotValidForName") {
        "its certificate has other names; use one of them, or create one with `vedette-workspace certificate --name`"
            .to_owned()
    } else if cause.contains("not a workspace of geography") {
        "data of this host belongs to another geography; use a workspace there, or correct [host] geography".to_owned()
    } else if cause.contains("names no geography") {
        "it is not a workspace, or its certificate was made elsewhere; create one with `vedette-workspace certificate`"
            .to_owned()
    } else if cause.contains("Expired") || cause.contains("NotValidYet") {
        "its certificate is not valid now; check the clocks of both machines".to_owned()
    } else if let Some(proxy) = proxy.filter(|_| ["refused", "tunnel", "proxy"].iter().any(|word| cause.contains(word)))
    {
        return format!(
            "cannot enroll at {url} through the proxy {proxy}: {cause}: check that the proxy runs and accepts this host; it is set in [workspace] proxy"
        );
    } else if cause.contains("refused") {
        "nothing listens there; is `vedette-workspace serve` running?".to_owned()
    } else {
        "check the address and the network between".to_owned()
    };
    format!("cannot enroll at {url}: {cause}: {advice}")
}
