//! What there is on a node, and how it is: asked with one POSIX shell script
//! each, which coreutils and busybox both run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::kvm::{self, Kvm};
use super::{Command, NodeError, NodeTransport};

/// What there is on a node; asked when it is added or tested.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probe {
    /// Architecture, as `uname -m` calls it.
    pub arch: String,
    /// Kernel and its release.
    pub kernel: String,
    /// The distribution's name for itself (os-release(5), PRETTY_NAME).
    pub os: String,
    /// The node's own name for itself.
    pub hostname: String,
    /// Who we are on it.
    pub user: String,
    /// Our home directory.
    pub home: PathBuf,
    /// Docker, where it is installed or has a socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker: Option<Socket>,
    /// Incus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incus: Option<Socket>,
    /// LXD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lxd: Option<Socket>,
    /// QEMU's version, by the architecture that it emulates.
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    pub qemu: HashMap<String, String>,
    /// What became of a guest that was started under KVM; none: no QEMU to start one with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvm: Option<Kvm>,
}

/// An engine's API socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// Where it is; none: the engine is installed and does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Whether we may open it.
    pub usable: bool,
    /// The version of the engine's program, where it says one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// How a node is; asked every few seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Load averages over 1, 5 and 15 minutes (proc_loadavg(5)).
    pub load: [f64; 3],
    /// Processors.
    pub cores: u32,
    /// Memory in bytes.
    pub memory_total: u64,
    /// Memory that programs could still get, in bytes.
    pub memory_available: u64,
    /// Size of the file system that our files are on, in bytes.
    pub disk_total: u64,
    /// What is free of it, in bytes.
    pub disk_available: u64,
    /// The node's clock, in seconds since 1970.
    pub clock: i64,
}

impl Facts {
    /// The free part of the disk, 0 to 1; none when the size is not known.
    #[must_use]
    pub fn disk_free(&self) -> Option<f64> {
        #[allow(clippy::cast_precision_loss)]
        (self.disk_total > 0).then(|| self.disk_available as f64 / self.disk_total as f64)
    }
}

const PROBE: &str = r#"
say() { printf '%s=%s\n' "$1" "$2"; }
say arch "$(uname -m)"
say kernel "$(uname -sr)"
say hostname "$(uname -n)"
say os "$(. /etc/os-release 2>/dev/null && printf %s "$PRETTY_NAME")"
say user "$(id -un 2>/dev/null || id -u)"
say home "$(cd && pwd -P)"
PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin:/snap/bin:/usr/libexec/incus
socket() {
    what=$1; shift
    for path; do
        [ -S "$path" ] || continue
        if [ -r "$path" ] && [ -w "$path" ]; then say "$what.usable" "$path"; return; fi
        say "$what.denied" "$path"
    done
}
version() { if command -v "$2" >/dev/null 2>&1; then say "$1.version" "$("$2" --version 2>/dev/null | head -n 1)"; fi; }
run=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}
socket docker "$run/docker.sock" /var/run/docker.sock
version docker dockerd
socket incus /var/lib/incus/unix.socket /run/incus/unix.socket
version incus incusd
socket lxd /var/lib/lxd/unix.socket /var/snap/lxd/common/lxd/unix.socket
version lxd lxd
for arch in x86_64 aarch64; do
    if command -v "qemu-system-$arch" >/dev/null 2>&1; then
        say "qemu.$arch" "$("qemu-system-$arch" --version 2>/dev/null | head -n 1)"
    fi
done
if [ -e /dev/kvm ]; then say kvm device; fi
"#;

const FACTS: &str = r#"
read -r one five fifteen rest </proc/loadavg && printf 'load=%s %s %s\n' "$one" "$five" "$fifteen"
printf 'cores=%s\n' "$(grep -c '^processor' /proc/cpuinfo)"
while read -r key value unit; do
    case $key in
        MemTotal:) printf 'total=%s\n' "$value" ;;
        MemAvailable:) printf 'available=%s\n' "$value" ;;
    esac
done </proc/meminfo
dir=$1
while [ ! -d "$dir" ]; do dir=$(dirname "$dir"); done
df -Pk "$dir" | { read -r heading; read -r device size used free rest; printf 'size=%s\nfree=%s\n' "$size" "$free"; }
printf 'clock=%s\n' "$(date +%s)"
"#;

/// Looks what there is on a node, and starts a guest to see whether KVM works.
///
/// # Errors
/// When the node cannot be asked.
pub async fn probe(node: &dyn NodeTransport) -> Result<Probe, NodeError> {
    let said = script(node, PROBE, &[]).await?;
    let mut probe = read_probe(&said);
    if probe.qemu.contains_key(&probe.arch) {
        let present = lines(&said).contains_key("kvm");
        probe.kvm = Some(if present {
            kvm::try_kvm(node, &probe.arch).await?
        } else {
            Kvm::Absent
        });
    }
    Ok(probe)
}

/// Looks how a node is.
///
/// # Errors
/// When the node cannot be asked.
pub async fn facts(node: &dyn NodeTransport) -> Result<Facts, NodeError> {
    let dir = node.state_dir().display().to_string();
    Ok(read_facts(&script(node, FACTS, &[&dir]).await?))
}

async fn script(
    node: &dyn NodeTransport,
    script: &str,
    arguments: &[&str],
) -> Result<String, NodeError> {
    let argv = ["sh", "-c", script, "sh"].into_iter();
    let mut command = Command::new(argv.chain(arguments.iter().copied()));
    command.time_limit = Duration::from_secs(10);
    let output = node.exec(&command).await?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Lines of `key=value`.
fn lines(text: &str) -> HashMap<&str, &str> {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(key, value)| (key.trim(), value.trim()))
        .collect()
}

fn read_probe(text: &str) -> Probe {
    let said = lines(text);
    let text = |key: &str| said.get(key).copied().unwrap_or_default().to_owned();
    let socket = |what: &str| {
        let [usable, denied, version] =
            ["usable", "denied", "version"].map(|key| said.get(format!("{what}.{key}").as_str()));
        usable.or(denied).or(version)?;
        Some(Socket {
            path: usable.or(denied).map(PathBuf::from),
            usable: usable.is_some(),
            version: version
                .map(|text| (*text).to_owned())
                .filter(|text| !text.is_empty()),
        })
    };
    let qemu = said.iter().filter_map(|(key, version)| {
        Some((key.strip_prefix("qemu.")?.to_owned(), (*version).to_owned()))
    });
    Probe {
        arch: text("arch"),
        kernel: text("kernel"),
        os: text("os"),
        hostname: text("hostname"),
        user: text("user"),
        home: PathBuf::from(text("home")),
        docker: socket("docker"),
        incus: socket("incus"),
        lxd: socket("lxd"),
        qemu: qemu.collect(),
        kvm: None,
    }
}

fn read_facts(text: &str) -> Facts {
    let said = lines(text);
    let number = |key: &str| said.get(key).and_then(|text| text.parse::<u64>().ok());
    let kibibytes = |key: &str| number(key).unwrap_or(0).saturating_mul(1024);
    let mut load = [0.0; 3];
    let loads = said.get("load").copied().unwrap_or_default().split(' ');
    for (slot, text) in load.iter_mut().zip(loads) {
        *slot = text.parse().unwrap_or(0.0);
    }
    Facts {
        load,
        cores: number("cores")
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(0),
        memory_total: kibibytes("total"),
        memory_available: kibibytes("available"),
        disk_total: kibibytes("size"),
        disk_available: kibibytes("free"),
        clock: number("clock")
            .and_then(|n| i64::try_from(n).ok())
            .unwrap_or(0),
    }
}

impl Probe {
    /// Where its Docker engine listens, when that was seen.
    #[must_use]
    pub fn docker_socket(&self) -> Option<&Path> {
        self.docker.as_ref()?.path.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::super::LocalNode;
    use super::*;

    #[tokio::test]
    async fn this_machine_tells_what_it_is_and_how_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let node = LocalNode::new(dir.path().join("not/there/yet"));
        let probe = probe(&node).await.unwrap();
        assert_eq!(probe.arch, std::env::consts::ARCH);
        assert!(probe.kernel.starts_with("Linux "), "{probe:?}");
        assert!(
            !probe.user.is_empty() && !probe.hostname.is_empty(),
            "{probe:?}"
        );
        let facts = facts(&node).await.unwrap();
        assert!(facts.cores > 0 && facts.memory_available > 0, "{facts:?}");
        assert!(facts.memory_available <= facts.memory_total, "{facts:?}");
        assert!(facts.disk_available <= facts.disk_total, "{facts:?}");
        let now = jiff::Timestamp::now().as_second();
        assert!((now - facts.clock).abs() < 60, "{facts:?}");
    }

    #[test]
    fn a_socket_that_we_may_open_wins_over_one_that_we_may_not() {
        let probe = read_probe(
            "arch=x86_64\ndocker.denied=/var/run/docker.sock\ndocker.usable=/run/user/5000/docker.sock\n\
             docker.version=Docker version 20.10.24\nincus.denied=/var/lib/incus/unix.socket\n\
             qemu.x86_64=QEMU emulator version 7.2\nlxd.version=5.0.2\nnoise\n=\nkey=a=b\n",
        );
        let docker = probe.docker.clone().unwrap();
        assert_eq!(
            probe.docker_socket(),
            Some(Path::new("/run/user/5000/docker.sock"))
        );
        assert!(docker.usable);
        assert_eq!(docker.version.as_deref(), Some("Docker version 20.10.24"));
        assert!(!probe.incus.unwrap().usable);
        let lxd = probe.lxd.unwrap();
        assert_eq!((lxd.path, lxd.usable), (None, false));
        assert_eq!(probe.qemu["x86_64"], "QEMU emulator version 7.2");
    }

    #[test]
    fn what_a_node_says_never_panics() {
        for text in [
            "",
            "load=",
            "load=a b\ncores=-1\ntotal=99999999999999999999\nclock=x",
            "=\n\0\u{fffd}==",
        ] {
            let facts = read_facts(text);
            assert_eq!(facts.cores, 0, "{text:?}");
            assert_eq!(facts.disk_free(), None, "{text:?}");
            assert_eq!(read_probe(text).docker, None, "{text:?}");
        }
    }
}
