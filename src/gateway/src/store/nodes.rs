//! Rows of nodes.

use jiff::Timestamp;
use rusqlite::{Row, params};
use vendetta_proto::NodeName;
use vendetta_sshio::keys::PublicKey;

use super::people::timestamp;
use super::{Store, StoreError};

/// A node as it is stored. The gateway's own machine has no row.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeRow {
    /// Its name.
    pub name: NodeName,
    /// Login name on it.
    pub user: String,
    /// Host name or address.
    pub host: String,
    /// Port of its sshd.
    pub port: u16,
    /// The node through which it is reached; none: directly.
    pub jump: Option<NodeName>,
    /// Its pinned host key.
    pub host_key: PublicKey,
    /// Whether it lets provider host run anything.
    pub allow_host: bool,
    /// What was found on it.
    pub probe: serde_json::Value,
    /// When it was added.
    pub created: Timestamp,
}

impl Store {
    /// All nodes, by name.
    ///
    /// # Errors
    /// When the database refuses, or holds a row that cannot be ours.
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        self.write("read nodes", |transaction| {
            let mut statement = transaction.prepare(
                "SELECT name, user, host, port, jump, host_key, allow_host, probe, created
                 FROM nodes ORDER BY name",
            )?;
            let mut rows = statement.query([])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(node(row)?);
            }
            Ok(found)
        })
        .await
    }

    /// Saves a node: a new one, or one as it is now.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn save_node(&self, row: &NodeRow) -> Result<(), StoreError> {
        let row = row.clone();
        self.write("save node", move |transaction| {
            transaction.execute(
                "INSERT INTO nodes (name, user, host, port, jump, host_key, allow_host, probe, created)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT (name) DO UPDATE SET
                     user = ?2, host = ?3, port = ?4, jump = ?5, host_key = ?6, allow_host = ?7, probe = ?8",
                params![
                    row.name.as_str(),
                    row.user,
                    row.host,
                    row.port,
                    row.jump.as_ref().map(NodeName::as_str),
                    row.host_key.to_string(),
                    row.allow_host,
                    row.probe.to_string(),
                    row.created.as_millisecond(),
                ],
            )?;
            Ok(())
        })
        .await
    }

    /// Gives a node, and what is stored as being on it, another name.
    ///
    /// # Errors
    /// [`StoreError::NoNode`], or [`StoreError::NameTaken`] by another node.
    pub async fn rename_node(&self, from: &NodeName, to: &NodeName) -> Result<(), StoreError> {
        let (from, to) = (from.clone(), to.clone());
        self.write("rename node", move |transaction| {
            is_free(transaction, &to)?;
            let names = params![from.as_str(), to.as_str()];
            let renamed =
                transaction.execute("UPDATE nodes SET name = ?2 WHERE name = ?1", names)?;
            if renamed == 0 {
                return Err(StoreError::NoNode(from));
            }
            transaction.execute("UPDATE workspaces SET node = ?2 WHERE node = ?1", names)?;
            Ok(())
        })
        .await
    }

    /// Removes a node on which no workspace is and behind which no other node is.
    ///
    /// # Errors
    /// [`StoreError::NoNode`]; [`StoreError::NodeInUse`].
    pub async fn remove_node(&self, name: &NodeName) -> Result<(), StoreError> {
        let name = name.clone();
        self.write("remove node", move |transaction| {
            let names = |sql: &str| -> Result<Vec<String>, StoreError> {
                let mut statement = transaction.prepare(sql)?;
                let names = statement.query_map([name.as_str()], |row| row.get(0))?;
                Ok(names.collect::<Result<_, _>>()?)
            };
            let workspaces = names("SELECT name FROM workspaces WHERE node = ?1 ORDER BY name")?;
            let nodes = names("SELECT name FROM nodes WHERE jump = ?1 ORDER BY name")?;
            if !workspaces.is_empty() || !nodes.is_empty() {
                return Err(StoreError::NodeInUse {
                    node: name,
                    workspaces,
                    nodes,
                });
            }
            match transaction.execute("DELETE FROM nodes WHERE name = ?1", [name.as_str()])? {
                0 => Err(StoreError::NoNode(name)),
                _ => Ok(()),
            }
        })
        .await
    }
}

fn is_free(transaction: &rusqlite::Transaction<'_>, name: &NodeName) -> Result<(), StoreError> {
    let mut statement = transaction.prepare_cached("SELECT 1 FROM nodes WHERE name = ?1")?;
    if name.as_str() != NodeName::LOCAL && !statement.exists([name.as_str()])? {
        return Ok(());
    }
    Err(StoreError::NameTaken {
        name: name.to_string(),
        kind: "node",
    })
}

fn node(row: &Row<'_>) -> Result<NodeRow, StoreError> {
    let name: String = row.get(0)?;
    let corrupt =
        |error: &dyn std::fmt::Display| StoreError::Corrupt(format!("node {name}: {error}"));
    let parse = |name: String| NodeName::try_from(name).map_err(|error| corrupt(&error));
    let jump: Option<String> = row.get(4)?;
    let (host_key, probe): (String, String) = (row.get(5)?, row.get(7)?);
    Ok(NodeRow {
        name: parse(name.clone())?,
        user: row.get(1)?,
        host: row.get(2)?,
        port: row.get(3)?,
        jump: jump.map(parse).transpose()?,
        host_key: host_key.parse().map_err(|error| corrupt(&error))?,
        allow_host: row.get(6)?,
        probe: serde_json::from_str(&probe).map_err(|error| corrupt(&error))?,
        created: timestamp(row.get(8)?)?,
    })
}
