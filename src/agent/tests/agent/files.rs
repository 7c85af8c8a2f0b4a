//! SFTP with our own server, scp, rsync.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Output, Stdio};

use crate::fixture::{Agent, Environment, is_root};

/// An agent in an environment that has no SFTP server of its own; none when
/// this test may not make one.
fn with_built_in_server() -> Option<Agent> {
    let hide = "for d in /usr/lib/openssh /usr/libexec/openssh /usr/lib/ssh; do \
                if [ -d $d ]; then mount -t tmpfs none $d || exit 1; fi; done";
    is_root().then(|| {
        Agent::start_with(
            Environment {
                prepare: Some(hide),
            },
            |_| {},
        )
    })
}

fn sftp(agent: &Agent, batch: &str) -> Output {
    let mut client = agent
        .client("sftp")
        .args(["-b", "-", "ws"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    client
        .stdin
        .take()
        .unwrap()
        .write_all(batch.as_bytes())
        .unwrap();
    client.wait_with_output().unwrap()
}

fn sftp_text(agent: &Agent, batch: &str) -> String {
    let output = sftp(agent, batch);
    assert!(output.status.success(), "{batch}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

#[test]
fn files_go_in_and_out_unchanged() {
    let Some(agent) = with_built_in_server() else {
        return;
    };
    let (from, to, back) = (agent.path("from"), agent.path("to"), agent.path("back"));
    for length in [0, 1, 32_768, 10_000_001] {
        std::fs::write(&from, noise(length)).unwrap();
        std::fs::set_permissions(&from, std::fs::Permissions::from_mode(0o640)).unwrap();
        let batch = format!(
            "put -p {0} {1}\nget -p {1} {2}\n",
            from.display(),
            to.display(),
            back.display()
        );
        sftp_text(&agent, &batch);
        assert!(std::fs::read(&to).unwrap() == noise(length));
        assert!(std::fs::read(&back).unwrap() == noise(length));
        let (before, after) = (
            std::fs::metadata(&from).unwrap(),
            std::fs::metadata(&to).unwrap(),
        );
        assert_eq!(
            (before.mode(), before.mtime()),
            (after.mode(), after.mtime())
        );
    }
}

#[test]
fn every_request_of_the_client_does_what_it_says() {
    let Some(agent) = with_built_in_server() else {
        return;
    };
    let root = agent.path("tree");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("a"), b"content").unwrap();
    let at = |name: &str| root.join(name);
    let text = sftp_text(
        &agent,
        &format!(
            "cd {}\npwd\nmkdir d\nrename a d/b\nln -s d/b link\nln d/b hard\nchmod 600 d/b\nls -l d\nls -la\n\
             cp d/b copy\ndf\nchown 12 copy\nchgrp 34 copy\nmkdir gone\nrmdir gone\nput {}/copy up\nrm up\nls -n copy\n",
            root.display(),
            root.display()
        ),
    );
    assert!(
        text.contains(&format!("Remote working directory: {}", root.display())),
        "{text}"
    );
    assert!(text.contains("-rw-------"), "{text}");
    assert!(text.contains(" .\n") && text.contains(" ..\n"), "{text}");
    assert_eq!(std::fs::read_link(at("link")).unwrap(), Path::new("d/b"));
    assert_eq!(std::fs::metadata(at("hard")).unwrap().nlink(), 2);
    assert_eq!(std::fs::read(at("copy")).unwrap(), b"content");
    let copy = std::fs::metadata(at("copy")).unwrap();
    assert_eq!((copy.uid(), copy.gid()), (12, 34));
    assert!(!at("gone").exists() && !at("up").exists() && !at("a").exists());
}

#[test]
fn failures_are_told_and_change_nothing() {
    let Some(agent) = with_built_in_server() else {
        return;
    };
    let refused = |batch: &str, reason: &str| {
        let output = sftp(&agent, batch);
        assert_eq!(output.status.code(), Some(1), "{batch}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(reason), "{reason} in {text}");
    };
    refused("get /no/such/file /tmp/x\n", "not found");
    refused("rmdir /usr\n", "Failure");
    refused("mkdir /usr\n", "Failure");
    refused("cd /etc/passwd\n", "not a directory");
}

#[test]
fn names_are_bytes() {
    let Some(agent) = with_built_in_server() else {
        return;
    };
    let root = agent.path("names");
    std::fs::create_dir(&root).unwrap();
    let odd = root.join(std::ffi::OsStr::from_bytes(b"caf\xe9 \xff"));
    std::fs::write(&odd, b"odd").unwrap();
    let target = agent.path("copied");
    let output = agent
        .client("scp")
        .arg("-rq")
        .arg(format!("ws:{}", root.display()))
        .arg(&target)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        std::fs::read(target.join(odd.file_name().unwrap())).unwrap(),
        b"odd"
    );
}

#[test]
fn a_tree_of_two_thousand_files_survives_scp() {
    let Some(agent) = with_built_in_server() else {
        return;
    };
    tree_survives(&agent, &[]);
}

#[test]
fn a_tree_survives_the_environments_own_server_and_the_old_protocol() {
    let agent = Agent::start();
    tree_survives(&agent, &[]);
    tree_survives(&agent, &["-O"]);
}

fn tree_survives(agent: &Agent, options: &[&str]) {
    let root = tempfile::tempdir().unwrap();
    let (source, target, back) = (
        root.path().join("s"),
        root.path().join("t"),
        root.path().join("b"),
    );
    for directory in 0..20 {
        let directory = source.join(directory.to_string());
        std::fs::create_dir_all(&directory).unwrap();
        for file in 0..100 {
            std::fs::write(directory.join(file.to_string()), noise(4096 + file)).unwrap();
        }
    }
    let far = format!("ws:{}", target.display());
    let copy = |from: &std::ffi::OsStr, to: &std::ffi::OsStr| {
        let output = agent
            .client("scp")
            .args(options)
            .arg("-rpq")
            .arg(from)
            .arg(to)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    copy(source.as_os_str(), far.as_ref());
    copy(far.as_ref(), back.as_os_str());
    let same = std::process::Command::new("diff")
        .arg("-r")
        .arg(&source)
        .arg(&back)
        .output()
        .unwrap();
    assert!(same.status.success(), "{same:?}");
}

#[test]
fn rsync_works_as_a_command() {
    let agent = Agent::start();
    let (from, to) = (agent.path("r1"), agent.path("r2"));
    std::fs::create_dir(&from).unwrap();
    std::fs::write(from.join("file"), noise(3_000_000)).unwrap();
    let output = std::process::Command::new("rsync")
        .args([
            "-a",
            "-e",
            &format!("ssh -F {}", agent.path("ssh_config").display()),
        ])
        .arg(format!("{}/", from.display()))
        .arg(format!("ws:{}/", to.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(std::fs::read(to.join("file")).unwrap() == noise(3_000_000));
}

#[test]
fn a_mounted_environment_is_a_file_system() {
    let Some(agent) = with_built_in_server() else {
        return;
    };
    if !Path::new("/dev/fuse").exists() || !Path::new("/usr/bin/sshfs").exists() {
        return;
    }
    let (far, near) = (agent.path("far"), agent.path("near"));
    std::fs::create_dir(&far).unwrap();
    std::fs::create_dir(&near).unwrap();
    let mounted = std::process::Command::new("sshfs")
        .arg("-F")
        .arg(agent.path("ssh_config"))
        .arg(format!("ws:{}", far.display()))
        .arg(&near)
        .output()
        .unwrap();
    assert!(mounted.status.success(), "{mounted:?}");
    let at = |name: &str| near.join(name);
    let result = std::panic::catch_unwind(|| {
        std::fs::write(at("file"), noise(3_000_000)).unwrap();
        assert!(std::fs::read(far.join("file")).unwrap() == noise(3_000_000));
        std::fs::write(at("other"), b"x").unwrap();
        std::fs::rename(at("other"), at("file")).unwrap();
        assert_eq!(std::fs::read(far.join("file")).unwrap(), b"x");
        std::fs::create_dir(at("directory")).unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        std::fs::hard_link(at("file"), at("hard")).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&near)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["directory", "file", "hard", "link"]);
        let mut appended = std::fs::OpenOptions::new()
            .append(true)
            .open(at("file"))
            .unwrap();
        appended.write_all(b"yz").unwrap();
        appended.sync_all().unwrap();
        assert_eq!(std::fs::read(far.join("file")).unwrap(), b"xyz");
    });
    let unmounted = std::process::Command::new("fusermount")
        .arg("-u")
        .arg(&near)
        .output();
    let unmounted = unmounted
        .or_else(|_| std::process::Command::new("umount").arg(&near).output())
        .unwrap();
    assert!(unmounted.status.success(), "{unmounted:?}");
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}
