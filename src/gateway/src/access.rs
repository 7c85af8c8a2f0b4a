//! Who may do what: roles, principals, and the one function that says yes.
//!
//! The policy is short. An admin may do everything. A member may do everything
//! with what they own except administer it. What is not there and what is not
//! yours are one answer, so that nobody learns the names of others' workspaces.
//!
//! [`Authorized`] has no other maker than [`authorize`]; whatever needs a
//! permission takes an `Authorized<T>` and cannot be called without one.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vendetta_proto::UserName;

/// What a user is on this gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees and does everything.
    Admin,
    /// Sees and operates their own workspaces and keys.
    Member,
}

impl Role {
    /// The word used on the command line and in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Member => "member",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role; use admin or member")]
pub struct InvalidRole(pub String);

impl FromStr for Role {
    type Err = InvalidRole;
    fn from_str(word: &str) -> Result<Self, InvalidRole> {
        match word {
            "admin" => Ok(Self::Admin),
            "member" => Ok(Self::Member),
            _ => Err(InvalidRole(word.to_owned())),
        }
    }
}

/// What a login may do inside its sessions. A plain key may do all of it; the
/// extensions and critical options of a user certificate narrow it (OpenSSH
/// PROTOCOL.certkeys).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    /// `permit-pty`.
    pub pty: bool,
    /// `permit-port-forwarding`: TCP and unix sockets, either direction.
    pub port_forwarding: bool,
    /// `permit-agent-forwarding`.
    pub agent_forwarding: bool,
    /// `permit-X11-forwarding`.
    pub x11_forwarding: bool,
    /// `force-command`: replaces whatever shell, command or subsystem is asked for.
    pub force_command: Option<String>,
}

impl Default for Permissions {
    fn default() -> Self {
        Self {
            pty: true,
            port_forwarding: true,
            agent_forwarding: true,
            x11_forwarding: true,
            force_command: None,
        }
    }
}

/// Who a verified key belongs to, and what that login may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The user.
    pub user: UserName,
    /// The user's role.
    pub role: Role,
    /// Fingerprint ("SHA256:…") of the key that logged in.
    pub key_fingerprint: String,
    /// What the login may do inside its sessions.
    pub permissions: Permissions,
}

/// What somebody wants to do with a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// See that it exists, its status, its logs.
    View,
    /// Make one.
    Create,
    /// Open sessions and forwards into it.
    Connect,
    /// Bring it up or down, rebuild it, change its keys.
    Operate,
    /// Remove it and all it holds.
    Destroy,
    /// Change who may use the gateway: users and roles.
    Administer,
}

impl Action {
    /// Every action, for policies that are tested whole.
    pub const ALL: [Self; 6] = [
        Self::View,
        Self::Create,
        Self::Connect,
        Self::Operate,
        Self::Destroy,
        Self::Administer,
    ];
}

/// Something that permission is asked for.
pub trait Resource {
    /// The user it belongs to; none: to the gateway, so admins only.
    fn owner(&self) -> Option<&UserName>;
}

/// The gateway itself: its users and settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gateway;

impl Resource for Gateway {
    fn owner(&self) -> Option<&UserName> {
        None
    }
}

/// A user's account and keys; it belongs to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account(pub UserName);

impl Resource for Account {
    fn owner(&self) -> Option<&UserName> {
        Some(&self.0)
    }
}

/// The answer "no", which does not tell "not there" from "not yours".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not found, or not yours")]
pub struct Denied;

/// A resource that the caller may use, for one action. Only [`authorize`] makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorized<T> {
    resource: T,
    action: Action,
    user: UserName,
}

impl<T> Authorized<T> {
    /// The action that was authorised.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// The user it was authorised for.
    #[must_use]
    pub fn user(&self) -> &UserName {
        &self.user
    }
}

impl<T> Deref for Authorized<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.resource
    }
}

/// Says whether `principal` may do `action` with `resource`.
///
/// # Errors
/// [`Denied`] when not.
pub fn authorize<T: Resource>(
    principal: &Principal,
    action: Action,
    resource: T,
) -> Result<Authorized<T>, Denied> {
    let owns = resource.owner() == Some(&principal.user);
    if allows(principal.role, owns, action) {
        Ok(Authorized {
            resource,
            action,
            user: principal.user.clone(),
        })
    } else {
        Err(Denied)
    }
}

/// The policy.
fn allows(role: Role, owns: bool, action: Action) -> bool {
    match role {
        Role::Admin => true,
        Role::Member => owns && action != Action::Administer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(user: &str, role: Role) -> Principal {
        Principal {
            user: user.parse().unwrap(),
            role,
            key_fingerprint: "SHA256:test".to_owned(),
            permissions: Permissions::default(),
        }
    }

    fn account(user: &str) -> Account {
        Account(user.parse().unwrap())
    }

    #[test]
    fn an_admin_may_do_everything() {
        let admin = principal("root-of-all", Role::Admin);
        for action in Action::ALL {
            assert!(authorize(&admin, action, Gateway).is_ok(), "{action:?}");
            assert!(
                authorize(&admin, action, account("alice")).is_ok(),
                "{action:?}"
            );
        }
    }

    #[test]
    fn a_member_operates_what_they_own_and_nothing_else() {
        let alice = principal("alice", Role::Member);
        for action in Action::ALL {
            let own = authorize(&alice, action, account("alice"));
            assert_eq!(own.is_ok(), action != Action::Administer, "{action:?}");
            assert_eq!(
                authorize(&alice, action, account("bob")),
                Err(Denied),
                "{action:?}"
            );
            assert_eq!(
                authorize(&alice, action, Gateway),
                Err(Denied),
                "{action:?}"
            );
        }
    }

    #[test]
    fn what_was_authorised_says_for_whom_and_what() {
        let alice = principal("alice", Role::Member);
        let authorized = authorize(&alice, Action::Operate, account("alice")).unwrap();
        assert_eq!(authorized.action(), Action::Operate);
        assert_eq!(authorized.user().as_str(), "alice");
        assert_eq!(authorized.0.as_str(), "alice");
    }

    #[test]
    fn a_role_is_read_as_it_is_written() {
        for role in [Role::Admin, Role::Member] {
            assert_eq!(role.as_str().parse::<Role>(), Ok(role));
        }
        assert!("root".parse::<Role>().is_err());
    }
}
