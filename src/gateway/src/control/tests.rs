//! The control plane as its clients see it, on a real store and real
//! workspaces; only the engine is absent.

mod configs;
mod people;
mod sessions;

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vendetta_sshio::keys::PrivateKey;

use super::io::tests::client;
use super::*;
use crate::access::{Permissions, Role};
use crate::workspace::Settings;

struct Lab {
    _dir: tempfile::TempDir,
    control: Control,
    end: CancellationToken,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// How a command ended.
struct Ran {
    outcome: Outcome,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn code(&self) -> u8 {
        match &self.outcome {
            Outcome::Exit(code) => *code,
            Outcome::Attach(_) => panic!("attached; {}", self.stderr),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

fn key_line(comment: &str) -> String {
    format!(
        "{} {comment}",
        PrivateKey::generate_ed25519(comment).unwrap().public()
    )
}

impl Lab {
    /// A gateway with the admin `root-user` and the member `alice`, each with a key.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        let agents = dir.path().join("agents");
        std::fs::create_dir(&agents).unwrap();
        std::fs::write(agents.join("vendetta-agent"), "").unwrap();
        let store = Store::open(&state_dir.join("state.db")).unwrap();
        for (name, role) in [("root-user", Role::Admin), ("alice", Role::Member)] {
            let name = name.parse().unwrap();
            store.add_user(&name, role).await.unwrap();
            store
                .add_key(&name, &key_line("first").parse().unwrap(), "first")
                .await
                .unwrap();
        }
        let end = CancellationToken::new();
        let workspaces = Workspaces::start(Settings {
            store: store.clone(),
            host_ca: PrivateKey::generate_ed25519("ca").unwrap(),
            agent_key: PrivateKey::generate_ed25519("agents").unwrap(),
            user_authorities: Vec::new(),
            agent_dir: Some(agents),
            state_dir: state_dir.clone(),
            docker_socket: dir.path().join("no-docker.sock"),
            lxc_socket: Some(dir.path().join("no-lxc.sock")),
            qemu: Default::default(),
            allow_host: true,
            ports: crate::workspace::PortSettings {
                range: 20000..=29999,
                bind: "127.0.0.1".parse().unwrap(),
            },
            node_key: PrivateKey::generate_ed25519("nodes").unwrap(),
            events: Events::default(),
            tracker: TaskTracker::new(),
            cancel: end.clone(),
        })
        .await
        .unwrap();
        let config = Config {
            state_dir,
            ..Config::default()
        };
        let control = Control::new(
            &config,
            store,
            workspaces,
            Events::default(),
            "127.0.0.1:2222".parse().unwrap(),
            HostKeys {
                gateway: PrivateKey::generate_ed25519("host").unwrap().public(),
                authority: PrivateKey::generate_ed25519("ca").unwrap().public(),
            },
        );
        Self {
            _dir: dir,
            control,
            end,
        }
    }

    fn caller(&self, user: &str, env: &[(&str, &str)]) -> Caller {
        let user = self.control.store.user(&user.parse().unwrap()).unwrap();
        Caller {
            principal: Arc::new(Principal {
                user: user.name,
                role: user.role,
                key_fingerprint: "SHA256:test".to_owned(),
                permissions: Permissions::default(),
            }),
            session_env: env
                .iter()
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            reached: None,
        }
    }

    /// Runs `line` as `user`, or a shell without one; `stdin` is sent and closed.
    async fn session(&self, user: &str, line: Option<&[u8]>, stdin: &[u8], terminal: bool) -> Ran {
        let env: &[(&str, &str)] = if terminal {
            &[("TERM", "xterm"), ("NO_COLOR", "1")]
        } else {
            &[]
        };
        let caller = self.caller(user, env);
        let (mut client, io) = client(terminal);
        client.stdin.write_all(stdin).await.unwrap();
        drop(client.stdin);
        let run = async {
            match line {
                Some(line) => self.control.run(&caller, line, io).await,
                None => self.control.shell(&caller, io).await,
            }
        };
        let mut outcome = tokio::time::timeout(Duration::from_secs(20), run)
            .await
            .unwrap();
        if let Outcome::Attach(attach) = &mut outcome {
            attach.io.stdout.shutdown().await.unwrap();
            attach.io.stderr.shutdown().await.unwrap();
        }
        let (mut stdout, mut stderr) = (String::new(), String::new());
        client.stdout.read_to_string(&mut stdout).await.unwrap();
        client.stderr.read_to_string(&mut stderr).await.unwrap();
        Ran {
            outcome,
            stdout,
            stderr,
        }
    }

    async fn run(&self, line: &str) -> Ran {
        self.session("root-user", Some(line.as_bytes()), b"", false)
            .await
    }

    async fn run_as(&self, user: &str, line: &str, stdin: &str) -> Ran {
        self.session(user, Some(line.as_bytes()), stdin.as_bytes(), false)
            .await
    }

    async fn names(&self) -> Vec<String> {
        let list = self.run("workspace list --json").await.json();
        list["workspaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|w| w["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

#[tokio::test]
async fn help_is_for_stdout_and_a_wrong_line_for_stderr_with_status_2() {
    let lab = Lab::new().await;
    for line in [
        "",
        "help",
        "--help",
        "workspace --help",
        "help workspace create",
        "workspace up -h",
    ] {
        let ran = lab.run(line).await;
        assert_eq!((ran.code(), ran.stderr.as_str()), (0, ""), "{line}");
        assert!(
            ran.stdout.contains("Usage: vendetta") && ran.stdout.contains("Examples:"),
            "{line}: {}",
            ran.stdout
        );
    }
    for line in [
        "help --json",
        "--json workspace --help",
        "workspace help up --json",
    ] {
        let ran = lab.run(line).await;
        assert_eq!((ran.code(), ran.stderr.as_str()), (0, ""), "{line}");
        let help = ran.json()["help"].to_string();
        assert!(help.contains("Usage: vendetta"), "{line}: {help}");
    }
    for (line, says) in [
        ("workspac list", "'workspace'"),
        ("workspace lst", "'list'"),
        ("workspace list --jsno", "--json"),
        ("workspace up", "<WORKSPACE>"),
        ("workspace", "Commands:"),
        ("workspace create x --provider dokcer", "docker"),
        ("workspace create x --memory lots", "lots"),
        ("workspace create x --env oops", "NAME=VALUE"),
        ("workspace create My_Project", "lower-case"),
        ("user add vendetta", "reserved"),
        ("workspace up 'x", "quote"),
    ] {
        let ran = lab.run(line).await;
        assert_eq!((ran.code(), ran.stdout.as_str()), (2, ""), "{line}");
        assert!(ran.stderr.contains(says), "{line}: {}", ran.stderr);
    }
    assert_eq!(
        lab.session("root-user", Some(b"workspace \xff"), b"", false)
            .await
            .code(),
        2
    );
    assert!(lab.names().await.is_empty());
}

#[tokio::test]
async fn errors_are_json_when_json_was_asked_for() {
    let lab = Lab::new().await;
    for (line, code) in [
        ("workspace lst --json", 2),
        ("workspace up nothing --json", 3),
        ("workspace destroy x --json", 3),
    ] {
        let ran = lab.run(line).await;
        assert_eq!(ran.code(), code);
        let error: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(error["error"]["exit_code"], code, "{line}: {error}");
        assert!(error["error"]["problem"].is_string());
    }
}

#[tokio::test]
async fn a_workspace_is_made_from_flags_or_from_stdin_and_shown() {
    let lab = Lab::new().await;
    let ran = lab
        .run("workspace create one --image ubuntu:22.04 --cpu 1.5 --memory 1G --env A=b")
        .await;
    assert_eq!(ran.code(), 0, "{}", ran.stderr);
    assert!(
        ran.stdout.contains("ssh vendetta workspace up one"),
        "{}",
        ran.stdout
    );
    let config = "name: two\nprovider: docker\ndocker: {image: \"debian:12\"}\n";
    let ran = lab
        .run_as("alice", "workspace create --config - --json", config)
        .await;
    assert_eq!(ran.code(), 0, "{}", ran.stderr);
    assert_eq!(ran.json()["workspace"]["name"], "two");
    assert_eq!(lab.names().await, ["one", "two"]);

    let table = lab.run("workspace list").await.stdout;
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("NAME") && lines[0].ends_with("OWNER"),
        "{table}"
    );
    assert!(
        lines[2].starts_with("two") && lines[2].ends_with("alice"),
        "{table}"
    );
    let own = lab.run_as("alice", "workspace list", "").await.stdout;
    assert!(!own.contains("one") && !own.contains("OWNER"), "{own}");

    let status = lab.run("workspace status one --json").await.json();
    assert_eq!(status["workspace"]["image"], "ubuntu:22.04");
    assert_eq!(status["workspace"]["state"], "created");
    let text = lab.run("workspace status one").await.stdout;
    assert!(text.contains("ssh one@127.0.0.1 -p 2222"), "{text}");
}

#[tokio::test]
async fn a_project_config_that_is_wrong_is_refused_with_its_position_and_makes_nothing() {
    let lab = Lab::new().await;
    let ran = lab
        .run_as(
            "alice",
            "workspace create --config -",
            "name: x\ndocker:\n  imgae: y\n",
        )
        .await;
    assert_eq!(ran.code(), 2);
    for part in [
        "config.yaml:3:3",
        "unknown key `imgae`",
        "did you mean `image`?",
    ] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
    let ran = lab
        .run_as(
            "alice",
            "workspace create --config - --json",
            "name: x\nimgae: y\n",
        )
        .await;
    let error: Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(
        (&error["error"]["line"], &error["error"]["column"]),
        (&2.into(), &1.into()),
        "{error}"
    );
    for (line, stdin) in [
        ("workspace create x --config /etc/passwd", ""),
        ("workspace create x --config -", "name: [\n"),
        ("workspace create --image y", ""),
    ] {
        let ran = lab.run_as("alice", line, stdin).await;
        assert_eq!(ran.code(), 2, "{line}: {}", ran.stderr);
    }
    let huge = format!("# {}\n", "x".repeat(300 << 10));
    assert_eq!(
        lab.run_as("alice", "workspace create x --config -", &huge)
            .await
            .code(),
        2
    );
    assert!(lab.names().await.is_empty());
}

#[tokio::test]
async fn a_name_that_is_taken_is_a_conflict_and_one_that_is_near_is_suggested() {
    let lab = Lab::new().await;
    lab.run("workspace create blog --image x").await;
    for line in [
        "workspace create blog --image y",
        "workspace create alice --image y",
        "user add blog",
        "user add alice",
    ] {
        assert_eq!(lab.run(line).await.code(), 4, "{line}");
    }
    let ran = lab.run("workspace up blgo").await;
    assert_eq!(ran.code(), 3);
    assert!(ran.stderr.contains("did you mean blog?"), "{}", ran.stderr);
    let ran = lab.run_as("alice", "workspace up blgo", "").await;
    assert!(
        !ran.stderr.contains("did you mean"),
        "another's name: {}",
        ran.stderr
    );
}

#[tokio::test]
async fn what_is_not_there_and_what_is_not_yours_look_the_same() {
    let lab = Lab::new().await;
    lab.run("workspace create secret --image x").await;
    for verb in [
        "up",
        "down",
        "rebuild",
        "status",
        "logs",
        "connect",
        "destroy --yes",
        "exec",
    ] {
        let tail = if verb == "exec" { " -- true" } else { "" };
        let theirs = lab
            .run_as("alice", &format!("workspace {verb} secret{tail}"), "")
            .await;
        let nobodys = lab
            .run_as("alice", &format!("workspace {verb} absent{tail}"), "")
            .await;
        assert_eq!((theirs.code(), nobodys.code()), (3, 3), "{verb}");
        assert_eq!(
            theirs.stderr.replace("secret", "absent"),
            nobodys.stderr,
            "{verb}"
        );
    }
    assert_eq!(lab.names().await, ["secret"]);
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_status_5_with_its_cause_and_the_workspace_stays() {
    let lab = Lab::new().await;
    lab.run("workspace create one --image x").await;
    let ran = lab.run("workspace up one").await;
    assert_eq!(ran.code(), 5, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("\nvendetta: ") && ran.stdout.is_empty(),
        "{}{}",
        ran.stdout,
        ran.stderr
    );
    let ran = lab.run("workspace up one --json").await;
    assert_eq!(ran.code(), 5);
    let error: Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(error["error"]["exit_code"], 5);
    for line in ran.stdout.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert!(event["event"].is_string(), "{line}");
    }
    assert_eq!(lab.names().await, ["one"]);
}

#[tokio::test]
async fn status_version_and_whoami_say_who_and_where() {
    let lab = Lab::new().await;
    let status = lab.run("status --json").await.json();
    assert_eq!(status["gateway"]["port"], 2222);
    assert_eq!(
        lab.run_as("alice", "whoami --json", "").await.json()["role"],
        "member"
    );
    assert_eq!(
        lab.run("version --json").await.json()["version"],
        env!("CARGO_PKG_VERSION")
    );
    assert!(
        lab.run("status")
            .await
            .stdout
            .contains("127.0.0.1 port 2222")
    );
    assert!(
        lab.run("completion bash")
            .await
            .stdout
            .contains("complete -F")
    );
}

#[tokio::test]
async fn commands_are_audited_without_their_secrets() {
    let lab = Lab::new().await;
    lab.run("workspace create one --provider host --env TOKEN=s3cret")
        .await;
    for _ in 0..1000 {
        let log = lab.control.store.audit_log(10).await.unwrap();
        if let Some(record) = log.iter().find(|record| record.event == "command") {
            let detail = record.detail.to_string();
            assert!(
                detail.contains("workspace create one") && !detail.contains("s3cret"),
                "{detail}"
            );
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no audit record");
}
