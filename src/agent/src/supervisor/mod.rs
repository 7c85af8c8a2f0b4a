//! The services of the environment.

pub mod policy;
pub mod spec;
