//! The real agent on a unix socket, driven by the real OpenSSH client.
//!
//! Needs ssh, sftp, scp, ssh-agent and script (Debian: openssh-client,
//! bsdutils), socat, and root for what changes users or mounts.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod fixture;

mod files;
mod forwards;
mod guests;
mod lifecycle;
mod services;
mod sessions;
mod terminals;
