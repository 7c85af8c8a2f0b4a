//! The gateway's side of agents: their executables on nodes, the pool of SSH
//! connections to them, with the channels that come back over these, and the
//! gateway's own conversation with them.

pub mod client;
pub mod install;
pub mod opens;
pub mod pool;
