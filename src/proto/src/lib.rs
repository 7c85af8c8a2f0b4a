//! What the parts of vendetta say to one another, and nothing that does I/O:
//! names, the project config, the configuration the gateway writes for the
//! agent of an environment, and what it asks of that agent.

pub mod agent;
pub mod build;
pub mod graph;
pub mod health;
pub mod hook;
pub mod name;
mod nearest;
pub mod rpc;
#[cfg(feature = "schema")]
mod schema;
pub mod spec;
pub mod value;

pub use name::{InvalidName, NodeName, ServiceName, TerminalName, UserName, WorkspaceName};
pub use nearest::nearest;
