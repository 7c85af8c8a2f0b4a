//! What must survive: users, their keys, nodes, workspaces, their ports and the audit
//! log, in one SQLite file.
//!
//! A change is on disk (WAL, `synchronous=FULL`) before the call that made it
//! returns. Changes run one after another on one connection, off the async
//! threads. Users and keys are also held in memory, since every login asks for
//! them. The audit log has its own connection and thread, so that a login never
//! waits for the disk.

mod audit;
mod error;
mod nodes;
mod people;
mod ports;
mod schema;
mod workspaces;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use vendetta_proto::UserName;

pub use audit::{AuditEvent, AuditRecord};
pub use error::StoreError;
pub use nodes::NodeRow;
pub use people::{KeyRecord, UserRecord};
pub use ports::{PortChange, PortRow};
pub use workspaces::WorkspaceRow;

use people::People;

/// The gateway's database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connection: Mutex<Connection>,
    people: RwLock<People>,
    audit: audit::Log,
    gateway_id: String,
}

impl Store {
    /// Opens the database, making it (mode 0600, in a directory of mode 0700)
    /// or bringing it up to date as needed. Blocks.
    ///
    /// # Errors
    /// When the file cannot be opened, is not ours, or was written by a newer version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        make_private(path)?;
        let mut connection = schema::open(path)?;
        let gateway_id = schema::gateway_id(&mut connection)?;
        // For people and scripts, who ask an engine for what carries it.
        let copy = path.with_file_name("id");
        write_private(&copy, &format!("{gateway_id}\n"))
            .map_err(|source| StoreError::Io { path: copy, source })?;
        let people = People::load(&connection)?;
        Ok(Self(Arc::new(Inner {
            connection: Mutex::new(connection),
            people: RwLock::new(people),
            audit: audit::Log::open(path)?,
            gateway_id,
        })))
    }

    /// The random id of this gateway, made with the database. Whatever an
    /// engine holds for us carries it as a label.
    #[must_use]
    pub fn gateway_id(&self) -> &str {
        &self.0.gateway_id
    }

    /// Runs `work` in a transaction that is on disk when this returns.
    async fn write<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.change(operation, work, |_| {}).await
    }

    /// The same, and then changes what is held in memory before anybody else
    /// can write. Once begun it runs to its end, even if nobody waits for it.
    async fn change<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
        then: impl FnOnce(&mut People) + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.0);
        let run = move || {
            let mut connection = inner
                .connection
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let sql = |source| StoreError::Sql { operation, source };
            let transaction = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(sql)?;
            let value = work(&transaction).map_err(|error| error.during(operation))?;
            transaction.commit().map_err(sql)?;
            then(&mut inner.people.write().unwrap_or_else(PoisonError::into_inner));
            Ok(value)
        };
        tokio::task::spawn_blocking(run)
            .await
            .unwrap_or(Err(StoreError::GaveUp { operation }))
    }

    /// Reads people from memory.
    fn people<T>(&self, read: impl FnOnce(&People) -> T) -> T {
        read(&self.0.people.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Makes the directory and the file with private modes, and refuses to go on
/// where others could read them.
fn make_private(path: &Path) -> Result<(), StoreError> {
    let io = |source| StoreError::Io {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        if !parent.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(io)?;
        }
        let mode = fs::metadata(parent).map_err(io)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(StoreError::Mode {
                path: parent.to_owned(),
                mode,
            });
        }
    }
    // SQLite gives its -wal and -shm files the mode of the database.
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(io)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(io)
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// Users, workspaces and the reserved name share one name space (an SSH login
/// name must mean one thing).
fn name_is_free(transaction: &Transaction<'_>, name: &str) -> Result<(), StoreError> {
    let taken = |sql: &str| -> Result<bool, StoreError> {
        let mut statement = transaction.prepare_cached(sql)?;
        Ok(statement.exists([name])?)
    };
    let kind = if taken("SELECT 1 FROM users WHERE name = ?1")? {
        "user"
    } else if taken("SELECT 1 FROM workspaces WHERE name = ?1")? {
        "workspace"
    } else {
        return Ok(());
    };
    Err(StoreError::NameTaken {
        name: name.to_owned(),
        kind,
    })
}

fn user_of(name: String) -> Result<UserName, StoreError> {
    UserName::try_from(name).map_err(|error| StoreError::Corrupt(error.to_string()))
}

#[cfg(test)]
mod tests;
