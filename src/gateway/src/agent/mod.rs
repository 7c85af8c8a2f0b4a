//! The gateway's side of agents: their executables on nodes, and the pool of
//! SSH connections to them.

pub mod install;
pub mod pool;
