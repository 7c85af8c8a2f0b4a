//! The two files people write: the gateway's own TOML ([`Config`]) and a
//! project's YAML ([`project`]). Both are refused with file, line, column and
//! the nearest valid key ([`Invalid`]) when they are wrong.

mod gateway;
mod invalid;
pub mod project;

#[cfg(test)]
mod tests;

pub use gateway::{Config, Docker, Limits, Local, Log, LogFormat, LogLevel, Ssh, Users};
pub use invalid::{Invalid, nearest};
