//! The clients of `docs/clients.md`. A row is a client, with all that people do with it;
//! it is run in a workspace of each provider, and on both ways into it.

mod lab;
mod libraries;
mod mosh;
mod openssh;
mod programs;

use std::any::Any;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use vendetta_tests::Lxc;

use lab::{Lab, Visit, Way};

/// A client, what it does and what the page says of it.
struct Row {
    name: &'static str,
    client: &'static str,
    works: &'static str,
    /// How it comes end to end.
    jump: &'static str,
    note: &'static str,
    /// Tests elsewhere, of what the page says beyond what `run` does.
    beside: &'static [&'static str],
    run: fn(&Visit<'_>),
}

/// The rows, and for each a test either way in a container of Docker.
macro_rules! rows {
    ($($module:ident::$name:ident {
        $client:literal, works: $works:literal, jump: $jump:literal, note: $note:literal,
        beside: $beside:expr
    })*) => {
        const ROWS: &[Row] = &[$(Row {
            name: stringify!($name),
            client: $client,
            works: $works,
            jump: $jump,
            note: $note,
            beside: &$beside,
            run: $module::$name,
        }),*];

        mod relayed {
            $(#[test]
            fn $name() {
                super::in_docker(stringify!($name), super::Way::Relayed);
            })*
        }

        mod end_to_end {
            $(#[test]
            fn $name() {
                super::in_docker(stringify!($name), super::Way::EndToEnd);
            })*
        }
    };
}

rows! {
    openssh::ssh {
        "OpenSSH `ssh`",
        works: "sessions, terminals, `-L` `-R` `-D` `-W` `-A` `-X`, ControlMaster, `-t`",
        jump: "`ProxyJump`",
        note: "",
        beside: [
            "forward::a_socks_proxy_resolves_and_dials_inside_the_environment",
            "forward::the_forwarded_agent_signs_for_16_at_once",
            "forward::x11_leads_to_the_client_s_display_with_the_display_s_own_cookie",
            "jump::ports_and_the_ssh_agent_are_forwarded_end_to_end",
            "multiplex::the_exit_statuses_of_20_sessions_at_once_all_arrive"
        ]
    }
    openssh::scp_and_sftp {
        "OpenSSH `scp`, `scp -O`, `sftp`",
        works: "files and folders both ways",
        jump: "`ProxyJump`",
        note: "`-O` needs `scp` in the image",
        beside: ["transfer::names_modes_times_and_links_survive_scp_and_sftp"]
    }
    openssh::rsync {
        "rsync",
        works: "folders both ways",
        jump: "`ProxyJump`",
        note: "needs `rsync` in the image",
        beside: ["transfer::rsync_copies_2000_files_both_ways"]
    }
    openssh::git {
        "git",
        works: "push, clone, fetch",
        jump: "`ProxyJump`",
        note: "needs `git` in the image",
        beside: ["transfer::git_pushes_into_and_clones_from_the_environment"]
    }
    openssh::sshfs {
        "sshfs",
        works: "mount",
        jump: "`ProxyJump`",
        note: "",
        beside: ["transfer::sshfs_mounts_the_environment"]
    }
    programs::dropbear {
        "Dropbear `dbclient`",
        works: "sessions, `-L`, rsync over it",
        jump: "`-J 'dbclient … -B my-project:22 …'`",
        note: "",
        beside: []
    }
    programs::putty {
        "PuTTY `plink`, `pscp`, `psftp`",
        works: "sessions, `-L`, files by SFTP and by SCP",
        jump: "`-proxycmd 'plink … -nc %host:%port …'`",
        note: "`pscp -scp` needs `scp` in the image",
        beside: []
    }
    programs::curl {
        "curl (libssh2)",
        works: "`sftp://` and `scp://` both ways",
        jump: "a forward",
        note: "`scp://` needs `scp` in the image",
        beside: []
    }
    openssh::lftp {
        "lftp",
        works: "`sftp://` files, `mirror` both ways",
        jump: "`ProxyJump`",
        note: "",
        beside: []
    }
    programs::rclone {
        "rclone",
        works: "`copy`, `check` with checksums, `sync`",
        jump: "a forward",
        note: "end to end it checks nothing but the certificate: its known hosts need `@cert-authority [my-project.vendetta]:2200 …`, and /etc/hosts `127.0.0.1 my-project.vendetta`; newer ones have `--sftp-ssh`",
        beside: []
    }
    libraries::paramiko {
        "Paramiko",
        works: "sessions, terminals, SFTP, forwards",
        jump: "`sock=` a channel `direct-tcpip`",
        note: "`load_host_keys` takes no file with a line `@cert-authority`: `grep -v ^@` first",
        beside: []
    }
    libraries::asyncssh {
        "AsyncSSH",
        works: "20 sessions at once, terminals, signals, SFTP, SCP, forwards both ways",
        jump: "`tunnel=`",
        note: "knows host certificates",
        beside: []
    }
    libraries::fabric {
        "Fabric",
        works: "`run`, terminals, `put`, `get`, forwards",
        jump: "`gateway=`",
        note: "as Paramiko",
        beside: []
    }
    openssh::ansible {
        "Ansible",
        works: "`ping`, `copy`, `command`, `fetch`, with and without pipelining",
        jump: "`ProxyJump`",
        note: "needs Python in the image",
        beside: []
    }
    libraries::ssh2_of_node {
        "ssh2 (Node.js)",
        works: "sessions, terminals, SFTP, forwards, long commands beside a held one",
        jump: "`sock:` of `forwardOut`",
        note: "",
        beside: []
    }
    libraries::ssh2_sftp_client_of_node {
        "ssh2-sftp-client (Node.js)",
        works: "files and folders both ways",
        jump: "`sock:` of `forwardOut`",
        note: "",
        beside: []
    }
    programs::ssh_audit {
        "ssh-audit",
        works: "warns of nothing that it does not warn of in OpenSSH's sshd",
        jump: "a forward",
        note: "",
        beside: []
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/clients")
        .join(name)
}

/// Runs a row; what went wrong, with where it did.
fn run(row: &Row, lab: &Lab, way: Way) -> Result<(), String> {
    let visit = || (row.run)(&Visit::new(lab, way, row.name));
    catch_unwind(AssertUnwindSafe(visit)).map_err(|panic| {
        let problem = message(panic.as_ref());
        format!("{}, {way}, in {}: {problem}", row.name, lab.place)
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a text")
}

fn in_docker(name: &str, way: Way) {
    let row = ROWS.iter().find(|row| row.name == name).expect("a row");
    let lab = Lab::docker();
    if let Err(problem) = run(row, &lab, way) {
        panic!("{problem}");
    }
}

/// Every row both ways, whatever becomes of the others.
fn everything(lab: &Lab) {
    let visits = ROWS
        .iter()
        .flat_map(|row| [(row, Way::Relayed), (row, Way::EndToEnd)]);
    let mut wrong = Vec::new();
    for (row, way) in visits {
        let began = std::time::Instant::now();
        wrong.extend(run(row, lab, way).err());
        eprintln!("{} {way}: {:?}", row.name, began.elapsed());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn every_client_both_ways_in_a_container_of_incus() {
    everything(&Lab::lxc(Lxc::Incus));
}

#[test]
fn every_client_both_ways_in_a_container_of_lxd() {
    everything(&Lab::lxc(Lxc::Lxd));
}

#[test]
fn every_client_both_ways_in_a_machine_of_qemu() {
    everything(&Lab::qemu());
}

/// Tests that a row names are there, and the page says what the rows say.
#[test]
fn the_page_says_what_is_tested() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut table =
        String::from("| client | works, both ways | end to end by | note |\n|---|---|---|---|\n");
    for row in ROWS {
        for test in row.beside {
            let (module, name) = test.split_once("::").expect("MODULE::TEST");
            let source = root.join("e2e").join(module).with_extension("rs");
            let source = fs::read_to_string(source).expect("a module of tests");
            assert!(
                source.contains(&format!("#[test]\nfn {name}()")),
                "there is no test {test}"
            );
        }
        table.push_str(&format!(
            "| {} | {} | {} | {} |\n",
            row.client, row.works, row.jump, row.note
        ));
    }
    let page = root.join("../docs/clients.md");
    let text = fs::read_to_string(&page).expect("the page");
    let (begin, end) = ("<!-- generated: tests/e2e/clients -->\n", "<!-- end -->");
    let (before, rest) = text.split_once(begin).expect("where the table begins");
    let (_, after) = rest.split_once(end).expect("where the table ends");
    let current = format!("{before}{begin}{table}{end}{after}");
    if std::env::var_os("VENDETTA_REGENERATE").is_some() {
        fs::write(&page, &current).expect("writing the page");
        return;
    }
    assert!(text == current, "run it again with VENDETTA_REGENERATE=1");
}
