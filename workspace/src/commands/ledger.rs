//! `ledger`.

use super::{
    cli::Format,
    listing::{csv_line, json_line},
    print,
};
use crate::{
    clock::rfc3339,
    store::{Account, ControlStore},
};
use anyhow::{Result, bail};
use std::path::Path;
use vedette_wire::text::printable;

pub(super) async fn ledger(dir: &Path, org: &str, agent: Option<&str>, format: Format) -> Result<()> {
    let control = ControlStore::open(dir).await?;
    let organization = control.organization(org).await?;
    let accounts = control.ledger(organization.id, agent).await?;
    if let (Some(agent), []) = (agent, accounts.as_slice()) {
        bail!("no batch of agent {agent:?} of {org} has landed; see `vedette-workspace agents`");
    }
    let policy = control.policy(organization.id, organization.policy_revision).await?;
    if control.primary().await?.is_some() || policy.is_some_and(|(policy, _)| policy.endpoints.len() > 1) {
        tracing::warn!("this workspace is one of a pair: batches that landed at the other show as missing here");
    }
    let mut out = String::new();
    if format != Format::Json {
        let head =
            ["agent", "collector", "emitted", "stored", "dropped", "in_flight", "quarantined", "missing", "repeated"];
        out.push_str(&line(&head.map(str::to_owned), format));
    }
    for account in &accounts {
        if format == Format::Json {
            out.push_str(&json_line(account));
            continue;
        }
        out.push_str(&line(&cells(account), format));
        if format == Format::Table {
            out.extend(account.gaps.iter().map(|gap| {
                let (since, until) = (rfc3339(gap.since), rfc3339(gap.until));
                format!(
                    "    gap: {} {} to {} of {}, between {} and {}, landed {since} and {until}\n",
                    gap.what,
                    gap.from,
                    gap.to,
                    printable(&gap.of),
                    gap.after,
                    gap.before
                )
            }));
        }
    }
    print(out.as_bytes())
}

fn cells(account: &Account) -> [String; 9] {
    let dropped: Vec<String> = account.dropped.iter().map(|(reason, count)| format!("{reason}={count}")).collect();
    [
        account.agent.clone(),
        printable(&account.collector).into_owned(),
        account.emitted.to_string(),
        account.stored.to_string(),
        if dropped.is_empty() { "0".to_owned() } else { dropped.join(" ") },
        account.in_flight.to_string(),
        account.quarantined.to_string(),
        account.missing.to_string(),
        account.repeated.to_string(),
    ]
}

fn line(cells: &[String; 9], format: Format) -> String {
    if format == Format::Csv {
        return csv_line(&cells.each_ref().map(String::as_str));
    }
    let [agent, collector, emitted, stored, dropped, in_flight, quarantined, missing, repeated] = cells;
    format!(
        "{agent:<32}  {collector:<12}  {emitted:>10}  {stored:>10}  {dropped:<10}  {in_flight:>9}  {quarantined:>11}  {missing:>7}  \
         {repeated:>8}\n"
    )
}
