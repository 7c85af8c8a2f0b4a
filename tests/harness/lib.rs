//! What the end-to-end tests stand on: a Docker engine of their own, the real
//! `vendetta serve`, and the real OpenSSH clients, each wait with a time limit.
//!
//! A wrong answer or a hang is a panic that says what was run, what it said and,
//! when the [`Gateway`] is dropped by it, the tail of the gateway's log.
//! docs/testing.md tells how to run the tests.

mod client;
mod data;
mod engine;
mod gateway;
mod lab;
mod lxc;
mod machine;
mod process;
mod run;

pub use client::{Agent, Client, Master};
pub use data::{Seeded, hexadecimal, random_bytes, sha256};
pub use engine::{BUSYBOX, Engine, TOOLS};
pub use gateway::{Gateway, GatewayBuilder};
pub use lab::{Lab, Link, Node, NodeBuilder, Passed};
pub use lxc::{Lxc, LxcEngine};
pub use machine::{BOOT, MachineImage};
pub use process::Process;
pub use run::{Finished, Run, Running};

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How long anything may take that is over in a moment on an idle machine; a
/// limit against hanging, not a measure of speed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Calls `check` until it is true.
///
/// # Panics
/// After [`PATIENCE`], naming `what` never came true.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(
            start.elapsed() < PATIENCE,
            "still not so after {PATIENCE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port of this machine's loopback that was free a moment ago.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// The folder of the clients that are libraries (`tests/fixtures/build-clients`).
///
/// # Panics
/// When they cannot be installed.
#[must_use]
pub fn clients() -> &'static Path {
    static CLIENTS: LazyLock<PathBuf> = LazyLock::new(|| {
        let build = run::fixture("build-clients").limit(Duration::from_secs(600));
        PathBuf::from(build.ok().text())
    });
    &CLIENTS
}

/// The folder of VS Code's own server (`tests/fixtures/build-vscode-server`).
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn vscode_server() -> &'static Path {
    static SERVER: LazyLock<PathBuf> = LazyLock::new(|| {
        let build = run::fixture("build-vscode-server").limit(Duration::from_secs(600));
        PathBuf::from(build.ok().text())
    });
    &SERVER
}

/// Whether the long forms of the tests are asked for (`VENDETTA_TEST_FULL=1`).
#[must_use]
pub fn full() -> bool {
    std::env::var_os("VENDETTA_TEST_FULL").is_some_and(|value| value == "1")
}
