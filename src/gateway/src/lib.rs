//! The vendetta gateway: an SSH server in front of remote development workspaces.
//! docs/architecture.md draws the parts and states what never happens.

pub mod access;
pub mod agent;
pub mod app;
pub mod cannot_start;
pub mod cli;
pub mod config;
pub mod control;
pub mod events;
pub mod first_admin;
pub mod inventory;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod ports;
pub mod provider;
pub mod ssh;
pub mod store;
pub mod workspace;
