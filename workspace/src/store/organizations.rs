//! Organizations.

use super::{Change, ControlStore, audit::audit};
use crate::keys::Signer;
use anyhow::{Result, anyhow, bail};
use vedette_wire::{OrganizationId, policy::Tier};

/// An organization.
#[derive(Debug, Clone)]
pub(crate) struct Organization {
    pub(crate) id: OrganizationId,
    pub(crate) name: String,
    pub(crate) policy_revision: u64,
}

impl ControlStore {
    /// Adds an organization with its first policy.
    pub(crate) async fn add_organization(
        &self,
        name: &str,
        tier: Tier,
        signer: &Signer,
        change: Change<'_>,
    ) -> Result<OrganizationId> {
        let id = OrganizationId::from_uuid(uuid::Uuid::now_v7());
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let done = sqlx::query("INSERT INTO organizations (id, name, tier, created) VALUES (?, ?, ?, ?)")
            .bind(id.to_string())
            .bind(name)
            .bind(tier.name())
            .bind(change.now)
            .execute(&mut *tx)
            .await;
        match done {
            Err(sqlx::Error::Database(err)) if err.is_unique_violation() => {
                bail!("there is an organization {name:?} already; choose another name")
            }
            other => other.map(drop)?,
        }
        audit(&mut *tx, change, "organization add", &format!("{name} {tier} {id}")).await?;
        tx.commit().await?;
        self.first_policies(signer, change).await?;
        Ok(id)
    }

    /// Finds an organization by name.
    pub(crate) async fn organization(&self, name: &str) -> Result<Organization> {
        if let Some(found) = self.organization_by("name", name).await? {
            return Ok(found);
        }
        let names: Vec<String> = sqlx::query_scalar("SELECT name FROM organizations").fetch_all(&self.pool).await?;
        let near = names
            .iter()
            .map(|known| (strsim::jaro_winkler(name, known), known))
            .filter(|(likeness, _)| *likeness > 0.8)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        Err(match near {
            Some((_, near)) => anyhow!("there is no organization {name:?}; is it {near:?}?"),
            None => {
                anyhow!("there is no organization {name:?}; add it with `vedette-workspace org add {name} --tier TIER`")
            }
        })
    }

    /// Finds an organization by the id in a certificate.
    pub(crate) async fn organization_of(&self, id: OrganizationId) -> Result<Organization> {
        self.organization_by("id", &id.to_string()).await?.ok_or_else(|| anyhow!("there is no organization {id}"))
    }

    async fn organization_by(&self, column: &'static str, value: &str) -> Result<Option<Organization>> {
        let sql = format!("SELECT id, name, policy_revision FROM organizations WHERE {column} = ?");
        let row: Option<(String, String, i64)> =
            sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(value).fetch_optional(&self.pool).await?;
        row.map(|(id, name, revision)| {
            Ok(Organization { id: id.parse()?, name, policy_revision: revision.cast_unsigned() })
        })
        .transpose()
    }

    /// Ids of all organizations.
    pub(crate) async fn organization_ids(&self) -> Result<Vec<OrganizationId>> {
        let ids: Vec<String> = sqlx::query_scalar("SELECT id FROM organizations").fetch_all(&self.pool).await?;
        ids.iter().map(|id| Ok(id.parse()?)).collect()
    }
}
