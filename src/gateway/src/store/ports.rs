//! Rows of ports: which port of the gateway's machine leads into which workspace.

use std::collections::BTreeSet;

use rusqlite::{Transaction, params};
use vendetta_proto::{UserName, WorkspaceName};

use super::{Store, StoreError, user_of};
use crate::workspace::WorkspaceId;

/// A port of the gateway's machine that leads into a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRow {
    /// The port.
    pub host_port: u16,
    /// The workspace.
    pub workspace: WorkspaceId,
    /// Its name.
    pub name: WorkspaceName,
    /// Whose it is.
    pub owner: UserName,
    /// What in it the port leads to, in the words of [`crate::ports::PortKey`].
    pub key: String,
}

/// What changes of a workspace's ports.
#[derive(Debug, Default)]
pub struct PortChange {
    /// Ports that do not lead to it any more.
    pub released: BTreeSet<u16>,
    /// Key and port of those that do from now on.
    pub given: Vec<(String, u16)>,
}

impl Store {
    /// All ports that lead somewhere, in order.
    ///
    /// # Errors
    /// When the database refuses, or holds a row that cannot be ours.
    pub async fn ports(&self) -> Result<Vec<PortRow>, StoreError> {
        self.write("read ports", read).await
    }

    /// Gives ports to a workspace: `choose` is told of all that lead somewhere
    /// already. What is given is kept until it is released or the workspace is
    /// forgotten. Nobody else is given any meanwhile.
    ///
    /// # Errors
    /// When the database refuses, or there is no such workspace.
    pub async fn assign_ports<T: Send + 'static>(
        &self,
        id: &WorkspaceId,
        choose: impl FnOnce(&[PortRow]) -> (PortChange, T) + Send + 'static,
    ) -> Result<T, StoreError> {
        let id = id.clone();
        self.write("assign ports", move |transaction| {
            let (chosen, value) = choose(&read(transaction)?);
            change(transaction, &id, chosen)?;
            Ok(value)
        })
        .await
    }
}

/// Changes the ports of a workspace.
pub(super) fn change(
    transaction: &Transaction<'_>,
    id: &WorkspaceId,
    change: PortChange,
) -> Result<(), StoreError> {
    let mut delete =
        transaction.prepare("DELETE FROM ports WHERE host_port = ?1 AND workspace = ?2")?;
    for port in change.released {
        delete.execute(params![port, id.as_str()])?;
    }
    let mut insert =
        transaction.prepare("INSERT INTO ports (host_port, workspace, key) VALUES (?1, ?2, ?3)")?;
    for (key, port) in change.given {
        insert.execute(params![port, id.as_str(), key])?;
    }
    Ok(())
}

/// All ports that lead somewhere, in order.
pub(super) fn read(transaction: &Transaction<'_>) -> Result<Vec<PortRow>, StoreError> {
    let mut statement = transaction.prepare(
        "SELECT ports.host_port, ports.workspace, ports.key, workspaces.name, workspaces.owner
         FROM ports JOIN workspaces ON workspaces.id = ports.workspace
         ORDER BY ports.host_port",
    )?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, name): (String, String) = (row.get(1)?, row.get(3)?);
        let corrupt = |what: &str| StoreError::Corrupt(format!("port of workspace {id}: {what}"));
        found.push(PortRow {
            host_port: row.get(0).map_err(|_| corrupt("no port"))?,
            workspace: WorkspaceId::parse(&id).ok_or_else(|| corrupt("bad id"))?,
            name: WorkspaceName::try_from(name).map_err(|_| corrupt("bad name"))?,
            owner: user_of(row.get(4)?)?,
            key: row.get(2)?,
        });
    }
    Ok(found)
}
