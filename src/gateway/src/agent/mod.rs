//! The gateway's side of agents: their executables on nodes, and the pool of
//! SSH connections to them, with the channels that come back over these.

pub mod install;
pub mod opens;
pub mod pool;
