//! Files: scp, scp -O, sftp, rsync, sshfs and git, both ways, checksums equal.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use vendetta_tests::{
    BUSYBOX, Client, Gateway, Run, Seeded, TOOLS, eventually, random_bytes, sha256,
};

const LONG: Duration = Duration::from_secs(400);
const GIB: usize = 1 << 30;

/// Every file below the folder it is run in: checksum and name, sorted.
const CHECKSUMS: &str = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";

/// Makes 2,000 files of 4 KiB in 20 folders below `dir`.
fn small_files(dir: &Path) {
    let mut random = Seeded::new(30);
    for folder in 0..20 {
        let folder = dir.join(format!("folder{folder}"));
        fs::create_dir_all(&folder).expect("a folder");
        for file in 0..100 {
            fs::write(folder.join(format!("file{file}")), random.bytes(4096)).expect("a file");
        }
    }
}

fn local_checksums(dir: &Path) -> String {
    let sums = Run::new("sh")
        .args(["-c", CHECKSUMS])
        .current_dir(dir)
        .ok()
        .text();
    assert_eq!(sums.lines().count(), 2000, "in {}", dir.display());
    sums
}

fn remote_checksums(gateway: &Gateway, dir: &str) -> String {
    gateway
        .exec("ws", &format!("cd {dir} && {CHECKSUMS}"))
        .ok()
        .text()
}

/// Copies 2,000 small files up and down with `copy(client, from, to)`, whose
/// paths on the workspace start with `ws@gateway:`, and compares them.
fn copies_2000_files(copy: impl Fn(&Client, &str, &str)) {
    let gateway = Gateway::with_workspace();
    let (there, back) = (
        gateway.scratch().join("files"),
        gateway.scratch().join("back"),
    );
    small_files(&there);
    let text = |path: &PathBuf| path.display().to_string();
    copy(gateway.admin(), &text(&there), "ws@gateway:/tmp/files");
    let sums = local_checksums(&there);
    assert!(
        remote_checksums(&gateway, "/tmp/files") == sums,
        "the files differ after the way up"
    );
    copy(gateway.admin(), "ws@gateway:/tmp/files", &text(&back));
    assert!(
        local_checksums(&back) == sums,
        "the files differ after the way down"
    );
}

#[test]
fn scp_copies_2000_files_both_ways() {
    copies_2000_files(|client, from, to| {
        client
            .tool("scp")
            .args(["-q", "-r", from, to])
            .limit(LONG)
            .ok();
    });
}

#[test]
fn scp_by_the_old_protocol_copies_2000_files_both_ways() {
    copies_2000_files(|client, from, to| {
        client
            .tool("scp")
            .args(["-O", "-q", "-r", from, to])
            .limit(LONG)
            .ok();
    });
}

#[test]
fn rsync_copies_2000_files_both_ways() {
    copies_2000_files(|client, from, to| {
        let slash = |path: &str| format!("{path}/");
        let rsync = client
            .program("rsync")
            .args(["-a", "-e", &client.ssh_command()]);
        rsync.args([slash(from), slash(to)]).limit(LONG).ok();
    });
}

#[test]
fn sftp_copies_2000_files_both_ways() {
    copies_2000_files(|client, from, to| {
        let strip = |path: &str| path.strip_prefix("ws@gateway:").unwrap_or(path).to_owned();
        let (source, target) = (strip(from), strip(to));
        let batch = if from.starts_with("ws@") {
            format!("get -R {source} {target}\n")
        } else {
            format!("mkdir {target}\nput -R {source}/* {target}\n")
        };
        client
            .tool("sftp")
            .args(["-q", "-b", "-", "ws@gateway"])
            .stdin(batch)
            .limit(LONG)
            .ok();
    });
}

#[test]
fn rsync_and_scp_copy_a_file_of_1_gib_both_ways() {
    let gateway = Gateway::with_workspace();
    let admin = gateway.admin();
    let file = gateway.scratch().join("large");
    let content = random_bytes(31, GIB);
    let sum = sha256(&content);
    fs::write(&file, content).expect("a large file");
    let remote = |file: &str| {
        let run = gateway
            .exec("ws", &format!("sha256sum <{file}"))
            .limit(LONG)
            .ok();
        run.text().split(' ').next().unwrap_or_default().to_owned()
    };
    let local = |path: &Path| {
        let run = Run::new("sha256sum").arg(path).limit(LONG).ok();
        run.text().split(' ').next().unwrap_or_default().to_owned()
    };
    let back = gateway.scratch().join("back");
    let rsync = || {
        admin
            .program("rsync")
            .args(["-W", "-e", &admin.ssh_command()])
            .limit(LONG)
    };
    rsync().arg(&file).arg("ws@gateway:/workspace/large").ok();
    assert_eq!(remote("/workspace/large"), sum);
    rsync().arg("ws@gateway:/workspace/large").arg(&back).ok();
    assert_eq!(local(&back), sum);
    fs::remove_file(&back).expect("removing a copy");
    let scp = || admin.tool("scp").arg("-q").limit(LONG);
    scp().arg(&file).arg("ws@gateway:/workspace/large").ok();
    assert_eq!(remote("/workspace/large"), sum);
    scp().arg("ws@gateway:/workspace/large").arg(&back).ok();
    assert_eq!(local(&back), sum);
}

#[test]
fn names_modes_times_and_links_survive_scp_and_sftp() {
    let gateway = Gateway::with_workspace();
    let admin = gateway.admin();
    let dir = gateway.scratch().join("odd");
    fs::create_dir(&dir).expect("a folder");
    let odd = dir.join(std::ffi::OsStr::from_bytes(
        b"sp ace \"quote' \xff\xfe*?[x]",
    ));
    for (path, content, mode) in [(&odd, "odd", 0o640), (&dir.join("empty"), "", 0o755)] {
        fs::write(path, content).expect("a file");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
        Run::new("touch")
            .args(["-d", "2001-02-03 04:05:06"])
            .arg(path)
            .ok();
    }
    symlink("empty", dir.join("link")).expect("a link");
    let show = "cd \"$1\" && find . -type f -printf '%P %m %Ts %s\\n' | LC_ALL=C sort";
    let expected = Run::new("sh")
        .args(["-c", show, "sh"])
        .arg(&dir)
        .ok()
        .stdout;
    for flag in ["-s", "-O"] {
        admin
            .tool("scp")
            .args(["-q", "-p", "-r", flag])
            .arg(&dir)
            .arg("ws@gateway:/tmp/odd")
            .ok();
        let run = gateway.exec("ws", &show.replace("\"$1\"", "/tmp/odd")).ok();
        let files = |bytes: &[u8]| {
            let lines = bytes
                .split(|b| *b == b'\n')
                .filter(|line| !line.starts_with(b"link "))
                .map(<[u8]>::to_vec);
            lines.collect::<Vec<_>>()
        };
        assert_eq!(files(&run.stdout), files(&expected), "scp {flag}");
        gateway.exec("ws", "rm -r /tmp/odd").ok();
    }
    let batch = "mkdir /tmp/s\ncd /tmp/s\nput empty\nsymlink empty link\nrename empty full\nls -l\nln full hard\n\
                 chmod 600 full\nrm hard\nrm link\nrm full\ncd ..\nrmdir s\ndf -h\n";
    admin
        .tool("sftp")
        .args(["-q", "-b", "-", "ws@gateway"])
        .current_dir(&dir)
        .stdin(batch)
        .ok();
}

#[test]
fn a_missing_file_is_an_error_of_scp_s_own() {
    let gateway = Gateway::with_workspace();
    for flag in ["-s", "-O"] {
        let run = gateway
            .admin()
            .tool("scp")
            .args([flag, "ws@gateway:/no/such/file", "."])
            .finish()
            .exits(1);
        assert!(run.error_text().contains("No such file"), "{run}");
    }
}

#[test]
fn files_for_the_gateway_itself_are_told_where_they_go() {
    let gateway = Gateway::builder().start();
    let admin = gateway.admin();
    let file = gateway.scratch().join("file");
    fs::write(&file, "text").expect("a file");
    let words = "files go to a workspace: scp FILE WORKSPACE@HOST:";
    for flag in ["-s", "-O"] {
        let scp = admin.tool("scp").arg(flag).arg(&file);
        let run = scp.arg("vendetta@gateway:").finish();
        assert!(!run.status.success(), "{run}");
        assert!(run.error_text().contains(words), "{run}");
    }
    let sftp = gateway.ssh("vendetta").args(["-s", "sftp"]);
    let run = sftp.finish().exits(2);
    assert_eq!(run.error_text(), format!("vendetta: {words}"));
}

#[test]
fn an_image_without_an_sftp_server_still_serves_scp_and_sftp() {
    let gateway = Gateway::docker();
    gateway.workspace("bb", BUSYBOX);
    let (there, back) = (
        gateway.scratch().join("files"),
        gateway.scratch().join("back"),
    );
    small_files(&there);
    let scp = || gateway.admin().tool("scp").args(["-q", "-r"]).limit(LONG);
    scp().arg(&there).arg("bb@gateway:/tmp/files").ok();
    scp().arg("bb@gateway:/tmp/files").arg(&back).ok();
    assert!(
        local_checksums(&there) == local_checksums(&back),
        "the files differ"
    );
    let batch = "mkdir /tmp/s\ncd /tmp/s\nput known_hosts k\nsymlink k link\nrename k full\nls -l\nln full hard\n\
                 chmod 600 full\nrm hard\nrm link\nget full back\nrm full\ncd ..\nrmdir s\n";
    let admin = gateway.admin();
    admin
        .tool("sftp")
        .args(["-q", "-b", "-", "bb@gateway"])
        .stdin(batch)
        .ok();
    let read = |name: &str| fs::read(admin.home().join(name)).expect("a file");
    assert_eq!(read("back"), read("known_hosts"));
}

/// A mounted sshfs; dropped, it is unmounted.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Run::new("fusermount3")
            .args(["-u", "-z"])
            .arg(&self.0)
            .finish();
    }
}

#[test]
fn sshfs_mounts_the_environment() {
    let gateway = Gateway::with_workspace();
    let admin = gateway.admin();
    let mount = gateway.scratch().join("mount");
    fs::create_dir(&mount).expect("a mount point");
    let sshfs = admin
        .program("sshfs")
        .arg("-F")
        .arg(admin.config())
        .arg("ws@gateway:/workspace")
        .arg(&mount);
    sshfs.ok();
    let mounted = Mounted(mount.clone());
    let content = random_bytes(32, 20 << 20);
    fs::write(mount.join("file"), &content).expect("writing through sshfs");
    assert_eq!(
        gateway.exec("ws", "sha256sum </workspace/file").ok().text(),
        format!("{}  -", sha256(&content))
    );
    gateway
        .exec(
            "ws",
            "mkdir /workspace/d && cp /workspace/file /workspace/d/copy",
        )
        .ok();
    assert!(
        fs::read(mount.join("d/copy")).expect("reading through sshfs") == content,
        "other bytes"
    );
    fs::rename(mount.join("d/copy"), mount.join("moved")).expect("renaming");
    fs::remove_file(mount.join("moved")).expect("removing");
    fs::remove_dir(mount.join("d")).expect("removing");
    assert_eq!(gateway.exec("ws", "ls /workspace").ok().text(), "file");
    drop(mounted);
    eventually("sshfs is unmounted", || {
        let mounts = fs::read_to_string("/proc/mounts").expect("proc");
        !mounts.contains(&mount.display().to_string())
    });
}

/// `git ARGS` in a folder, by somebody with a name.
fn git(client: &Client, dir: &Path, args: &[&str]) -> Run {
    let git = client
        .program("git")
        .env("GIT_SSH_COMMAND", client.ssh_command())
        .current_dir(dir);
    let settings = [
        "user.name=t",
        "user.email=t@example.org",
        "init.defaultBranch=main",
    ];
    let git = settings
        .iter()
        .fold(git, |git, setting| git.args(["-c", setting]));
    git.args(args).limit(LONG)
}

#[test]
fn git_pushes_into_and_clones_from_the_environment() {
    let gateway = Gateway::with_workspace();
    let admin = gateway.admin();
    gateway
        .exec("ws", "git init -q --bare /workspace/project.git")
        .ok();
    let git = |dir: &Path, args: &[&str]| git(admin, dir, args).ok();
    let source = gateway.scratch().join("source");
    small_files(&source);
    git(&source, &["init", "-q"]);
    git(&source, &["add", "."]);
    git(&source, &["commit", "-q", "-m", "all"]);
    git(
        &source,
        &[
            "push",
            "-q",
            "ws@gateway:/workspace/project.git",
            "HEAD:main",
        ],
    );
    git(
        gateway.scratch(),
        &[
            "clone",
            "-q",
            "-b",
            "main",
            "ssh://ws@gateway/workspace/project.git",
            "clone",
        ],
    );
    let head = |dir: &Path| git(dir, &["rev-parse", "HEAD"]).text();
    let clone = gateway.scratch().join("clone");
    assert_eq!(head(&clone), head(&source));
    git(&clone, &["fsck", "--strict"]);
}

/// `git push vendetta:my-project`, and what follows from it.
#[test]
fn git_takes_the_gateway_for_the_host_of_all_workspaces() {
    let gateway = Gateway::docker();
    // Whatever their login shell.
    for user in ["root", "fish", "dash"] {
        let config = format!("provider: docker\ndocker: {{image: \"{TOOLS}\"}}\nuser: {user}\n");
        gateway.create(user, &config);
        let source = gateway.scratch().join(format!("source-{user}"));
        fs::create_dir(&source).expect("a folder");
        let git = |args: &[&str]| git(gateway.admin(), &source, args);
        let commit = |content: &str| {
            fs::write(source.join("file"), content).expect("a file");
            git(&["add", "."]).ok();
            git(&["commit", "-q", "-m", content]).ok();
        };
        let there = || gateway.exec(user, "cat file; git branch").ok().text();
        git(&["init", "-q", "-b", "trunk"]).ok();
        commit("one");
        let remote = format!("vendetta@gateway:{user}");
        git(&["remote", "add", "origin", &remote]).ok();
        // It comes up on the way, and its folder is a repository from now on.
        git(&["push", "-q", "origin", "trunk"]).ok();
        assert_eq!(there(), "one* trunk");
        commit("two");
        git(&["push", "-q", "origin", "trunk"]).ok();
        assert_eq!(there(), "two* trunk");
        // What somebody did there is not overwritten.
        gateway.exec(user, "echo mine >file").ok();
        commit("three");
        let refused = git(&["push", "-q", "origin", "trunk"]).finish().exits(1);
        assert!(
            refused.error_text().contains("unstaged changes"),
            "{refused}"
        );
        let url = format!("ssh://vendetta@gateway/{user}");
        git(&["clone", "-q", &url, "clone"]).ok();
        let cloned = fs::read_to_string(source.join("clone/file"));
        assert_eq!(cloned.expect("a file"), "two");
        let nested = format!("vendetta@gateway:{user}/libs/a.git");
        git(&["push", "-q", &nested, "trunk"]).ok();
        let archive = git(&["archive", "--remote", &nested, "trunk", "file"]).ok();
        assert!(!archive.stdout.is_empty());
    }
    let git = |args: &[&str]| git(gateway.admin(), gateway.scratch(), args);
    let run = git(&["clone", "vendetta@gateway:roof"]).finish().exits(128);
    assert!(run.error_text().contains("did you mean root?"), "{run}");
    let run = git(&["clone", "vendetta@gateway:root/it's"]).finish();
    assert!(run.exits(128).error_text().contains("git push WORKSPACE@"));
}
