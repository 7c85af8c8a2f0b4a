//! What machines of `qemu` are made of, on nodes that are not as the one that the tests
//! run on: whose KVM works, or hangs, or whose architecture is another one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use vendetta::node::NodeTransport;
use vendetta::provider::{
    Context, Environment, Farewell, Provider, ProviderError, Qemu, QemuSettings,
};
use vendetta::workspace::ProgressSink;
use vendetta_proto::spec::{Accel, QemuConfig};
use vendetta_tests::{BOOT, Node};

use crate::machine::Machine;
use crate::qemu::machine;
use crate::subject::Life;

/// Stands before the QEMU of the node, answers for the guests that try KVM, and emulates
/// the machines that are to run under it. /tmp/kvm says how KVM is; what machines were
/// started with is in /tmp/started.
const WRAPPER: &str = r#"#!/bin/sh
case $* in
    *isa-debug-exit*)
        case "$* $(cat /tmp/kvm)" in *accel=kvm*hangs) exec sleep 600 ;; esac
        exit 33
        ;;
    *-pidfile*) echo "$*" >>/tmp/started ;;
esac
words=$#
while [ "$words" -gt 0 ]; do
    case $1 in
        kvm) set -- "$@" tcg ;;
        host) set -- "$@" max ;;
        *) set -- "$@" "$1" ;;
    esac
    shift
    words=$((words - 1))
done
exec /usr/bin/qemu-system-x86_64 "$@"
"#;

const IMAGES: &str = "/var/lib/vendetta/images";

struct Bench {
    dir: TempDir,
    machine: Machine,
    life: Life,
}

impl Bench {
    fn new() -> Self {
        let machine = Machine::Lab(Node::start());
        let make =
            format!("mkdir -p {IMAGES} && qemu-img create -q -f qcow2 {IMAGES}/disk.qcow2 1G");
        machine.node().sh(&make).ok();
        Self {
            dir: tempfile::tempdir().unwrap(),
            machine,
            life: Life::default(),
        }
    }

    /// With a program of the node's own.
    fn with(self, program: &str, script: &str) -> Self {
        let path = format!("/usr/local/bin/{program}");
        let put = format!("cat >{path} && chmod 755 {path}");
        self.machine.node().sh(&put).stdin(script).ok();
        self
    }

    fn with_kvm(how: &str) -> Self {
        let bench = Self::new().with("qemu-system-x86_64", WRAPPER);
        // There is no device on every machine that runs the tests.
        let make =
            ": >/tmp/started && chmod 666 /tmp/started && { [ -e /dev/kvm ] || : >/dev/kvm; }";
        bench.machine.node().sh(make).ok();
        bench.kvm(how);
        bench
    }

    fn kvm(&self, how: &str) {
        let say = format!("echo {how} >/tmp/kvm");
        self.machine.node().sh(&say).ok();
    }

    /// The provider of a gateway that knows nothing of KVM there.
    fn gateway(&self) -> Gateway<'_> {
        let node = self.machine.transport(&self.dir, "us", &self.life);
        let settings = QemuSettings {
            image_dirs: vec![IMAGES.into()],
            ..QemuSettings::default()
        };
        Gateway {
            bench: self,
            provider: Qemu::new(Arc::clone(&node), "us".to_owned(), settings, None),
            node,
        }
    }
}

struct Gateway<'a> {
    bench: &'a Bench,
    node: Arc<dyn NodeTransport>,
    provider: Qemu,
}

impl Gateway<'_> {
    /// Starts a machine that wants `accel`.
    async fn start(&self, accel: Accel) -> Result<Environment, ProviderError> {
        let image = format!("{IMAGES}/disk.qcow2");
        let qemu = QemuConfig {
            image: image.clone(),
            cpu: Some(1),
            memory: Some("256M".parse().unwrap()),
            disk: Some("1G".parse().unwrap()),
            accel: Some(accel),
        };
        let environment = machine(self.node.as_ref(), qemu, &image);
        let context = Context {
            progress: ProgressSink::new(),
            cancel: CancellationToken::new(),
            farewell: Farewell::default(),
        };
        self.provider.create(&environment, &context).await?;
        let config = environment.run_dir.join("agent.json");
        self.node.put(&config, 0o600, b"{}").await?;
        self.provider.start(&environment).await?;
        Ok(environment)
    }

    /// What a machine is run by that wants `accel`.
    async fn runs_by(&self, accel: Accel) -> Result<String, ProviderError> {
        let environment = self.start(accel).await?;
        self.provider.destroy(&environment.id).await?;
        let node = self.bench.machine.node();
        let line = node.sh("tail -n 1 /tmp/started").ok().text();
        let mut words = line.split(' ').skip_while(|word| *word != "-accel");
        Ok(words.nth(1).unwrap().to_owned())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_run_by_what_its_config_says_where_kvm_works() {
    let bench = Bench::with_kvm("works");
    let gateway = bench.gateway();
    assert_eq!(gateway.runs_by(Accel::Auto).await.unwrap(), "kvm");
    assert_eq!(gateway.runs_by(Accel::Kvm).await.unwrap(), "kvm");
    let tcg = gateway.runs_by(Accel::Tcg).await.unwrap();
    assert!(tcg.starts_with("tcg"), "{tcg}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_that_once_took_too_long_is_tried_again() {
    let bench = Bench::with_kvm("hangs");
    let gateway = bench.gateway();
    let auto = gateway.runs_by(Accel::Auto).await.unwrap();
    assert!(auto.starts_with("tcg"), "{auto}");
    let refused = gateway.runs_by(Accel::Kvm).await.unwrap_err().to_string();
    assert!(refused.contains("KVM hangs"), "{refused}");
    // It was only that the node was busy.
    bench.kvm("works");
    assert_eq!(gateway.runs_by(Accel::Kvm).await.unwrap(), "kvm");
    assert_eq!(gateway.runs_by(Accel::Auto).await.unwrap(), "kvm");
}

/// With the firmware of aarch64, which finds the machine's disk: that nothing boots
/// from an empty one is what it then says.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_of_aarch64_starts_its_firmware_and_sees_its_disk() {
    let uname = "#!/bin/sh\n[ \"$*\" != -m ] || exec echo aarch64\nexec /usr/bin/uname \"$@\"\n";
    let bench = Bench::new().with("uname", uname);
    let gateway = bench.gateway();
    let environment = gateway.start(Accel::Tcg).await.unwrap();
    let console = environment.run_dir.join("serial.log");
    let began = Instant::now();
    loop {
        let said = gateway
            .node
            .read(&console)
            .await
            .unwrap()
            .unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        if said.contains("failed to load Boot0001 \"UEFI Misc Device\"") {
            break;
        }
        assert!(began.elapsed() < BOOT, "{said}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    gateway.provider.destroy(&environment.id).await.unwrap();
}
