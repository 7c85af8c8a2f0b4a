use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::node::testing::Sshd;
use crate::node::{NodeTransport, SshNode};

fn mode(path: &Path) -> u32 {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    metadata.permissions().mode() & 0o7777
}

fn started() -> (Sshd, SshNode, PathBuf) {
    started_with("")
}

fn started_with(config: &str) -> (Sshd, SshNode, PathBuf) {
    let sshd = Sshd::start(config);
    let node = sshd.node("n1");
    let state = node.state_dir().to_owned();
    (sshd, node, state)
}

#[tokio::test]
async fn a_file_is_put_whole_with_its_mode_below_private_directories() {
    let (_sshd, node, state) = started();
    let path = state.join("w/abc/agent.json");
    node.put(&path, 0o600, b"one").await.unwrap();
    let content: Vec<u8> = (0..=255).collect();
    node.put(&path, 0o640, &content).await.unwrap();
    assert_eq!(node.read(&path).await.unwrap().unwrap(), content);
    assert_eq!(mode(&path), 0o640);
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let names = node.list_dir(path.parent().unwrap()).await.unwrap();
    assert_eq!(names, ["agent.json"]);
    node.put(&path, 0o755, b"").await.unwrap();
    assert_eq!(node.read(&path).await.unwrap().unwrap(), b"");
}

#[tokio::test]
async fn a_file_of_ten_megabytes_is_put_well_within_its_limit() {
    let (_sshd, node, state) = started();
    let content: Vec<u8> = (0..10_000_000u32).map(|i| (i % 251) as u8).collect();
    let path = state.join("agent/abc");
    let begin = Instant::now();
    node.put(&path, 0o755, &content).await.unwrap();
    eprintln!("10 MB in {:?}", begin.elapsed());
    assert!(std::fs::read(&path).unwrap() == content);
}

#[tokio::test]
async fn a_link_in_the_place_of_a_file_is_replaced_and_never_read() {
    let (sshd, node, state) = started();
    let outside = sshd.dir().join("secret");
    std::fs::write(&outside, "secret").unwrap();
    let folder = sshd.dir().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let path = state.join("agent.json");
    node.make_dir(&state).await.unwrap();
    for target in [&outside, &folder] {
        symlink(target, &path).unwrap();
        assert!(node.read(&path).await.is_err());
        node.put(&path, 0o600, b"new").await.unwrap();
        assert_eq!(node.read(&path).await.unwrap().unwrap(), b"new");
        node.remove_tree(&path).await.unwrap();
    }
    assert_eq!(std::fs::read(&outside).unwrap(), b"secret");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
}

#[tokio::test]
async fn a_tree_is_removed_without_following_links_and_gone_already_is_fine() {
    let (sshd, node, state) = started();
    let outside = sshd.dir().join("precious");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "x").unwrap();
    let run = state.join("w/abc");
    node.put(&run.join("deep/file"), 0o600, b"x").await.unwrap();
    symlink(&outside, run.join("link")).unwrap();
    let link = PathBuf::from(format!("{}/link/", run.display()));
    node.remove_tree(&link).await.unwrap();
    assert!(outside.join("file").exists() && !run.join("link").exists());
    symlink(&outside, run.join("link")).unwrap();
    node.remove_tree(&run).await.unwrap();
    node.remove_tree(&run).await.unwrap();
    assert!(!node.exists(&run).await.unwrap());
    assert!(outside.join("file").exists());
}

#[tokio::test]
async fn names_may_be_anything_and_those_that_are_not_text_are_skipped() {
    let (_sshd, node, state) = started();
    let nasty = [
        &b"it's"[..],
        b"a b",
        b"-rf",
        b".hidden",
        b"..two",
        b"line\nline",
        b"$(id)",
        b"back\\slash",
        b"\xff\xfe",
        "ü".as_bytes(),
        b"*",
    ];
    for name in nasty {
        let path = state.join(OsStr::from_bytes(name));
        assert!(!node.exists(&path).await.unwrap());
        node.put(&path, 0o600, name).await.unwrap();
        assert!(node.exists(&path).await.unwrap(), "{path:?}");
        assert_eq!(node.read(&path).await.unwrap().unwrap(), name);
    }
    symlink("/nowhere", state.join("dangling")).unwrap();
    assert!(node.exists(&state.join("dangling")).await.unwrap());
    let mut names = node.list_dir(&state).await.unwrap();
    names.sort();
    let mut expected: Vec<String> = nasty
        .iter()
        .filter_map(|name| String::from_utf8(name.to_vec()).ok())
        .chain(["dangling".to_owned()])
        .collect();
    expected.sort();
    assert_eq!(names, expected);
    for name in nasty {
        node.remove_tree(&state.join(OsStr::from_bytes(name)))
            .await
            .unwrap();
    }
    assert_eq!(node.list_dir(&state).await.unwrap(), ["dangling"]);
}

#[tokio::test]
async fn what_is_not_there_is_absent_and_what_cannot_be_done_says_why() {
    let (_sshd, node, state) = started();
    assert_eq!(node.read(&state.join("x")).await.unwrap(), None);
    assert!(node.list_dir(&state.join("x/y")).await.unwrap().is_empty());
    node.put(&state.join("file"), 0o600, b"x").await.unwrap();
    node.make_dir(&state.join("dir")).await.unwrap();
    node.make_dir(&state.join("dir")).await.unwrap();

    let not_a_dir = node.list_dir(&state.join("file")).await.unwrap_err();
    assert_eq!(
        not_a_dir.io_kind(),
        Some(ErrorKind::NotADirectory),
        "{not_a_dir}"
    );
    let below = node
        .put(&state.join("file/x"), 0o600, b"x")
        .await
        .unwrap_err();
    assert!(below.io_kind().is_some(), "{below}");
    assert!(below.to_string().starts_with("node n1: write /"), "{below}");
    assert!(node.put(&state.join("dir"), 0o600, b"x").await.is_err());
    assert_eq!(node.list_dir(&state.join("dir")).await.unwrap(), [""; 0]);
    let a_dir = node.read(&state.join("dir")).await.unwrap_err();
    assert_eq!(a_dir.io_kind(), Some(ErrorKind::IsADirectory), "{a_dir}");
    let relative = node.read(Path::new("relative")).await.unwrap_err();
    assert_eq!(relative.io_kind(), Some(ErrorKind::InvalidInput));
    // A pipe that nobody writes into does not hold anybody up.
    let pipe = state.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let begin = Instant::now();
    let _ = node.read(&pipe).await;
    assert!(begin.elapsed().as_secs() < 5);
    let proc = node.read(Path::new("/proc/self/stat")).await.unwrap();
    assert!(!proc.unwrap().is_empty());
}

#[tokio::test]
async fn a_full_disk_is_named_with_what_helps() {
    let (sshd, node, _) = started();
    let full = sshd.dir().join("full");
    std::fs::create_dir(&full).unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(&full)
        .status()
        .unwrap();
    if !mount.success() {
        return; // Not root.
    }
    let error = node.put(&full.join("x"), 0o600, &[b'x'; 200_000]).await;
    let left = std::fs::read_dir(&full).unwrap().count();
    std::process::Command::new("umount")
        .arg(&full)
        .status()
        .unwrap();
    let error = error.unwrap_err();
    assert_eq!(error.io_kind(), Some(ErrorKind::StorageFull), "{error}");
    assert!(error.remedy().unwrap().contains("make room"));
    assert_eq!(left, 0, "the half of a file is removed");
}

/// As on a node whose only tools are busybox's.
#[tokio::test]
async fn busybox_will_do() {
    let tools = tempfile::tempdir().unwrap();
    std::fs::set_permissions(tools.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let install = std::process::Command::new("busybox")
        .args(["--install", "-s"])
        .arg(tools.path())
        .status();
    if !install.is_ok_and(|status| status.success()) {
        return; // There is none.
    }
    let (sshd, node, state) = started_with(&format!(
        "SetEnv PATH={}\nForceCommand exec busybox sh -c \"$SSH_ORIGINAL_COMMAND\"",
        tools.path().display()
    ));
    std::fs::create_dir(sshd.dir().join("folder")).unwrap();
    let path = state.join("w/x");
    node.put(&path, 0o640, b"one").await.unwrap();
    assert_eq!(mode(&path), 0o640);
    assert_eq!(node.read(&path).await.unwrap().unwrap(), b"one");
    assert_eq!(node.list_dir(path.parent().unwrap()).await.unwrap(), ["x"]);
    assert_eq!(node.read(&state.join("no")).await.unwrap(), None);
    symlink(sshd.dir().join("folder"), state.join("link")).unwrap();
    assert!(node.read(&state.join("link")).await.is_err());
    node.put(&state.join("link"), 0o600, b"two").await.unwrap();
    assert_eq!(
        node.read(&state.join("link")).await.unwrap().unwrap(),
        b"two"
    );
    assert!(node.exists(&path).await.unwrap());
    node.remove_tree(&state).await.unwrap();
    assert!(!state.exists());
}
