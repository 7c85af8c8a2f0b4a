//! Rows of workspaces.

use jiff::Timestamp;
use rusqlite::{Transaction, params};
use vendetta_proto::spec::{ProjectConfig, ProviderKind};
use vendetta_proto::{NodeName, UserName, WorkspaceName};

use super::people::timestamp;
use super::{PortChange, PortRow, Store, StoreError, name_is_free, ports, user_of};
use crate::workspace::{Desired, Record, WorkspaceId};

/// A workspace as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkspaceRow {
    /// Its id.
    pub id: WorkspaceId,
    /// Its name.
    pub name: WorkspaceName,
    /// Who it belongs to.
    pub owner: UserName,
    /// Where it runs.
    pub node: NodeName,
    /// What runs it.
    pub provider: ProviderKind,
    /// Its config, every key of it.
    pub config: ProjectConfig,
    /// What it is meant to be.
    pub record: Record,
    /// The generation of the environment that was set up last: its repository
    /// cloned, its create hook run. 0: none yet.
    pub provisioned: u64,
    /// Whether anything of it may be on its node: saved before anything is put there.
    pub begun: bool,
    /// Private host key of its agent, OpenSSH PEM.
    pub host_key: String,
    /// When it was created.
    pub created: Timestamp,
}

impl Store {
    /// Adds a workspace.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`] by a user or a workspace; [`StoreError::NoUser`].
    pub async fn add_workspace(&self, row: &WorkspaceRow) -> Result<(), StoreError> {
        if self.user(&row.owner).is_none() {
            return Err(StoreError::NoUser(row.owner.clone()));
        }
        let config = as_json(&row.config)?;
        let row = row.clone();
        self.write("add workspace", move |transaction| {
            name_is_free(transaction, row.name.as_str())?;
            transaction.execute(
                "INSERT INTO workspaces (id, name, owner, node, provider, config, desired,
                                         generation, boot, host_key, created, provisioned, begun)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
                params![
                    row.id.as_str(),
                    row.name.as_str(),
                    row.owner.as_str(),
                    row.node.as_str(),
                    row.provider.as_str(),
                    config,
                    row.record.desired.as_str(),
                    signed(row.record.generation),
                    signed(row.record.boot),
                    row.host_key,
                    row.created.as_millisecond(),
                    signed(row.provisioned),
                    row.begun,
                ],
            )?;
            Ok(())
        })
        .await
    }

    /// Saves what a workspace is meant to be.
    ///
    /// # Errors
    /// When the database refuses, or there is no such workspace.
    pub async fn save_record(&self, id: &WorkspaceId, record: Record) -> Result<(), StoreError> {
        let id = id.clone();
        self.write("save workspace", move |transaction| {
            save(transaction, &id, record)
        })
        .await
    }

    /// Saves what a workspace is meant to be, and what it is to be made from.
    /// Its ports change with it, as for [`Store::assign_ports`]; where `choose`
    /// returns none, nothing is saved.
    ///
    /// # Errors
    /// When the database refuses, or there is no such workspace.
    pub async fn reconfigure<T: Send + 'static>(
        &self,
        id: &WorkspaceId,
        record: Record,
        config: &ProjectConfig,
        choose: impl FnOnce(&[PortRow]) -> (Option<PortChange>, T) + Send + 'static,
    ) -> Result<T, StoreError> {
        let (id, config) = (id.clone(), as_json(config)?);
        self.write("save workspace", move |transaction| {
            let (change, value) = choose(&ports::read(transaction)?);
            if let Some(change) = change {
                save(transaction, &id, record)?;
                let config = params![id.as_str(), config];
                transaction.execute("UPDATE workspaces SET config = ?2 WHERE id = ?1", config)?;
                ports::change(transaction, &id, change)?;
            }
            Ok(value)
        })
        .await
    }

    /// Saves that the environment of `generation` has been set up.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn save_provisioned(
        &self,
        id: &WorkspaceId,
        generation: u64,
    ) -> Result<(), StoreError> {
        let id = id.clone();
        self.write("save workspace", move |transaction| {
            transaction.execute(
                "UPDATE workspaces SET provisioned = ?2 WHERE id = ?1",
                params![id.as_str(), signed(generation)],
            )?;
            Ok(())
        })
        .await
    }

    /// Saves that something of it may be on its node from now on.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn save_begun(&self, id: &WorkspaceId) -> Result<(), StoreError> {
        let id = id.clone();
        self.write("save workspace", move |transaction| {
            transaction.execute(
                "UPDATE workspaces SET begun = 1 WHERE id = ?1",
                [id.as_str()],
            )?;
            Ok(())
        })
        .await
    }

    /// Deletes a workspace of which nothing is left; gone already is fine.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn forget_workspace(&self, id: &WorkspaceId) -> Result<(), StoreError> {
        let id = id.clone();
        self.write("forget workspace", move |transaction| {
            transaction.execute("DELETE FROM workspaces WHERE id = ?1", [id.as_str()])?;
            Ok(())
        })
        .await
    }

    /// All workspaces.
    ///
    /// # Errors
    /// When the database refuses, or holds a row that cannot be ours.
    pub async fn workspaces(&self) -> Result<Vec<WorkspaceRow>, StoreError> {
        self.write("read workspaces", |transaction| {
            let mut statement = transaction.prepare(
                "SELECT id, name, owner, node, provider, config, desired, generation, boot,
                        host_key, created, provisioned, begun
                 FROM workspaces ORDER BY name",
            )?;
            let mut rows = statement.query([])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let id: String = row.get(0)?;
                let corrupt = |error: &dyn std::fmt::Display| {
                    StoreError::Corrupt(format!("workspace {id}: {error}"))
                };
                let (name, node): (String, String) = (row.get(1)?, row.get(3)?);
                let (provider, config): (String, String) = (row.get(4)?, row.get(5)?);
                let desired: String = row.get(6)?;
                found.push(WorkspaceRow {
                    id: WorkspaceId::parse(&id).ok_or_else(|| corrupt(&"bad id"))?,
                    name: WorkspaceName::try_from(name).map_err(|e| corrupt(&e))?,
                    owner: user_of(row.get(2)?)?,
                    node: NodeName::try_from(node).map_err(|e| corrupt(&e))?,
                    provider: serde_json::from_value(provider.into()).map_err(|e| corrupt(&e))?,
                    config: serde_json::from_str(&config).map_err(|e| corrupt(&e))?,
                    record: Record {
                        desired: Desired::parse(&desired)
                            .ok_or_else(|| corrupt(&"bad desired state"))?,
                        generation: unsigned(row.get(7)?),
                        boot: unsigned(row.get(8)?),
                    },
                    host_key: row.get(9)?,
                    created: timestamp(row.get(10)?)?,
                    provisioned: unsigned(row.get(11)?),
                    begun: row.get(12)?,
                });
            }
            Ok(found)
        })
        .await
    }
}

fn save(transaction: &Transaction<'_>, id: &WorkspaceId, record: Record) -> Result<(), StoreError> {
    let saved = transaction.execute(
        "UPDATE workspaces SET desired = ?2, generation = ?3, boot = ?4 WHERE id = ?1",
        params![
            id.as_str(),
            record.desired.as_str(),
            signed(record.generation),
            signed(record.boot)
        ],
    )?;
    match saved {
        1 => Ok(()),
        _ => Err(StoreError::Corrupt(format!("no workspace {}", id.as_str()))),
    }
}

fn as_json(config: &ProjectConfig) -> Result<String, StoreError> {
    serde_json::to_string(config).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// SQLite's integers are signed; these count starts and rebuilds.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}
