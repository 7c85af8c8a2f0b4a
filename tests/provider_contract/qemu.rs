//! What only a machine's provider can do wrong. No guest is booted here.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use vendetta::node::{Kvm, LocalNode, NodeTransport};
use vendetta::provider::run_dir;
use vendetta::provider::{
    Context, Environment, Farewell, Mirrors, Provider, ProviderError, Qemu, QemuSettings,
};
use vendetta::workspace::{Found, ProgressSink, WorkspaceId};
use vendetta_proto::spec::{Accel, ProjectConfig, QemuConfig};
use vendetta_tests::{Run, eventually, sha256};

/// The environment of a new workspace, which is a machine on a node.
pub fn machine(node: &dyn NodeTransport, qemu: QemuConfig, agent: &str) -> Environment {
    let id = WorkspaceId::random();
    Environment {
        build_context: None,
        run_dir: run_dir(node, &id),
        id,
        name: "web".parse().unwrap(),
        generation: 1,
        config: ProjectConfig {
            qemu: Some(qemu),
            ..ProjectConfig::default()
        },
        agent: agent.into(),
    }
}

/// A provider on this machine with a folder of its own.
struct Bench {
    dir: tempfile::TempDir,
    node: Arc<LocalNode>,
    provider: Qemu,
}

impl Bench {
    fn new() -> Self {
        Self::with(|dir| QemuSettings {
            image_dirs: vec![dir.to_owned()],
            ..QemuSettings::default()
        })
    }

    fn with(settings: impl FnOnce(&Path) -> QemuSettings) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("vendetta-q-")
            .tempdir_in("/tmp")
            .unwrap();
        let node = Arc::new(LocalNode::new(dir.path().join("state")));
        let settings = settings(dir.path());
        let provider = Qemu::new(
            Arc::clone(&node) as _,
            "us".to_owned(),
            settings,
            Some(Kvm::Absent),
        );
        Self {
            dir,
            node,
            provider,
        }
    }

    /// A file with a disk in it, of this size.
    fn disk(&self, name: &str, options: &[&str], size: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        let create = Run::new("qemu-img").args(["create", "-q"]).args(options);
        create.arg(&path).arg(size).ok();
        path
    }

    fn environment(&self, image: &str) -> Environment {
        let qemu = QemuConfig {
            image: image.to_owned(),
            cpu: None,
            memory: None,
            disk: Some("2G".parse().unwrap()),
            accel: None,
        };
        machine(self.node.as_ref(), qemu, "/nonexistent")
    }

    async fn create(&self, environment: &Environment) -> Result<(), ProviderError> {
        let context = Context {
            progress: ProgressSink::new(),
            cancel: tokio_util::sync::CancellationToken::new(),
            farewell: Farewell::default(),
        };
        self.provider.create(environment, &context).await.map(drop)
    }

    /// Makes a machine of an image, and returns what qemu-img says about its root disk.
    async fn made(&self, image: &str) -> serde_json::Value {
        let environment = self.environment(image);
        self.create(&environment).await.unwrap();
        let info = Run::new("qemu-img").args(["info", "--output=json"]);
        info.arg(environment.run_dir.join("overlay.qcow2"))
            .ok()
            .json()
    }

    async fn refused(&self, image: &str) -> String {
        let environment = self.environment(image);
        let error = self.create(&environment).await.unwrap_err();
        assert!(!environment.run_dir.exists(), "{image}: it left something");
        assert!(self.provider.list().await.unwrap().is_empty());
        match error.remedy() {
            Some(remedy) => format!("{error}; {remedy}"),
            None => error.to_string(),
        }
    }

    fn kept(&self) -> Vec<String> {
        let images = std::fs::read_dir(self.dir.path().join("state/base"));
        let names = images.into_iter().flatten().flatten();
        let mut names: Vec<_> = names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name != "index")
            .collect();
        names.sort();
        names
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_kept_once_under_its_digest_whatever_becomes_of_its_file() {
    let bench = Bench::new();
    let disk = bench.disk("a b.qcow2", &["-f", "qcow2"], "1G");
    let digest = sha256(&std::fs::read(&disk).unwrap());
    let info = bench.made(disk.to_str().unwrap()).await;
    // As large as the config says, on top of what is kept.
    assert_eq!(info["virtual-size"], 2_u64 << 30);
    let kept = bench.dir.path().join("state/base").join(&digest);
    assert_eq!(info["backing-filename"], kept.to_str().unwrap());
    assert_eq!(bench.kept(), [digest.as_str()]);
    bench.made(disk.to_str().unwrap()).await;
    assert_eq!(bench.kept(), [digest.as_str()]);
    // Another disk in its place is another image, and the first is as it was.
    std::fs::remove_file(&disk).unwrap();
    bench.disk("a b.qcow2", &["-f", "qcow2"], "3G");
    let info = bench.made(disk.to_str().unwrap()).await;
    assert_eq!(info["virtual-size"], 3_u64 << 30, "it never shrinks");
    assert_eq!(bench.kept().len(), 2);
    assert_eq!(sha256(&std::fs::read(&kept).unwrap()), digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_show_a_file_of_the_node_in_a_machine_is_refused_and_not_kept() {
    let bench = Bench::new();
    let secret = bench.dir.path().join("secret");
    std::fs::write(&secret, "s3cret ".repeat(1000)).unwrap();
    let backed = ["-f", "qcow2", "-F", "raw", "-b", secret.to_str().unwrap()];
    let backed = bench.disk("backed.qcow2", &backed, "1M");
    let outside = format!("data_file={}", secret.display());
    let outside = bench.disk("outside.qcow2", &["-f", "qcow2", "-o", &outside], "1M");
    let said = bench.refused(backed.to_str().unwrap()).await;
    assert!(said.contains("another file"), "{said}");
    let said = bench.refused(outside.to_str().unwrap()).await;
    assert!(said.contains("another file"), "{said}");
    std::fs::write(&secret, "s3cret ".repeat(1000)).unwrap();
    let said = bench.refused(secret.to_str().unwrap()).await;
    assert!(said.contains("boot"), "{said}");
    // A format that QEMU would find out by itself, and in which a disk may be of other files.
    let parts = bench.disk(
        "parts.vmdk",
        &["-f", "vmdk", "-o", "subformat=monolithicFlat"],
        "1M",
    );
    let said = bench.refused(parts.to_str().unwrap()).await;
    assert!(said.contains("convert"), "{said}");
    let said = bench.refused("/nonexistent/disk.qcow2").await;
    assert!(said.contains("/nonexistent/disk.qcow2"), "{said}");
    for endless in ["/dev/zero", "/proc/kcore", "/proc/self/pagemap"] {
        let said = bench.refused(endless).await;
        assert!(said.contains(endless), "{said}");
    }
    // What is ours: another's disk, by its own path or by a link.
    let disk = bench.disk("disk.qcow2", &["-f", "qcow2"], "1G");
    bench.made(disk.to_str().unwrap()).await;
    let own = bench.dir.path().join("state/base").join(&bench.kept()[0]);
    let link = bench.dir.path().join("link.qcow2");
    std::os::unix::fs::symlink(&own, &link).unwrap();
    let list = bench.provider.list().await.unwrap();
    for id in list {
        bench.provider.destroy(&id).await.unwrap();
    }
    for path in [own, link] {
        let said = bench.refused(path.to_str().unwrap()).await;
        assert!(said.contains("image_dirs"), "{said}");
    }
    assert_eq!(bench.kept().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_in_one_of_the_folders_for_them_or_not_used() {
    let bench = Bench::with(|dir| QemuSettings {
        image_dirs: vec![dir.join("images")],
        ..QemuSettings::default()
    });
    std::fs::create_dir(bench.dir.path().join("images")).unwrap();
    let inside = bench.disk("images/disk.qcow2", &["-f", "qcow2"], "1G");
    bench.made(inside.to_str().unwrap()).await;
    for id in bench.provider.list().await.unwrap() {
        bench.provider.destroy(&id).await.unwrap();
    }
    let outside = bench.disk("disk.qcow2", &["-f", "qcow2"], "1G");
    let around = bench.dir.path().join("images/../disk.qcow2");
    for path in [outside, around] {
        let said = bench.refused(path.to_str().unwrap()).await;
        assert!(said.contains("image_dirs"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_is_an_error_where_it_does_not_work_and_auto_is_not() {
    let bench = Bench::new();
    let disk = bench.disk("disk.qcow2", &["-f", "qcow2"], "1G");
    let mut environment = bench.environment(disk.to_str().unwrap());
    environment.config.qemu.as_mut().unwrap().accel = Some(Accel::Kvm);
    let error = bench.create(&environment).await.unwrap_err().to_string();
    assert!(error.contains("no KVM") && error.contains("tcg"), "{error}");
    environment.config.qemu.as_mut().unwrap().accel = Some(Accel::Auto);
    bench.create(&environment).await.unwrap();
}

/// A server of files by their paths, and of what it was asked for.
struct Mirror {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Mirror {
    fn start(files: Vec<(String, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read(&mut byte).unwrap_or(0) == 0 {
                        break;
                    }
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let file = files.iter().find(|(name, _)| *name == path);
                let (status, body) = match file {
                    Some((_, body)) => ("200 OK", body.as_slice()),
                    None => ("404 Not Found", &b""[..]),
                };
                log.lock().unwrap().push(path);
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.write_all(body);
            }
        });
        Self { address, asked }
    }

    fn settings(&self) -> QemuSettings {
        QemuSettings {
            mirrors: Mirrors {
                debian: format!("{}/debian", self.address),
                ubuntu: format!("{}/ubuntu/", self.address),
            },
            ..QemuSettings::default()
        }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

/// The bytes of a disk of this size.
fn disk(size: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let create = Run::new("qemu-img").args(["create", "-q", "-f", "qcow2"]);
    create.arg(&path).arg(size).ok();
    std::fs::read(path).unwrap()
}

/// What coreutils say about bytes.
fn sum(program: &str, bytes: &[u8]) -> String {
    let said = Run::new(program).stdin(bytes.to_vec()).ok().text();
    said.split(' ').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_name_is_downloaded_once_and_must_have_the_published_checksum() {
    let (debian, ubuntu) = (disk("1G"), disk("3G"));
    let debian_file = "debian-12-genericcloud-amd64.qcow2";
    let ubuntu_file = "ubuntu-22.04-server-cloudimg-amd64.img";
    let mirror = Mirror::start(vec![
        (
            "/debian/bookworm/latest/SHA512SUMS".to_owned(),
            format!("{}  {debian_file}\n", sum("sha512sum", &debian)).into_bytes(),
        ),
        (
            format!("/debian/bookworm/latest/{debian_file}"),
            debian.clone(),
        ),
        (
            "/ubuntu/releases/22.04/release/SHA256SUMS".to_owned(),
            // Of another file: as where one was changed on its way.
            format!("{} *{ubuntu_file}\n", sum("sha256sum", &debian)).into_bytes(),
        ),
        (
            format!("/ubuntu/releases/22.04/release/{ubuntu_file}"),
            ubuntu,
        ),
    ]);
    let bench = Bench::with(|_| mirror.settings());
    let info = bench.made("debian:12").await;
    assert_eq!(info["virtual-size"], 2_u64 << 30);
    assert_eq!(bench.kept(), [sha256(&debian)]);
    assert_eq!(mirror.asked().len(), 2);
    // What is kept is used without asking anybody.
    bench.made("debian:bookworm").await;
    assert_eq!(mirror.asked(), Vec::<String>::new());
    for id in bench.provider.list().await.unwrap() {
        bench.provider.destroy(&id).await.unwrap();
    }
    let said = bench.refused("ubuntu:22.04").await;
    assert!(said.contains("checksum"), "{said}");
    let said = bench.refused("debian:11").await;
    assert!(
        said.contains("SHA512SUMS") && said.contains("404"),
        "{said}"
    );
    assert_eq!(bench.kept(), [sha256(&debian)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_may_say_what_must_be_there() {
    let image = disk("1G");
    let mirror = Mirror::start(vec![("/x.qcow2".to_owned(), image.clone())]);
    let bench = Bench::with(|_| mirror.settings());
    let url = format!("{}/x.qcow2", mirror.address);
    let wrong = format!("{url}#sha256={}", "0".repeat(64));
    let said = bench.refused(&wrong).await;
    assert!(said.contains("checksum"), "{said}");
    let said = bench.refused(&format!("{}/absent", mirror.address)).await;
    assert!(said.contains("404"), "{said}");
    assert_eq!(bench.kept(), Vec::<String>::new());
    bench
        .made(&format!("{url}#sha256={}", sha256(&image)))
        .await;
    bench.made(&url).await;
    assert_eq!(bench.kept(), [sha256(&image)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_is_no_longer_wanted_is_given_up() {
    // A server that sends a part and never the rest.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let bench = Bench::new();
    let environment = bench.environment(&format!("http://{}/x", mute.local_addr().unwrap()));
    let (begun, seen) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = mute.accept().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
        let _ = stream.write_all(&[0; 100_000]);
        let _ = begun.send(());
        // Until curl has ended.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let context = Context {
        progress: ProgressSink::new(),
        cancel: tokio_util::sync::CancellationToken::new(),
        farewell: Farewell::default(),
    };
    let cancel = context.cancel.clone();
    let (created, ()) = tokio::join!(bench.provider.create(&environment, &context), async {
        seen.await.unwrap();
        eventually("the part is there", || !bench.kept().is_empty());
        cancel.cancel();
    });
    assert!(
        matches!(created, Err(ProviderError::Cancelled)),
        "{created:?}"
    );
    assert_eq!(bench.kept(), Vec::<String>::new(), "nothing is left of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machines_of_another_gateway_are_not_ours() {
    let bench = Bench::new();
    let disk = bench.disk("disk.qcow2", &["-f", "qcow2"], "1G");
    let environment = bench.environment(disk.to_str().unwrap());
    bench.create(&environment).await.unwrap();
    let node = Arc::clone(&bench.node) as Arc<dyn NodeTransport>;
    let stranger = Qemu::new(node, "them".to_owned(), QemuSettings::default(), None);
    assert!(stranger.list().await.unwrap().is_empty());
    let found = stranger.inspect(&environment.id).await.unwrap();
    assert_eq!(found, Found::Absent);
    assert_eq!(bench.provider.list().await.unwrap(), [environment.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_cannot_start_says_why() {
    let bench = Bench::new();
    let disk = bench.disk("disk.qcow2", &["-f", "qcow2"], "1G");
    let environment = bench.environment(disk.to_str().unwrap());
    bench.create(&environment).await.unwrap();
    let config = environment.run_dir.join("agent.json");
    bench.node.put(&config, 0o600, b"{}").await.unwrap();
    // Its agent is not there.
    let error = bench.provider.start(&environment).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
    let found = bench.provider.inspect(&environment.id).await.unwrap();
    assert_eq!(found, Found::Stopped);
    bench.provider.destroy(&environment.id).await.unwrap();
    assert!(!environment.run_dir.exists());
}
