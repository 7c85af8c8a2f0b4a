//! `vendetta workspace connect`: a shell in a workspace, with its ports
//! forwarded to the user's own machine.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::process::{Command as Process, Stdio};

use serde::Deserialize;

use super::Failure;
use super::address::Address;
use super::front::{LOGIN, SSH_FAILED, To, destination, gateway_failed, line, not_run};
use crate::control::local_port;

/// What is connected to, and how.
#[derive(Debug)]
pub(super) struct Connect<'a> {
    /// The workspace.
    pub workspace: &'a str,
    /// User inside the environment.
    pub user: Option<&'a str>,
    /// Whether ports are forwarded.
    pub forward: bool,
    /// Whether a shell is opened.
    pub shell: bool,
}

/// What `workspace ports --json` says, as far as it is needed here.
#[derive(Debug, Deserialize)]
struct Ports {
    mapped: Vec<Port>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Port {
    service: Option<String>,
    port: u16,
    url: String,
}

/// A port of the workspace and the one of this machine that it is brought to.
#[derive(Debug, PartialEq, Eq)]
struct Forward<'a> {
    port: &'a Port,
    local: u16,
}

/// Becomes `ssh WORKSPACE@gateway`; returns only when it cannot, or the
/// gateway has refused something (and said why), with the exit status.
pub(super) fn run(address: &Address, to: To<'_>, connect: &Connect<'_>) -> Result<u8, Failure> {
    let ports = if connect.forward {
        match ports(address, connect.workspace)? {
            Ok(ports) => ports,
            Err(status) => return Ok(status),
        }
    } else {
        Vec::new()
    };
    let is_root = nix::unistd::geteuid().is_root();
    let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let forwards = choose(&ports, is_root, is_free);
    let mut ssh = Process::new("ssh");
    if to.forward_agent {
        ssh.arg("-A");
    }
    if !connect.shell {
        ssh.arg("-N");
    } else if std::io::stdin().is_terminal() {
        ssh.arg("-t");
    }
    if !forwards.is_empty() {
        // A port that somebody took meanwhile is no reason for no shell.
        ssh.args(["-o", "ExitOnForwardFailure=no"]);
    }
    for Forward { port, local } in &forwards {
        // The loopback of the environment: what a service's name means there, too.
        let inside = port.port;
        ssh.arg("-L")
            .arg(format!("127.0.0.1:{local}:localhost:{inside}"));
        let scheme = port
            .url
            .split_once("://")
            .map_or("tcp", |(scheme, _)| scheme);
        let what = match &port.service {
            Some(service) => format!("service {service}, port {inside}"),
            None => format!("port {inside}"),
        };
        super::tell(&format!(
            "vendetta: {scheme}://127.0.0.1:{local} leads to {what}\n"
        ));
    }
    let login = match connect.user {
        Some(user) => format!("{}+{user}", connect.workspace),
        None => connect.workspace.to_owned(),
    };
    destination(&mut ssh, address, &login);
    Err(not_run(&ssh.exec()))
}

/// The ports of a workspace, or the exit status of the gateway's refusal.
fn ports(address: &Address, workspace: &str) -> Result<Result<Vec<Port>, u8>, Failure> {
    let words = ["workspace", "ports", workspace, "--json"].map(str::to_owned);
    let mut ssh = Process::new("ssh");
    destination(&mut ssh, address, LOGIN);
    ssh.arg(line(&words)?)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = ssh.output().map_err(|error| not_run(&error))?;
    match output.status.code() {
        Some(0) => {}
        Some(SSH_FAILED) | None => return Err(gateway_failed(address)),
        Some(code) => return Ok(Err(u8::try_from(code).unwrap_or(70))),
    }
    match serde_json::from_slice::<Ports>(&output.stdout) {
        Ok(ports) => Ok(Ok(ports.mapped)),
        Err(error) => Err(Failure::new(
            70,
            format!("the gateway {address} says what is not understood: {error}"),
            "connect without its ports: --no-forward",
        )),
    }
}

/// For each port the same one of this machine, or the next that is free; one
/// that needs privileges which the user has not is raised. A port for which
/// none is left is left out.
fn choose(ports: &[Port], is_root: bool, is_free: impl Fn(u16) -> bool) -> Vec<Forward<'_>> {
    let mut chosen = BTreeSet::new();
    let mut forwards = Vec::new();
    for port in ports {
        let first = if is_root {
            port.port
        } else {
            local_port(port.port)
        };
        let mut candidates = (first..=u16::MAX).chain(1024..first);
        if let Some(local) = candidates.find(|local| !chosen.contains(local) && is_free(*local)) {
            chosen.insert(local);
            forwards.push(Forward { port, local });
        }
    }
    forwards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_the_same_here_or_the_next_free_one() {
        let ports = [80, 8080, 5432, 65535].map(|port| Port {
            service: None,
            port,
            url: String::new(),
        });
        let locals = |is_root, busy: &[u16]| -> Vec<u16> {
            let forwards = choose(&ports, is_root, |port| !busy.contains(&port));
            forwards.iter().map(|forward| forward.local).collect()
        };
        assert_eq!(locals(true, &[]), [80, 8080, 5432, 65535]);
        assert_eq!(locals(false, &[]), [8080, 8081, 5432, 65535]);
        assert_eq!(
            locals(false, &[5432, 5433, 65535]),
            [8080, 8081, 5434, 1024]
        );
        let none = choose(&ports, false, |_| false);
        assert_eq!(none, []);
    }
}
