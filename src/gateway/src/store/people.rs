//! Users and their keys: rows, and the copy in memory that logins read.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, params};
use serde::Serialize;
use tokio::sync::watch;
use vendetta_proto::UserName;
use vendetta_sshio::keys::PublicKey;

use super::{Store, StoreError, name_is_free, user_of};
use crate::access::{Permissions, Principal, Role};

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UserRecord {
    /// The name.
    pub name: UserName,
    /// What they are.
    pub role: Role,
    /// When they were added.
    pub created: Timestamp,
}

/// A key of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyRecord {
    /// "SHA256:…".
    pub fingerprint: String,
    /// Whose it is.
    pub user: UserName,
    /// OpenSSH line without its comment.
    pub public_key: String,
    /// The comment; may be empty.
    pub comment: String,
    /// When it was added.
    pub created: Timestamp,
}

/// What is held in memory.
#[derive(Debug, Default)]
pub(super) struct People {
    users: BTreeMap<UserName, UserRecord>,
    keys: HashMap<String, KeyRecord>,
    principals: HashMap<String, Arc<Principal>>,
    /// Counts what happened to users and keys.
    changes: watch::Sender<u64>,
}

impl People {
    pub(super) fn load(connection: &Connection) -> Result<Self, StoreError> {
        let mut people = Self::default();
        let mut statement = connection.prepare("SELECT name, role, created FROM users")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let role: String = row.get(1)?;
            let user = UserRecord {
                name: user_of(row.get(0)?)?,
                role: role
                    .parse()
                    .map_err(|error| StoreError::Corrupt(format!("{error}")))?,
                created: timestamp(row.get(2)?)?,
            };
            people.users.insert(user.name.clone(), user);
        }
        let mut statement = connection
            .prepare("SELECT fingerprint, user, public_key, comment, created FROM keys")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            people.insert_key(KeyRecord {
                fingerprint: row.get(0)?,
                user: user_of(row.get(1)?)?,
                public_key: row.get(2)?,
                comment: row.get(3)?,
                created: timestamp(row.get(4)?)?,
            });
        }
        Ok(people)
    }

    fn insert_key(&mut self, key: KeyRecord) {
        if let Some(user) = self.users.get(&key.user) {
            let principal = Principal {
                user: user.name.clone(),
                role: user.role,
                key_fingerprint: key.fingerprint.clone(),
                permissions: Permissions::default(),
            };
            self.principals
                .insert(key.fingerprint.clone(), Arc::new(principal));
            self.keys.insert(key.fingerprint.clone(), key);
            self.changed();
        }
    }

    fn insert_user(&mut self, user: UserRecord) {
        self.users.insert(user.name.clone(), user);
        self.changed();
    }

    fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn remove_key(&mut self, fingerprint: &str) {
        self.keys.remove(fingerprint);
        self.principals.remove(fingerprint);
        self.changed();
    }

    fn remove_user(&mut self, name: &UserName) {
        self.users.remove(name);
        self.keys.retain(|_, key| key.user != *name);
        self.principals
            .retain(|_, principal| principal.user != *name);
        self.changed();
    }

    fn keys_of(&self, user: &UserName) -> Vec<KeyRecord> {
        let mut keys: Vec<_> = self
            .keys
            .values()
            .filter(|key| key.user == *user)
            .cloned()
            .collect();
        keys.sort_by(|a, b| (a.created, &a.fingerprint).cmp(&(b.created, &b.fingerprint)));
        keys
    }
}

pub(super) fn timestamp(milliseconds: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(milliseconds)
        .map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// Now, with the precision that is stored.
pub(super) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

impl Store {
    /// Adds a user.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`] by a user or a workspace.
    pub async fn add_user(&self, name: &UserName, role: Role) -> Result<UserRecord, StoreError> {
        let user = UserRecord {
            name: name.clone(),
            role,
            created: now(),
        };
        let (row, record) = (user.clone(), user.clone());
        self.change(
            "add user",
            move |transaction| {
                name_is_free(transaction, row.name.as_str())?;
                transaction.execute(
                    "INSERT INTO users (name, role, created) VALUES (?1, ?2, ?3)",
                    params![
                        row.name.as_str(),
                        row.role.as_str(),
                        row.created.as_millisecond()
                    ],
                )?;
                Ok(())
            },
            move |people| people.insert_user(record),
        )
        .await?;
        Ok(user)
    }

    /// Removes a user and their keys.
    ///
    /// # Errors
    /// When there is no such user, they still have workspaces, or they are the
    /// last admin that can log in.
    pub async fn remove_user(&self, name: &UserName) -> Result<(), StoreError> {
        let role = self.user(name).map(|user| user.role);
        let (row, record) = (name.clone(), name.clone());
        self.change(
            "remove user",
            move |transaction| {
                let mut owned = transaction
                    .prepare("SELECT name FROM workspaces WHERE owner = ?1 ORDER BY name")?;
                let workspaces = owned
                    .query_map([row.as_str()], |found| found.get(0))?
                    .collect::<Result<Vec<String>, _>>()?;
                if !workspaces.is_empty() {
                    return Err(StoreError::HasWorkspaces {
                        user: row,
                        workspaces,
                    });
                }
                if transaction.execute("DELETE FROM users WHERE name = ?1", [row.as_str()])? == 0 {
                    return Err(StoreError::NoUser(row));
                }
                an_admin_is_left(transaction, row, role)
            },
            move |people| people.remove_user(&record),
        )
        .await
    }

    /// All users, by name. From memory.
    #[must_use]
    pub fn users(&self) -> Vec<UserRecord> {
        self.people(|people| people.users.values().cloned().collect())
    }

    /// A user. From memory.
    #[must_use]
    pub fn user(&self, name: &UserName) -> Option<UserRecord> {
        self.people(|people| people.users.get(name).cloned())
    }

    /// Gives a user a key.
    ///
    /// # Errors
    /// When there is no such user, or somebody has the key.
    pub async fn add_key(
        &self,
        user: &UserName,
        key: &PublicKey,
        comment: &str,
    ) -> Result<KeyRecord, StoreError> {
        let key = KeyRecord {
            fingerprint: key.fingerprint(),
            user: user.clone(),
            public_key: key.to_string(),
            comment: comment.to_owned(),
            created: now(),
        };
        let (row, record) = (key.clone(), key.clone());
        self.change(
            "add key",
            move |transaction| {
                let mut exists = transaction.prepare("SELECT 1 FROM users WHERE name = ?1")?;
                if !exists.exists([row.user.as_str()])? {
                    return Err(StoreError::NoUser(row.user));
                }
                let mut taken =
                    transaction.prepare("SELECT user FROM keys WHERE fingerprint = ?1")?;
                let mut holders = taken.query([&row.fingerprint])?;
                if let Some(holder) = holders.next()? {
                    return Err(StoreError::KeyTaken {
                        user: user_of(holder.get(0)?)?,
                        fingerprint: row.fingerprint,
                    });
                }
                transaction.execute(
                    "INSERT INTO keys (fingerprint, user, public_key, comment, created)
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![
                        row.fingerprint,
                        row.user.as_str(),
                        row.public_key,
                        row.comment,
                        row.created.as_millisecond()
                    ],
                )?;
                Ok(())
            },
            move |people| people.insert_key(record),
        )
        .await?;
        Ok(key)
    }

    /// Takes a key from a user, by the beginning of its fingerprint, with or
    /// without "SHA256:".
    ///
    /// # Errors
    /// When no key or more than one begins so, or it is the last key of the
    /// last admin.
    pub async fn remove_key(
        &self,
        user: &UserName,
        beginning: &str,
    ) -> Result<KeyRecord, StoreError> {
        let Some(UserRecord { role, .. }) = self.user(user) else {
            return Err(StoreError::NoUser(user.clone()));
        };
        let matches = |key: &KeyRecord| {
            let digest = key.fingerprint.strip_prefix("SHA256:").unwrap_or_default();
            let wanted = beginning.strip_prefix("SHA256:").unwrap_or(beginning);
            !wanted.is_empty() && digest.starts_with(wanted)
        };
        let found: Vec<_> = self.keys(user).into_iter().filter(matches).collect();
        let key = match found.as_slice() {
            [key] => key.clone(),
            [] => {
                return Err(StoreError::NoKey {
                    user: user.clone(),
                    key: beginning.to_owned(),
                });
            }
            several => {
                return Err(StoreError::AmbiguousKey {
                    user: user.clone(),
                    key: beginning.to_owned(),
                    count: several.len(),
                });
            }
        };
        let (row, fingerprint) = (key.clone(), key.fingerprint.clone());
        self.change(
            "remove key",
            move |transaction| {
                let removed = transaction.execute(
                    "DELETE FROM keys WHERE fingerprint = ?1 AND user = ?2",
                    [&row.fingerprint, row.user.as_str()],
                )?;
                if removed == 0 {
                    return Err(StoreError::NoKey {
                        user: row.user,
                        key: row.fingerprint,
                    });
                }
                an_admin_is_left(transaction, row.user, Some(role))
            },
            move |people| people.remove_key(&fingerprint),
        )
        .await?;
        Ok(key)
    }

    /// Keys of a user, oldest first. From memory.
    #[must_use]
    pub fn keys(&self, user: &UserName) -> Vec<KeyRecord> {
        self.people(|people| people.keys_of(user))
    }

    /// Who each key belongs to. From memory.
    #[must_use]
    pub fn principals(&self) -> Vec<Arc<Principal>> {
        self.people(|people| people.principals.values().cloned().collect())
    }

    /// Changes with every change of users and keys; once it has, they are as
    /// they were changed.
    #[must_use]
    pub fn people_changes(&self) -> watch::Receiver<u64> {
        self.people(|people| people.changes.subscribe())
    }

    /// Who a key belongs to. From memory: every login asks.
    #[must_use]
    pub fn principal_for_key(&self, fingerprint: &str) -> Option<Arc<Principal>> {
        self.people(|people| people.principals.get(fingerprint).cloned())
    }
}

/// After a removal from an admin: an admin with a key must be left.
fn an_admin_is_left(
    transaction: &rusqlite::Transaction<'_>,
    user: UserName,
    role: Option<Role>,
) -> Result<(), StoreError> {
    if role != Some(Role::Admin) {
        return Ok(());
    }
    let mut left = transaction.prepare(
        "SELECT 1 FROM users JOIN keys ON keys.user = users.name WHERE users.role = 'admin'",
    )?;
    if left.exists([])? {
        Ok(())
    } else {
        Err(StoreError::LastAdmin(user))
    }
}
