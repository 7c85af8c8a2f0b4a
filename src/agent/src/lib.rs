//! The agent: an SSH server inside an environment.
//!
//! `vendetta-agent serve` listens on a unix socket or a TCP port and serves shells,
//! commands, SFTP and forwards to the gateway, as the users of the
//! environment. It may be PID 1 of a container or an ordinary process.
//!
//! | module | idea |
//! |---|---|
//! | [`config`] | the configuration file, checked |
//! | [`server`] | listens, accepts, stops |
//! | [`listen`] | the unix socket or TCP port |
//! | `connection` | what the channels of one connection share |
//! | `handler` | russh's callbacks, without policy |
//! | `session` | a session channel: requests, then one process |
//! | `terminal` | terminals that outlive their clients |
//! | `forward` | dialling, listening and splicing |
//! | `supervisor` | the services: started, watched and stopped in order |
//! | `logs` | what services write, kept and read |
//! | `ports` | the ports on which processes listen |
//! | `rpc` | what the gateway asks about all that |
//! | `process` | spawning, reaping and ending processes; the only `unsafe` code |
//! | `disk` | a fresh disk is handed to its user |
//! | [`users`] | /etc/passwd and /etc/group |
//! | [`sftp`] | the SFTP server for environments without one |

pub mod config;
mod connection;
mod disk;
mod environment;
mod forward;
mod handler;
pub mod listen;
mod logs;
mod ports;
mod process;
mod rpc;
pub mod server;
mod session;
pub mod sftp;
mod supervisor;
mod terminal;
pub mod users;
