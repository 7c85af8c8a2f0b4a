//! SFTP version 3 (draft-ietf-secsh-filexfer-02, OpenSSH PROTOCOL section 4)
//! for environments without a server of their own.
//!
//! It runs as a process of its own (`vendetta-agent sftp-server`), as the
//! user, on standard input and output. Requests are answered in order; what
//! makes it fast is that it reads as many requests as have arrived, and writes
//! their answers together, so that a client which keeps many requests open
//! pays for few system calls. Paths are bytes.

mod attributes;
mod extensions;
mod handles;
mod longname;
mod operations;
mod server;
mod status;
mod wire;

pub use server::{SftpError, serve};
