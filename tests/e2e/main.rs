//! What vendetta promises, each promise a scenario with the real gateway, a real
//! container and the real OpenSSH clients. A module is a topic.

mod bad_input;
mod clients;
mod config;
mod control;
mod crash;
mod devcontainer;
mod doctor;
mod editors;
mod engines;
mod forward;
mod hooks;
mod host_keys;
mod idle;
mod jump;
mod lab;
mod lifecycle;
mod login;
mod lxc;
mod multiplex;
mod nodes;
mod parity;
mod ports;
mod qemu;
mod rebuild;
mod relay;
mod requests;
mod scale;
mod serve;
mod services;
mod session;
mod setup;
mod terminals;
mod transfer;
mod users;
