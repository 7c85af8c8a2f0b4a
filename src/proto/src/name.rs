//! Names that users choose. All are DNS labels (RFC 1123 section 2.1), so that
//! they serve as SSH login names, host names, container names and variable
//! names without quoting.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest DNS label, in bytes (RFC 1035 section 2.3.4).
pub const MAX_LENGTH: usize = 63;

/// The login name of the control plane; no user and no workspace may take it.
pub const RESERVED: &str = "vendetta";

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} name {name:?} {problem}; use 1 to 63 lower-case letters, digits and '-', starting with a letter and not ending with '-'"
)]
pub struct InvalidName {
    /// What the name was for: "workspace", "node", …
    pub kind: &'static str,
    /// The name as given.
    pub name: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

fn check(kind: &'static str, name: &str) -> Result<(), InvalidName> {
    let refuse = |problem| {
        Err(InvalidName {
            kind,
            name: name.to_owned(),
            problem,
        })
    };
    if name.is_empty() {
        return refuse("is empty");
    }
    if name.len() > MAX_LENGTH {
        return refuse("is longer than 63 characters");
    }
    if !name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        return refuse("has a character that is not allowed");
    }
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return refuse("does not start with a letter");
    }
    if name.ends_with('-') {
        return refuse("ends with '-'");
    }
    if name == RESERVED {
        return refuse("is reserved");
    }
    Ok(())
}

macro_rules! name {
    ($type:ident, $kind:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;
            fn from_str(name: &str) -> Result<Self, InvalidName> {
                check($kind, name)?;
                Ok(Self(name.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(name: String) -> Result<Self, InvalidName> {
                check($kind, &name)?;
                Ok(Self(name))
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    WorkspaceName,
    "workspace",
    "Name of a workspace, unique on its gateway."
);
name!(NodeName, "node", "Name of a node, unique on its gateway.");
name!(
    ServiceName,
    "service",
    "Name of a service, unique in its workspace."
);
name!(
    TerminalName,
    "terminal",
    "Name of a terminal that outlives its clients, unique for a user of an environment."
);
name!(
    UserName,
    "user",
    "Name of a user of the gateway; shares one name space with workspaces."
);

impl UserName {
    /// The first admin's name where the operator's own does not serve.
    #[must_use]
    pub fn admin() -> Self {
        Self("admin".to_owned())
    }
}

impl NodeName {
    /// The gateway's own machine, reached without SSH.
    pub const LOCAL: &str = "local";

    /// The node that stands for the gateway's own machine.
    #[must_use]
    pub fn local() -> Self {
        Self(Self::LOCAL.to_owned())
    }
}
