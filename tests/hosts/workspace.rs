//! The workspace on this machine's side of the cable.

use crate::eventually;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::process::Command;
use vedette_benches::world::{Process, binary};

pub(crate) struct Workspace {
    dir: tempfile::TempDir,
    address: String,
    _serve: Process,
}

impl Workspace {
    /// Creates one with an organization, and serves it.
    pub(crate) fn start(address: String) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = dir.path().join("workspace").display().to_string();
        command(&["init", "--geo", "europe", "--name", &address, "--dir", &at])?;
        command(&["org", "add", "acme", "--tier", "free", "--dir", &at])?;
        let mut serve = Command::new(binary("vedette-workspace")?);
        serve.args(["serve", "--dir", &at, "--listen", &format!("{address}:8443")]);
        let serve = Process::start(&mut serve, &dir.path().join("log"))?;
        Ok(Self { dir, address, _serve: serve })
    }

    fn at(&self) -> String {
        self.dir.path().join("workspace").display().to_string()
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}:8443", self.address)
    }

    pub(crate) fn ca(&self) -> Result<String> {
        command(&["ca", "--dir", &self.at()])
    }

    pub(crate) fn token(&self) -> Result<String> {
        command(&["token", "new", "--org", "acme", "--dir", &self.at()])
    }

    pub(crate) fn agents(&self) -> Result<Vec<Value>> {
        rows(&command(&["agents", "--org", "acme", "--format", "json", "--dir", &self.at()])?)
    }

    /// Rows of a query.
    pub(crate) fn query(&self, sql: &str) -> Result<Vec<Value>> {
        let at = self.at();
        rows(&command(&["query", "--log", "error", "--org", "acme", "--format", "json", "--dir", &at, sql])?)
    }

    /// Waits for the numbered lines of a program in a table: each once.
    pub(crate) fn has_lines(&self, table: &str, app: &str, count: u64) -> Result<()> {
        let sql = format!(
            "SELECT count(*) AS n, count(DISTINCT message) AS d FROM {table} WHERE app = '{app}' AND message LIKE '{app} %'"
        );
        eventually(&format!("{count} lines of {app} in {table}"), || {
            let row = self.query(&sql)?.into_iter().next().context("a row")?;
            let (all, distinct) = (row["n"].as_u64().unwrap_or(0), row["d"].as_u64().unwrap_or(0));
            if all > distinct || all > count {
                bail!("{all} lines of {app} in {table}, {distinct} of them different, {count} written");
            }
            if all < count {
                bail!("{all} of {count} lines of {app} in {table}");
            }
            Ok(Some(()))
        })
    }

    /// Waits until the ledger has nothing missing; nothing may ever be repeated.
    pub(crate) fn wait_until_nothing_is_missing(&self) -> Result<()> {
        eventually("a whole ledger", || {
            let ledger = command(&["ledger", "--org", "acme", "--format", "json", "--dir", &self.at()])?;
            let wrong = |row: &Value| row["missing"] != 0 || row["repeated"] != 0;
            match rows(&ledger)?.into_iter().find(wrong) {
                Some(row) => bail!("{row}"),
                None => Ok(Some(())),
            }
        })
    }

    /// Number of dropped records of a collector, by reason.
    pub(crate) fn dropped(&self, collector: &str) -> Result<Value> {
        let ledger = rows(&command(&["ledger", "--org", "acme", "--format", "json", "--dir", &self.at()])?)?;
        let row = ledger.into_iter().find(|row| row["collector"] == collector);
        Ok(row.map(|row| row["dropped"].clone()).unwrap_or_default())
    }
}

fn command(arguments: &[&str]) -> Result<String> {
    let output = Command::new(binary("vedette-workspace")?).args(arguments).output()?;
    if !output.status.success() {
        bail!("vedette-workspace {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn rows(text: &str) -> Result<Vec<Value>> {
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}
