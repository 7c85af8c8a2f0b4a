//! What there is on a node, and how it is: asked with one POSIX shell script
//! each, which coreutils and busybox both run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

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

/// By how much more than twice its time under emulation a guest may take under
/// KVM. With virtualization in the processor it takes less; without, 25 times as long was seen.
const SLOWER: Duration = Duration::from_secs(1);

/// What became of a guest that was started under KVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kvm {
    /// It ran.
    Works,
    /// It ran, but much slower than without: the host emulates it.
    Slow,
    /// It was started and did nothing.
    Hangs,
    /// There is no /dev/kvm.
    Absent,
    /// It could not be started.
    Fails(String),
}

impl std::fmt::Display for Kvm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Works => f.write_str("KVM works"),
            Self::Slow => f.write_str("KVM is slower than emulation"),
            Self::Hangs => f.write_str("KVM hangs"),
            Self::Absent => f.write_str("no KVM"),
            Self::Fails(why) => write!(f, "KVM fails: {why}"),
        }
    }
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

/// `sh -c GUEST sh ACCELERATOR ARCHITECTURE`: starts a guest of one sector
/// that goes where every 64-bit kernel goes first, and from there writes 0x10 to
/// the port of isa-debug-exit, upon which QEMU ends with status (0x10 << 1) | 1 = 33
/// (qemu hw/misc/debugexit.c). 124: it did not in ten seconds.
///
/// The sector, loaded at 0x7c00 in real mode, identity-maps 2 MiB (a table each at
/// 0x1000, 0x2000, 0x3000) and enters long mode (Intel SDM volume 3, 10.8.5):
///
/// ```text
///         cli; xor ax,ax; mov ds,ax; mov es,ax; cld
///         mov di,0x1000; mov cx,0x3000; rep stosb
///         mov word [0x1000],0x2003; mov word [0x2000],0x3003; mov word [0x3000],0x83
///         mov eax,0x20; mov cr4,eax                           ; PAE
///         mov eax,0x1000; mov cr3,eax
///         mov ecx,0xc0000080; rdmsr; or ax,0x100; wrmsr       ; EFER.LME
///         mov eax,cr0; or eax,0x80000001; mov cr0,eax         ; PG, PE
///         lgdt [gdtr]; jmp 8:long
///   long: mov rax,0x1122334455667788; mov rbx,0x1122334455667778; sub rax,rbx
///         out 0xf4,al; hlt; jmp $-1
///   gdt:  dq 0, 0x00af9a000000ffff
///   gdtr: dw 15; dd gdt
/// ```
const GUEST: &str = r#"
PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin
disk=$(mktemp) || exit 1
trap 'rm -f "$disk"' EXIT
printf '%b' \
    '\0372\0061\0300\0216\0330\0216\0300\0374\0277\0000\0020\0271\0000\0060\0363\0252\0307\0006\0000\0020\0003\0040\0307\0006' \
    '\0000\0040\0003\0060\0307\0006\0000\0060\0203\0000\0146\0270\0040\0000\0000\0000\0017\0042\0340\0146\0270\0000\0020\0000' \
    '\0000\0017\0042\0330\0146\0271\0200\0000\0000\0300\0017\0062\0015\0000\0001\0017\0060\0017\0040\0300\0146\0015\0001\0000' \
    '\0000\0200\0017\0042\0300\0017\0001\0026\0210\0174\0352\0127\0174\0010\0000\0110\0270\0210\0167\0146\0125\0104\0063\0042' \
    '\0021\0110\0273\0170\0167\0146\0125\0104\0063\0042\0021\0110\0051\0330\0346\0364\0364\0353\0375\0017\0037\0104\0000\0000' \
    '\0000\0000\0000\0000\0000\0000\0000\0000\0377\0377\0000\0000\0000\0232\0257\0000\0017\0000\0170\0174\0000\0000' >"$disk"
dd if=/dev/zero of="$disk" bs=1 seek=142 count=368 2>/dev/null
printf '\125\252' >>"$disk"
timeout 10 "qemu-system-$2" -machine pc,accel="$1" -m 16 -nodefaults -display none -no-reboot \
    -device isa-debug-exit,iobase=0xf4,iosize=0x4 -drive file="$disk",format=raw,if=ide
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
        // The guest is x86 code; elsewhere the device is all that is known.
        probe.kvm = Some(match (present, probe.arch.as_str()) {
            (false, _) => Kvm::Absent,
            (true, "x86_64") => try_kvm(node).await?,
            (true, arch) => Kvm::Fails(format!("not tried on {arch}")),
        });
    }
    Ok(probe)
}

/// Starts a guest under KVM, and under emulation to compare: there are hosts
/// whose KVM carries a few instructions at a time and no system ever.
async fn try_kvm(node: &dyn NodeTransport) -> Result<Kvm, NodeError> {
    let begun = Instant::now();
    let emulated = try_guest(node, "tcg").await?;
    let emulation = begun.elapsed();
    let begun = Instant::now();
    let kvm = try_guest(node, "kvm").await?;
    let slow = begun.elapsed() > 2 * emulation + SLOWER;
    Ok(match (kvm, emulated) {
        (Kvm::Works, Kvm::Works) if slow => Kvm::Slow,
        (kvm, _) => kvm,
    })
}

/// Starts a guest of one sector with an accelerator of QEMU.
///
/// # Errors
/// When the node cannot be asked.
pub async fn try_guest(node: &dyn NodeTransport, accelerator: &str) -> Result<Kvm, NodeError> {
    let argv = ["sh", "-c", GUEST, "sh", accelerator, "x86_64"];
    let output = node.exec(&Command::new(argv)).await?;
    Ok(match output.status {
        Some(33) => Kvm::Works,
        Some(124) => Kvm::Hangs,
        status => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or_default().trim().to_owned();
            Kvm::Fails(match (said.is_empty(), status) {
                (false, _) => said,
                (true, Some(status)) => format!("QEMU ended with status {status}"),
                (true, None) => "QEMU was killed".to_owned(),
            })
        }
    })
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
