//! What vendetta promises, each promise a scenario with the real gateway, a real
//! container and the real OpenSSH clients. A module is a topic.

mod bad_input;
mod control;
mod crash;
mod forward;
mod lab;
mod lifecycle;
mod login;
mod multiplex;
mod nodes;
mod qemu;
mod relay;
mod scale;
mod serve;
mod session;
mod transfer;
mod users;
