//! Programs that speak SSH themselves. End to end with a jump of their own, or through a
//! forward that OpenSSH's `ssh` makes for those that have none.

use std::collections::BTreeSet;
use std::fs;

use vendetta_tests::{Node, Run, clients};

use super::lab::{Visit, Way, same, session, tunnel};

/// Sessions, a tunnel, and rsync over it.
pub(super) fn dropbear(visit: &Visit<'_>) {
    let key = visit.here("dropbear.key");
    let convert = visit
        .run("dropbearconvert")
        .args(["openssh", "dropbear"])
        .arg(visit.key());
    convert.arg(&key).ok();
    // It looks for the gateway without its port, and in HOME alone.
    let known = fs::read_to_string(visit.known_hosts()).expect("known_hosts");
    let known = format!("127.0.0.1 {}\n{known}", visit.gateway_key().line);
    fs::create_dir(visit.here(".ssh")).expect("a folder");
    fs::write(visit.here(".ssh/known_hosts"), known).expect("known_hosts");
    let (key, port) = (key.display().to_string(), visit.port());
    let plain = ["dbclient", "-i", &key, "-p", &port];
    let jump = format!("{} -B ws:22 vendetta@127.0.0.1", plain.join(" "));
    let (dbclient, login) = match visit.way {
        Way::Relayed => (plain.to_vec(), "ws@127.0.0.1"),
        Way::EndToEnd => (vec!["dbclient", "-i", &key, "-J", &jump], "vendetta@ws"),
    };
    let run = |words: &[&str]| {
        let (program, args) = words.split_first().expect("a program");
        let run = visit.run(program).env("HOME", visit.here(""));
        run.args(args)
    };
    session(run(&dbclient).arg(login));
    tunnel(|forward| run(&dbclient).args(["-N", "-L", forward, login]));
    let (file, copy) = visit.files();
    // rsync takes words in quotes.
    let quoted: Vec<_> = dbclient.iter().map(|word| format!("'{word}'")).collect();
    let rsync = |from: &str, to: &str| {
        run(&["rsync", "-a", "-e", &quoted.join(" "), from, to]).ok();
    };
    let remote = format!("{login}:{}", visit.there("file"));
    rsync(&file.display().to_string(), &remote);
    rsync(&remote, &copy.display().to_string());
    same(&file, &copy);
}

/// Sessions, a tunnel, and files by each protocol.
pub(super) fn putty(visit: &Visit<'_>) {
    let key = visit.here("key.ppk");
    let convert = visit.run("puttygen").arg(visit.key()).arg("-o").arg(&key);
    convert.ok();
    let key = key.display().to_string();
    let proxy = format!(
        "plink -batch -noagent -ssh -P {} -hostkey {} -i {key} -l vendetta -nc %host:%port 127.0.0.1",
        visit.port(),
        visit.gateway_key().fingerprint
    );
    let host = match visit.way {
        Way::Relayed => "127.0.0.1",
        Way::EndToEnd => "ws",
    };
    let tool = |name: &str| {
        let run = visit.run(name).args(["-batch", "-noagent", "-i", &key]);
        match visit.way {
            Way::Relayed => run.args(["-P", &visit.port(), "-hostkey"]),
            Way::EndToEnd => run.args(["-proxycmd", &proxy, "-hostkey"]),
        }
        .arg(match visit.way {
            Way::Relayed => &visit.gateway_key().fingerprint,
            Way::EndToEnd => &visit.workspace_key().fingerprint,
        })
    };
    let plink = || tool("plink").args(["-ssh", "-l", visit.user()]);
    session(plink().arg(host));
    tunnel(|forward| plink().args(["-N", "-L", forward, host]));
    let login = format!("{}@{host}", visit.user());
    for protocol in ["-sftp", "-scp"] {
        let (file, copy) = visit.files();
        let pscp = |from: &str, to: &str| {
            let run = tool("pscp").args([protocol, "-q", from, to]);
            run.ok();
        };
        let remote = format!("{login}:{}", visit.there("file"));
        pscp(&file.display().to_string(), &remote);
        pscp(&remote, &copy.display().to_string());
        same(&file, &copy);
    }
    let script = visit.here("script");
    let (file, copy) = visit.files();
    let lines = [
        format!("cd {}", visit.there("")),
        "mkdir folder".to_owned(),
        format!("put {} folder/file", file.display()),
        "chmod 640 folder/file".to_owned(),
        "mv folder/file renamed".to_owned(),
        format!("get renamed {}", copy.display()),
        "rm renamed".to_owned(),
        "rmdir folder".to_owned(),
    ];
    fs::write(&script, lines.join("\n")).expect("a script");
    tool("psftp").arg("-b").arg(&script).arg(&login).ok();
    same(&file, &copy);
}

/// A file there and back by each protocol.
pub(super) fn curl(visit: &Visit<'_>) {
    let address = visit.address();
    for scheme in ["sftp", "scp"] {
        let (file, copy) = visit.files();
        let curl = || {
            let run = visit.run("curl").args(["--silent", "--show-error"]);
            let run = run.args(["--user", &format!("{}:", visit.user()), "--key"]);
            let run = run.arg(visit.key()).arg("--pubkey");
            let sha256 = address.key.fingerprint.trim_start_matches("SHA256:");
            run.arg(visit.key().with_extension("pub"))
                .args(["--hostpubsha256", sha256])
                .arg(format!(
                    "{scheme}://127.0.0.1:{}{}",
                    address.port,
                    visit.there("file")
                ))
        };
        curl().arg("--upload-file").arg(&file).ok();
        curl().arg("--output").arg(&copy).ok();
        same(&file, &copy);
    }
}

/// A folder there, compared, and back.
pub(super) fn rclone(visit: &Visit<'_>) {
    let address = visit.address();
    // Where there is a certificate it asks for that alone, which names no 127.0.0.1.
    let (host, marker, key) = match visit.way {
        Way::Relayed => ("127.0.0.1", "", &address.key.line),
        Way::EndToEnd => ("ws.vendetta", "@cert-authority ", visit.authority()),
    };
    let known_hosts = visit.here("known_hosts");
    let line = format!("{marker}[{host}]:{} {key}\n", address.port);
    fs::write(&known_hosts, line).expect("known_hosts");
    let hosts = visit.here("hosts");
    fs::write(&hosts, format!("127.0.0.1 localhost {host}\n")).expect("hosts");
    let with_hosts = "mount --bind \"$1\" /etc/hosts && shift && exec rclone \"$@\"";
    let rclone = |command: &str, from: &str, to: &str| {
        let run = visit
            .run("unshare")
            .args(["--mount", "sh", "-c", with_hosts, "sh"]);
        let run = run.arg(&hosts).args(["--config", "/dev/null"]);
        let run = run.args(["--sftp-host", host, "--sftp-user", visit.user()]);
        let run = run.args(["--sftp-port", &address.port, "--sftp-key-file"]);
        let run = run.arg(visit.key()).arg("--sftp-known-hosts-file");
        run.arg(&known_hosts).args([command, from, to]).ok();
    };
    let (folder, copy) = (visit.files_in_a_folder(), visit.here("copy"));
    let (from, to) = (folder.display().to_string(), copy.display().to_string());
    let remote = format!(":sftp:{}", visit.there("folder"));
    rclone("copy", &from, &remote);
    rclone("check", &from, &remote);
    rclone("sync", &remote, &to);
    Run::new("diff").arg("-r").arg(&folder).arg(&copy).ok();
}

/// What ssh-audit finds wrong at an address: the algorithm and why.
fn audited(visit: &Visit<'_>, host: &str, port: &str) -> BTreeSet<String> {
    let audit = visit.run(clients().join("venv/bin/ssh-audit"));
    // How fast it can connect is nobody's question here. Its exit status says that there is something.
    let audit = audit.args(["--json", "--skip-rate-test", "--port", port, host]);
    let found = audit.finish().json();
    let mut wrong = BTreeSet::new();
    for kind in ["kex", "key", "enc", "mac"] {
        let offered = found[kind].as_array().expect("a list");
        assert!(!offered.is_empty(), "{kind}: {found}");
        for one in offered {
            for level in ["fail", "warn"] {
                let notes = one["notes"][level].as_array();
                for note in notes.into_iter().flatten() {
                    wrong.insert(format!("{} {level}: {note}", one["algorithm"]));
                }
            }
        }
    }
    let advised: Vec<_> = found["cves"].as_array().into_iter().flatten().collect();
    assert!(advised.is_empty(), "{advised:?}");
    wrong
}

/// Nothing that it does not find in OpenSSH's sshd, and less.
pub(super) fn ssh_audit(visit: &Visit<'_>) {
    let address = visit.address();
    let node = Node::start();
    let ours = audited(visit, "127.0.0.1", &address.port);
    let theirs = audited(visit, &node.address().to_string(), "22");
    let worse: Vec<_> = ours.difference(&theirs).collect();
    assert!(worse.is_empty(), "{worse:#?}");
    assert!(ours.len() < theirs.len(), "{ours:#?}");
}
