//! SFTP version 3 (draft-ietf-secsh-filexfer-02, OpenSSH PROTOCOL section 4)
//!
//! It is served on the channel itself where the session's user is the agent's
//! own ([`ChannelServer`]), else by a process of its own as that user: the
//! environment's SFTP server, or `vendetta-agent sftp-server` on standard
//! input and output. Requests are answered in order; what makes it fast is
//! that it takes as many requests as have arrived, and writes their answers
//! together, so that a client which keeps many requests open pays for few
//! system calls. Paths are bytes.

mod attributes;
mod channel;
mod extensions;
mod handles;
mod longname;
mod operations;
mod server;
mod status;
mod wire;

pub use channel::{ChannelServer, is_local};
pub use server::{SftpError, serve};
