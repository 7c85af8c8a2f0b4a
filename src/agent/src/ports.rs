//! The TCP ports on which processes of the environment listen.
//!
//! Where the environment has a network of its own, every port in it is the
//! environment's, whoever started what listens. Any other shares the machine's, where
//! only the ports of the agent's descendants are. The agent's own listening sockets are
//! the one it serves and a client's remote forwards, which lead out of the environment:
//! they are never among them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Pid;
use tokio::sync::Mutex;
use tokio::time::Instant;
use vendetta_proto::rpc::ListeningPort;

use crate::process::Table;
use crate::supervisor::Supervisor;

/// How long a list serves all who ask: a little less than the time between two
/// questions of one who follows.
const FRESH: Duration = Duration::from_secs(1);

/// TCP_LISTEN (include/net/tcp_states.h).
const LISTEN: &str = "0A";

/// Lists ports, for any number of watchers at the price of one.
#[derive(Debug, Default)]
pub struct Ports(Mutex<Option<(Instant, Arc<Vec<ListeningPort>>)>>);

impl Ports {
    /// The ports of now, or of a moment ago.
    pub async fn list(&self, agent: &Arc<crate::connection::Agent>) -> Arc<Vec<ListeningPort>> {
        let mut last = self.0.lock().await;
        if let Some((time, ports)) = &*last
            && time.elapsed() < FRESH
        {
            return Arc::clone(ports);
        }
        let shared = Arc::clone(agent);
        let scan = tokio::task::spawn_blocking(move || {
            scan(&shared.services, shared.settings.own_network)
        });
        let ports = Arc::new(scan.await.unwrap_or_default());
        *last = Some((Instant::now(), Arc::clone(&ports)));
        ports
    }
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Socket {
    address: IpAddr,
    port: u16,
    inode: u64,
}

fn scan(services: &Supervisor, own_network: bool) -> Vec<ListeningPort> {
    let sockets: Vec<Socket> = ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .iter()
        .flat_map(|path| parse(&std::fs::read_to_string(path).unwrap_or_default()))
        .collect();
    if sockets.is_empty() {
        return Vec::new();
    }
    let table = Table::now();
    let listening: HashSet<u64> = sockets.iter().map(|socket| socket.inode).collect();
    let mut owners: HashMap<u64, Pid> = HashMap::new();
    let possible = if own_network {
        table.others()
    } else {
        table.below(Pid::this())
    };
    for pid in possible {
        for inode in sockets_of(pid).filter(|inode| listening.contains(inode)) {
            // Of those that share it, the one that was there first made it.
            let owner = owners.entry(inode).or_insert(pid);
            *owner = pid.min(*owner);
        }
    }
    let ours: HashSet<u64> = sockets_of(Pid::this()).collect();
    let mut found: BTreeMap<(u16, IpAddr), ListeningPort> = BTreeMap::new();
    for socket in sockets {
        let owner = owners.get(&socket.inode).copied();
        if owner.is_none() && (!own_network || ours.contains(&socket.inode)) {
            continue;
        }
        let port = ListeningPort {
            port: socket.port,
            address: socket.address.to_string(),
            pid: owner.map(|pid| pid.as_raw().cast_unsigned()),
            program: owner.and_then(program),
            service: owner.and_then(|pid| services.service_of(&table, pid)),
        };
        let known = found.entry((socket.port, socket.address));
        known.or_insert(port);
    }
    found.into_values().collect()
}

/// The inodes of the sockets that a process has open.
fn sockets_of(pid: Pid) -> impl Iterator<Item = u64> {
    let directory = std::fs::read_dir(format!("/proc/{pid}/fd"));
    directory.into_iter().flatten().flatten().filter_map(|fd| {
        let target = std::fs::read_link(fd.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?;
        inode.strip_suffix(']')?.parse().ok()
    })
}

fn program(pid: Pid) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().to_owned())
}

/// The listening sockets in /proc/net/tcp or tcp6 (proc_net_tcp.rst of the kernel).
fn parse(text: &str) -> Vec<Socket> {
    let socket = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (address, port) = fields.nth(1)?.split_once(':')?;
        if fields.nth(1)? != LISTEN {
            return None;
        }
        Some(Socket {
            address: parse_address(address)?,
            port: u16::from_str_radix(port, 16).ok()?,
            inode: fields.nth(5)?.parse().ok()?,
        })
    };
    text.lines().skip(1).filter_map(socket).collect()
}

/// An address as the kernel prints it: each 32-bit word of it, which is in
/// network order, as a number of the machine.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = hex.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn listening_sockets_of_both_families_are_found() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0\n   \
            1: 0100007F:1F91 0100007F:0016 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0 100 0 0 10 0\n";
        let found = parse(tcp);
        assert_eq!(
            found,
            [Socket {
                address: "127.0.0.1".parse().unwrap(),
                port: 8080,
                inode: 4711
            }]
        );
        let tcp6 = "  sl  local_address remote_address st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0\n";
        assert_eq!(parse(tcp6)[0].address, IpAddr::from(Ipv6Addr::LOCALHOST));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[0-9A-F: \n]{0,200}") {
            let _ = parse(&text);
            let _ = parse_address(&text);
        }
    }
}
