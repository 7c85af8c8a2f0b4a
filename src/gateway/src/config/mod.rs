//! The files people write: the gateway's own TOML ([`Config`]) and a project's,
//! which is YAML ([`project`]) or a dev container's JSON ([`devcontainer`]) and
//! may come in an archive of the whole project ([`sent`]). All are refused with
//! file, line, column and the nearest valid key ([`Invalid`]) when they are wrong.

mod archive;
pub mod devcontainer;
mod gateway;
mod ignore;
mod invalid;
mod local;
pub mod project;
pub mod sent;
mod source;

#[cfg(test)]
mod schema;
#[cfg(test)]
mod tests;

pub use gateway::{
    Config, Docker, Limits, Local, Log, LogFormat, LogLevel, MachineNetwork, Ssh, Users,
};
pub use invalid::Invalid;
pub use local::LocalProject;
pub use source::{NotHonoured, Project};
