//! Against a real sshd.

mod exec;
mod files;
mod link;
mod sessions;
mod tunnels;
