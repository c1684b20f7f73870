//! `policy`, `agent revoke`, `alerts`.

use super::{
    cli::{Format, PolicySetArguments, Switch, parse_interval},
    listing::{csv_line, json_line},
    print, who,
};
use crate::{
    clock::{now, rfc3339},
    store::{Change, ControlStore},
};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::Path;
use vedette_wire::{
    AgentId,
    policy::{ArtifactLimits, CollectorPolicy, Policy, REQUIRED, ReportedCollectors, Tier},
    text::{json_printable, printable},
};

pub(super) async fn show(dir: &Path, org: &str, history: bool) -> Result<()> {
    let control = ControlStore::open(dir).await?;
    let organization = control.organization(org).await?;
    control.first_policies(&control.signer(dir).await?, upgrade_change()).await?;
    let mut out = String::new();
    for revision in control.policy_history(organization.id).await? {
        let policy: Value = serde_json::from_str(&revision.document)?;
        if !history {
            return print(json_printable(serde_json::to_string_pretty(&policy)? + "\n").as_bytes());
        }
        let line = json!({"time": rfc3339(revision.issued), "who": revision.who, "reason": revision.reason,
            "policy": policy});
        out.push_str(&json_line(&line));
    }
    print(out.as_bytes())
}

/// Author of first policies for organizations of an older release.
pub(super) fn upgrade_change() -> Change<'static> {
    Change { who: "vedette-workspace", reason: "upgrade", now: now() }
}

pub(super) async fn set(requested: &PolicySetArguments) -> Result<()> {
    if requested.reason.trim().is_empty() {
        bail!("--reason must not be empty");
    }
    let control = ControlStore::open(&requested.dir).await?;
    control.require_primary().await?;
    let organization = control.organization(&requested.org).await?;
    let signer = control.signer(&requested.dir).await?;
    control.first_policies(&signer, upgrade_change()).await?;
    let change = Change { who: &who(), reason: requested.reason.trim(), now: now() };
    let reported = control.reported_collectors(organization.id).await?;
    let edit = |policy: &mut Policy| edit(policy, requested, &reported);
    let policy = control.set_policy(&organization, &signer, change, edit).await?;
    let off = |(id, of): (&String, &CollectorPolicy)| (of.enabled == Some(false)).then(|| id.clone());
    let off: Vec<String> = policy.collectors.iter().filter_map(off).filter(|_| policy.tier == Tier::Standard).collect();
    for id in &off {
        // The first of a group runs in place of the others.
        if let Some((what, ids)) = REQUIRED.iter().find(|(_, ids)| ids[0] == id.as_str()) {
            let others = ids[1..].join(" or ");
            tracing::warn!(
                "{id} will still run on hosts where {others} observes nothing, since the standard tier requires {what}"
            );
        }
    }
    print(format!("{}\n", policy.revision).as_bytes())
}

fn edit(policy: &mut Policy, change: &PolicySetArguments, reported: &ReportedCollectors) -> Result<()> {
    let before = policy.clone();
    policy.tier = change.tier.unwrap_or(policy.tier);
    policy.collect = change.collect.map_or(policy.collect, |collect| collect == Switch::On);
    policy.store = change.store.unwrap_or(policy.store);
    if let Some(limits) = &change.artifacts {
        policy.artifacts = artifact_limits(limits, &policy.artifacts)?;
    }
    if change.endpoints == ["default"] {
        policy.endpoints.clear();
    } else if !change.endpoints.is_empty() {
        policy.endpoints = change.endpoints.iter().map(|url| endpoint(url)).collect::<Result<_>>()?;
    }
    for setting in &change.collectors {
        let (id, value) =
            setting.split_once('=').with_context(|| format!("--collector {setting}: write ID.KEY=VALUE"))?;
        let (id, key) = id.split_once('.').unwrap_or((id, ""));
        // What the policy has already can be taken out of it.
        let has_interval = match policy.collectors.contains_key(id) || (key, value) == ("", "default") {
            true => reported.0.get(id).copied().unwrap_or(true),
            false => has_interval(id, reported).with_context(|| format!("--collector {setting}"))?,
        };
        let collector = policy.collectors.entry(id.to_owned()).or_default();
        match (key, value) {
            ("", "default") => *collector = CollectorPolicy::default(),
            ("enabled", "on") => collector.enabled = Some(true),
            ("enabled", "off") => collector.enabled = Some(false),
            ("every", _) if !has_interval => bail!("--collector {setting}: {id} has no interval"),
            ("every", interval) => {
                let seconds = parse_interval(interval).and_then(|seconds| seconds.try_into().ok());
                collector.every_seconds = Some(seconds.with_context(|| {
                    format!("--collector {setting}: write an interval of at least 1s, as in 30s or 5m")
                })?);
            }
            _ => bail!(
                "--collector {setting}: write ID.enabled=on|off, ID.every=INTERVAL (as in 30s or 5m) or ID=default; what a collector \
                        reads is set on the host alone"
            ),
        }
    }
    policy.collectors.retain(|_, collector| *collector != CollectorPolicy::default());
    if *policy == before {
        bail!("the policy already has these values; nothing was changed");
    }
    Ok(())
}

/// Whether a collector has a poll interval, by what the organization's agents report. Before they report anything, every
/// collector is accepted.
fn has_interval(id: &str, reported: &ReportedCollectors) -> Result<bool> {
    if let Some(has_interval) = reported.0.get(id) {
        return Ok(*has_interval);
    }
    if reported.0.is_empty() {
        tracing::warn!(
            collector = id,
            "no agent of the organization has reported its collectors yet; the id is not checked"
        );
        return Ok(true);
    }
    let near = reported.0.keys().map(|known| (strsim::jaro_winkler(id, known), known));
    let near = near.filter(|(likeness, _)| *likeness > 0.8).max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((_, near)) => bail!("the organization's agents have no collector {id:?}; did you mean {near:?}?"),
        None => {
            let known: Vec<&str> = reported.0.keys().map(String::as_str).collect();
            bail!("the organization's agents have no collector {id:?}; they have {}", known.join(", "))
        }
    }
}

fn artifact_limits(text: &str, current: &ArtifactLimits) -> Result<ArtifactLimits> {
    if text == "default" {
        return Ok(ArtifactLimits::default());
    }
    let mut limits = current.clone();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').with_context(|| {
            format!(
                "--artifacts {part}: write paths=GLOB:GLOB, bytes_max=SIZE or per_hour_max=N; artifacts cannot be \
                     switched off by policy"
            )
        })?;
        match key {
            "paths" => limits.paths = value.split(':').filter(|glob| !glob.is_empty()).map(str::to_owned).collect(),
            "bytes_max" => {
                limits.bytes_max =
                    size(value).with_context(|| format!("--artifacts {part}: write a size, as in bytes_max=64MiB"))?
            }
            "per_hour_max" => {
                limits.per_hour_max = value
                    .parse()
                    .with_context(|| format!("--artifacts {part}: write a number, as in per_hour_max=10"))?
            }
            _ => bail!("--artifacts {part}: the keys are paths, bytes_max and per_hour_max"),
        }
    }
    if let Some(wrong) = limits.paths.iter().find(|glob| !glob.starts_with('/')) {
        bail!("--artifacts paths: {wrong:?} must be absolute");
    }
    Ok(limits)
}

/// Parses `https://host[:port]`; removes a trailing slash.
fn endpoint(text: &str) -> Result<String> {
    let url = text.trim_end_matches('/');
    let parsed: http::Uri = url.parse().with_context(|| format!("--endpoint {text} is not a URL"))?;
    let bare = parsed.path_and_query().is_none_or(|path| path == "/");
    if parsed.scheme_str() != Some("https") || parsed.host().is_none_or(str::is_empty) || !bare || url.contains('@') {
        bail!("--endpoint {text}: write https://HOST:PORT");
    }
    Ok(url.to_owned())
}

fn size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

pub(super) async fn revoke(dir: &Path, agent: AgentId, reason: &str) -> Result<()> {
    let control = ControlStore::open(dir).await?;
    let change = Change { who: &who(), reason, now: now() };
    // A secondary signs no policies, and passes revocations on to the primary.
    let signer = match control.primary().await? {
        None => Some(control.signer(dir).await?),
        Some(_) => None,
    };
    let organization = control.revoke(agent, change).await?;
    if let Some(signer) = signer {
        control.first_policies(&signer, upgrade_change()).await?;
        // The next policy names the agent, too, should this fail.
        let organization = control.organization(&organization).await?;
        control.set_policy(&organization, &signer, change, |_| Ok(())).await?;
    }
    let copies = control.copies_of(agent).await?;
    if !copies.is_empty() {
        let agents = copies.join(" ");
        tracing::warn!(agents, "clones of this agent became other agents, which are not revoked");
    }
    Ok(())
}

pub(super) async fn alerts(dir: &Path, org: &str, format: Format) -> Result<()> {
    let control = ControlStore::open(dir).await?;
    let organization = control.organization(org).await?;
    let mut out = match format {
        Format::Json => String::new(),
        Format::Csv => "last,first,times,agent,kind,detail\n".to_owned(),
        Format::Table => {
            format!("{:<20}  {:<26}  {:>6} times  {:<32}  {:<8}  detail\n", "last", "first", "", "agent", "kind")
        }
    };
    for alert in control.alerts(organization.id).await? {
        let (first, last) = (rfc3339(alert.first), rfc3339(alert.last));
        match format {
            Format::Json => {
                let line = json!({"agent": alert.agent, "kind": alert.kind, "detail": alert.detail, "first": first,
                    "last": last, "times": alert.times});
                out.push_str(&json_line(&line));
            }
            Format::Csv => {
                let times = alert.times.to_string();
                out.push_str(&csv_line(&[&last, &first, &times, &alert.agent, &alert.kind, &alert.detail]));
            }
            Format::Table => out.push_str(&format!(
                "{last}  since {first}  {:>6} times  {:<32}  {:<8}  {}\n",
                alert.times,
                alert.agent,
                alert.kind,
                printable(&alert.detail)
            )),
        }
    }
    print(out.as_bytes())
}
