//! Forwarding: what the client dials inside the environment, and what is
//! connected to inside it and reaches the client (RFC 4254 section 7, OpenSSH
//! PROTOCOL 2.4, agent and X11 forwarding).
//!
//! Everything happens inside the environment and with the session user's
//! rights: unix sockets are dialled and bound by a thread that is that user,
//! and privileged ports are for root.

pub mod agent_socket;
mod bind;
mod dial;
mod listeners;
mod resolve;
mod splice;
pub mod x11;

pub use bind::{tcp, unix};
pub use dial::{direct_streamlocal, direct_tcpip};
pub use listeners::{Listeners, Target};
pub use resolve::Resolver;
