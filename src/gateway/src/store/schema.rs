//! The tables, and how an older file becomes a newer one.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::StoreError;

/// Steps from each format to the next; `user_version` counts those done.
/// Never edit one that was released: add another.
pub(super) const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE meta (
        name TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT;
    CREATE TABLE users (
        name TEXT PRIMARY KEY,
        role TEXT NOT NULL CHECK (role IN ('admin', 'member')),
        created INTEGER NOT NULL            -- milliseconds since 1970
    ) STRICT;
    CREATE TABLE keys (
        fingerprint TEXT PRIMARY KEY,       -- SHA256:...
        user TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
        public_key TEXT NOT NULL,           -- OpenSSH line without comment
        comment TEXT NOT NULL,
        created INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE workspaces (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL REFERENCES users (name),
        node TEXT NOT NULL,
        provider TEXT NOT NULL,
        config TEXT NOT NULL,               -- the project config, JSON
        desired TEXT NOT NULL CHECK (desired IN ('created', 'running', 'down', 'destroyed')),
        generation INTEGER NOT NULL,
        boot INTEGER NOT NULL,
        host_key TEXT NOT NULL,             -- OpenSSH PEM
        created INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        user TEXT,
        event TEXT NOT NULL,
        detail TEXT NOT NULL                -- JSON object
    ) STRICT;
",
    "
    CREATE TABLE nodes (
        name TEXT PRIMARY KEY,
        user TEXT NOT NULL,
        host TEXT NOT NULL,
        port INTEGER NOT NULL,
        jump TEXT REFERENCES nodes (name) ON UPDATE CASCADE,
        host_key TEXT NOT NULL,             -- pinned; OpenSSH line without comment
        allow_host INTEGER NOT NULL,
        probe TEXT NOT NULL,                -- what was found on it, JSON
        created INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX workspaces_of_a_node ON workspaces (node);
",
    "
    -- The generation whose environment has been set up: repository, create hook.
    ALTER TABLE workspaces ADD COLUMN provisioned INTEGER NOT NULL DEFAULT 0;
",
    "
    -- `desired` has one word more; SQLite changes a CHECK only with its table.
    CREATE TABLE workspaces_with_idle (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL REFERENCES users (name),
        node TEXT NOT NULL,
        provider TEXT NOT NULL,
        config TEXT NOT NULL,
        desired TEXT NOT NULL CHECK (desired IN ('created', 'running', 'down', 'idle', 'destroyed')),
        generation INTEGER NOT NULL,
        boot INTEGER NOT NULL,
        host_key TEXT NOT NULL,
        created INTEGER NOT NULL,
        provisioned INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    INSERT INTO workspaces_with_idle
        SELECT id, name, owner, node, provider, config, desired, generation, boot, host_key,
               created, provisioned
        FROM workspaces;
    DROP TABLE workspaces;
    ALTER TABLE workspaces_with_idle RENAME TO workspaces;
    CREATE INDEX workspaces_of_a_node ON workspaces (node);
    -- Ports of the gateway's machine that lead into workspaces.
    CREATE TABLE ports (
        host_port INTEGER PRIMARY KEY,
        workspace TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
        key TEXT NOT NULL,                  -- name of a service, or 'port:' and a number
        UNIQUE (workspace, key)
    ) STRICT;
",
    "
    -- Whether anything of it may be on its node.
    ALTER TABLE workspaces ADD COLUMN begun INTEGER NOT NULL DEFAULT 0;
    UPDATE workspaces SET begun = 1 WHERE boot > 0;
",
];

/// Opens the file and brings it up to date.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let mut connection = connect(path)?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    // Immediate: two gateways on one file must not both migrate it.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let done = match usize::try_from(found) {
        Ok(done) if done <= MIGRATIONS.len() => done,
        _ => {
            return Err(StoreError::Newer {
                path: path.to_owned(),
                found,
                known,
            });
        }
    };
    for migration in MIGRATIONS.iter().skip(done) {
        transaction
            .execute_batch(migration)
            .map_err(|source| StoreError::Sql {
                operation: "migrate",
                source,
            })?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit()?;
    Ok(connection)
}

/// Opens the file with our settings.
pub(super) fn connect(path: &Path) -> Result<Connection, StoreError> {
    let connect = || {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        Ok(connection)
    };
    connect().map_err(|source| StoreError::Sql {
        operation: "open",
        source,
    })
}

/// Reads the gateway's id, or makes it.
pub(super) fn gateway_id(connection: &mut Connection) -> Result<String, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = transaction
        .query_row(
            "SELECT value FROM meta WHERE name = 'gateway_id'",
            [],
            |row| row.get(0),
        )
        .optional()?;
    let id = match found {
        Some(id) => id,
        None => {
            let id = hex::encode(rand::random::<[u8; 8]>());
            transaction.execute("INSERT INTO meta VALUES ('gateway_id', ?1)", [&id])?;
            id
        }
    };
    transaction.commit()?;
    Ok(id)
}
