//! The command line of QEMU. Pure.

use std::path::Path;

use vendetta_proto::spec::ProjectConfig;

use super::accelerator::Accelerator;
use crate::node::Arch;
use crate::workspace::WorkspaceId;

/// The port of the machine at which the agent listens.
pub(super) const AGENT_PORT: u16 = 7022;

/// What a machine has when the config does not say.
const CPUS: u32 = 2;
const MEMORY: u64 = 2 << 30;
const DISK: u64 = 20 << 30;

/// What a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hardware {
    pub cpus: u32,
    /// In bytes.
    pub memory: u64,
    /// Most bytes of each of its two disks.
    pub disk: u64,
}

impl Hardware {
    /// What the config says; section qemu wins over the limits that all providers have.
    pub(super) fn of(config: &ProjectConfig) -> Self {
        let qemu = config.qemu.as_ref();
        let resources = config.resources;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let limit = resources.cpu.map(|cpu| cpu.ceil().max(1.0) as u32);
        Self {
            cpus: qemu.and_then(|qemu| qemu.cpu).or(limit).unwrap_or(CPUS),
            memory: (qemu.and_then(|qemu| qemu.memory).or(resources.memory))
                .map_or(MEMORY, |memory| memory.as_bytes()),
            disk: (qemu.and_then(|qemu| qemu.disk)).map_or(DISK, |disk| disk.as_bytes()),
        }
    }
}

/// A machine to be started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start<'a> {
    pub arch: &'a Arch,
    pub accelerator: Accelerator,
    pub hardware: Hardware,
    /// UEFI, where the architecture boots by it.
    pub firmware: Option<&'a str>,
    pub id: &'a WorkspaceId,
    pub name: &'a str,
    /// Where its files are.
    pub dir: &'a Path,
    /// The agent's executable.
    pub agent: &'a Path,
    /// The node's loopback port that leads to the agent.
    pub port: u16,
    /// Whether it gets out to nowhere.
    pub isolated: bool,
}

/// A value in an option of QEMU, where a comma is written twice.
fn escaped(value: &Path) -> String {
    value.display().to_string().replace(',', ",,")
}

/// The program and its arguments.
pub(super) fn arguments(start: &Start<'_>) -> Vec<String> {
    let arm = start.arch.as_str() == "aarch64";
    // Not every processor that has KVM has the interrupt controller that is virt's default.
    let machine = if arm { "virt,gic-version=max" } else { "q35" };
    let (accelerator, cpu) = match start.accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        // What is newer has to be emulated too, and makes every guest slower.
        Accelerator::Tcg if arm => ("tcg,thread=multi", "max,pauth-impdef=on"),
        Accelerator::Tcg => ("tcg,thread=multi", "max,la57=off"),
    };
    let at = |file: &str| escaped(&start.dir.join(file));
    let mut line = vec![format!("qemu-system-{}", start.arch)];
    let mut add = |option: &str, value: String| line.extend([option.to_owned(), value]);
    add(
        "-name",
        format!("{},process=vendetta-{}", start.name, start.id),
    );
    add("-machine", machine.to_owned());
    add("-accel", accelerator.to_owned());
    add("-cpu", cpu.to_owned());
    add("-smp", start.hardware.cpus.to_string());
    add("-m", format!("size={}K", start.hardware.memory / 1024));
    if let Some(firmware) = start.firmware {
        add("-bios", firmware.to_owned());
    }
    add("-rtc", "base=utc".to_owned());
    add("-display", "none".to_owned());
    // Not escaped: it is a path, no option.
    add("-pidfile", start.dir.join("pid").display().to_string());
    add(
        "-chardev",
        format!("file,id=serial,append=on,path={}", at("serial.log")),
    );
    add("-serial", "chardev:serial".to_owned());
    add(
        "-qmp",
        format!("unix:{},server=on,wait=off", at("qmp.sock")),
    );
    let agent = escaped(start.agent);
    let disks = [
        ("root", at("overlay.qcow2"), "format=qcow2,discard=unmap"),
        (
            "workspace",
            at("workspace.qcow2"),
            "format=qcow2,discard=unmap",
        ),
        ("seed", at("seed.img"), "format=raw,readonly=on"),
        ("agent", agent, "format=raw,readonly=on"),
    ];
    for (name, file, how) in disks {
        add("-drive", format!("if=none,id={name},{how},file={file}"));
        let first = if name == "root" { ",bootindex=1" } else { "" };
        add(
            "-device",
            format!("virtio-blk-pci,drive={name},serial=vendetta-{name}{first}"),
        );
    }
    add(
        "-netdev",
        format!(
            "user,id=net,restrict={},hostname={},hostfwd=tcp:127.0.0.1:{}-:{AGENT_PORT}",
            if start.isolated { "on" } else { "off" },
            start.name,
            start.port
        ),
    );
    add("-device", "virtio-net-pci,netdev=net,romfile=".to_owned());
    add("-device", "virtio-rng-pci".to_owned());
    line.extend(["-no-user-config", "-nodefaults"].map(str::to_owned));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: serde_json::Value) -> ProjectConfig {
        serde_json::from_value(json).unwrap()
    }

    fn line(arch: &str, accelerator: Accelerator, isolated: bool) -> String {
        let id = WorkspaceId::parse("0a1b2c3d0a1b2c3d").unwrap_or_else(WorkspaceId::random);
        arguments(&Start {
            arch: &Arch::new(arch),
            accelerator,
            hardware: Hardware::of(&ProjectConfig::default()),
            firmware: (arch == "aarch64").then_some("/efi.fd"),
            id: &id,
            name: "web",
            dir: Path::new("/state/a,b/w/1"),
            agent: Path::new("/state/a,b/agent/abc"),
            port: 20022,
            isolated,
        })
        .join(" ")
    }

    #[test]
    fn the_section_of_the_provider_wins_over_the_limits_of_all() {
        let both = Hardware::of(&config(serde_json::json!({
            "resources": {"cpu": 1.5, "memory": "1G"},
            "qemu": {"image": "x", "cpu": 4, "memory": "8G", "disk": "50G"},
        })));
        assert_eq!((both.cpus, both.memory, both.disk), (4, 8 << 30, 50 << 30));
        let limits = Hardware::of(&config(serde_json::json!({
            "resources": {"cpu": 1.5, "memory": "1G"}, "qemu": {"image": "x"},
        })));
        assert_eq!(
            (limits.cpus, limits.memory, limits.disk),
            (2, 1 << 30, DISK)
        );
        assert_eq!(Hardware::of(&ProjectConfig::default()).memory, MEMORY);
    }

    #[test]
    fn the_machine_is_as_its_node_can_run_it_and_reached_on_loopback_alone() {
        let kvm = line("x86_64", Accelerator::Kvm, false);
        assert!(kvm.starts_with("qemu-system-x86_64 "), "{kvm}");
        assert!(kvm.contains("-machine q35 -accel kvm -cpu host"), "{kvm}");
        assert!(kvm.contains("restrict=off"), "{kvm}");
        assert!(kvm.contains("hostfwd=tcp:127.0.0.1:20022-:7022"), "{kvm}");
        assert!(kvm.contains("-m size=2097152K"), "{kvm}");
        assert!(!kvm.contains("-bios"), "{kvm}");
        let arm = line("aarch64", Accelerator::Tcg, true);
        assert!(arm.starts_with("qemu-system-aarch64 "), "{arm}");
        assert!(
            arm.contains("-machine virt,gic-version=max -accel tcg"),
            "{arm}"
        );
        assert!(arm.contains("restrict=on"), "{arm}");
        assert!(arm.contains("-bios /efi.fd"), "{arm}");
        let arm = line("aarch64", Accelerator::Kvm, false);
        assert!(
            arm.contains("-machine virt,gic-version=max -accel kvm -cpu host"),
            "{arm}"
        );
    }

    #[test]
    fn a_comma_in_a_path_is_no_end_of_a_value() {
        let line = line("x86_64", Accelerator::Tcg, false);
        assert!(
            line.contains("file=/state/a,,b/w/1/overlay.qcow2"),
            "{line}"
        );
        assert!(line.contains("file=/state/a,,b/agent/abc"), "{line}");
        // The script compares it with this very path.
        assert!(line.contains("-pidfile /state/a,b/w/1/pid"), "{line}");
    }
}
