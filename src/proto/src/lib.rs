//! What the parts of vendetta say to one another, and nothing that does I/O:
//! names, the project config, and the configuration the gateway writes for the
//! agent of an environment.

pub mod agent;
pub mod name;
pub mod spec;
pub mod value;

pub use name::{InvalidName, NodeName, ServiceName, UserName, WorkspaceName};
