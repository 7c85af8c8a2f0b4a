use std::time::{Duration, Instant};

use crate::node::testing::Sshd;
use crate::node::{Command, MAX_OUTPUT, NodeError, NodeTransport, Output, Refusal};

fn sh(script: &str) -> Command {
    Command::new(["sh", "-c", script])
}

#[tokio::test]
async fn a_program_gets_its_input_and_its_output_and_status_come_back() {
    let sshd = Sshd::start("");
    let node = sshd.node("n1");
    let mut command = sh("cat; echo oops >&2; exit 3");
    command.stdin = (0..=255u8).cycle().take(100_000).collect();
    let output = node.exec(&command).await.unwrap();
    let expected = Output {
        status: Some(3),
        stdout: command.stdin,
        stderr: b"oops\n".to_vec(),
    };
    assert!(output == expected);
}

#[tokio::test]
async fn arguments_arrive_as_they_are_whatever_the_login_shell() {
    let words = [
        "printf",
        "%s|",
        "",
        "a  b",
        "it's",
        "\\",
        "\\'",
        "$HOME",
        "`id`",
        "!!",
        "*",
        "ü",
        "line\nline",
        "-n",
        "{a,b}",
        "~",
    ];
    let expected: String = words[2..].iter().map(|word| format!("{word}|")).collect();
    for shell in ["sh", "bash", "fish", "zsh", "tcsh", "busybox sh"] {
        let program = shell.split(' ').next().unwrap();
        if std::process::Command::new(program)
            .arg("-c")
            .arg("true")
            .output()
            .is_err()
        {
            continue;
        }
        let sshd = Sshd::start(&format!(
            "ForceCommand exec {shell} -c \"$SSH_ORIGINAL_COMMAND\""
        ));
        let output = sshd.node("n1").exec(&Command::new(words)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{shell}");
    }
}

#[tokio::test]
async fn what_a_login_shell_says_of_its_own_is_not_the_program_s() {
    let sshd = Sshd::start(
        "ForceCommand echo welcome; echo careful >&2; exec sh -c \"$SSH_ORIGINAL_COMMAND\"",
    );
    let output = sshd.node("n1").exec(&sh("echo out; echo err >&2")).await;
    let output = output.unwrap();
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
}

#[tokio::test]
async fn a_user_who_may_not_run_commands_is_told_with_the_directive() {
    for config in ["ForceCommand echo not here", "ForceCommand /bin/false"] {
        let sshd = Sshd::start(config);
        let error = sshd.node("n1").exec(&sh("true")).await.unwrap_err();
        assert!(
            matches!(
                &error,
                NodeError::Refused {
                    refusal: Refusal::Command(_),
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains("ForceCommand"), "{error}");
        assert!(error.remedy().unwrap().contains("ForceCommand"));
        if config.contains("echo") {
            assert!(error.to_string().contains("not here"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_signal_that_ends_a_program_and_a_program_that_is_not_there() {
    let sshd = Sshd::start("");
    let node = sshd.node("n1");
    let killed = node.exec(&sh("echo so far; kill -9 $$")).await.unwrap();
    assert_eq!(killed.status, None);
    assert_eq!(killed.stdout, b"so far\n");
    let absent = node.exec(&Command::new(["no-such-program-anywhere"])).await;
    let absent = absent.unwrap_err();
    assert_eq!(
        absent.io_kind(),
        Some(std::io::ErrorKind::NotFound),
        "{absent}"
    );
    let own = node.exec(&sh("echo >&2 mine; exit 127")).await.unwrap();
    assert_eq!(own.status, Some(127));
    for senseless in [&[][..], &["A=b"], &["echo", "a\0b"]] {
        let error = node.exec(&Command::new(senseless.iter().copied())).await;
        let kind = error.unwrap_err().io_kind();
        assert_eq!(kind, Some(std::io::ErrorKind::InvalidInput));
    }
}

#[tokio::test]
async fn output_is_bounded_and_a_program_may_end_without_reading_its_input() {
    let sshd = Sshd::start("");
    let node = sshd.node("n1");
    let flood = Command::new(["head", "-c", "30000000", "/dev/zero"]);
    assert_eq!(node.exec(&flood).await.unwrap().stdout.len(), MAX_OUTPUT);
    let mut deaf = sh("exit 4");
    deaf.stdin = vec![b'x'; 20_000_000];
    assert_eq!(node.exec(&deaf).await.unwrap().status, Some(4));
}

/// How many processes of the machine have this word among their arguments.
pub(super) fn processes_with(word: &str) -> usize {
    let all = std::fs::read_dir("/proc").unwrap();
    all.filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .filter(|line| {
            line.split(|byte| *byte == 0)
                .any(|argument| argument == word.as_bytes())
        })
        .count()
}

async fn gone(word: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(30);
    while processes_with(word) > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    processes_with(word) == 0
}

#[tokio::test]
async fn a_program_that_takes_too_long_or_is_given_up_is_killed() {
    // For root sshd does not do it, so that one more session is needed.
    let sshd = Sshd::start("MaxSessions 1");
    let node = sshd.node("n1");
    node.exec(&sh("true")).await.unwrap();

    let mut slow = Command::new(["sleep", "61.25"]);
    slow.time_limit = Duration::from_secs(3);
    let started = Instant::now();
    let error = node.exec(&slow).await.unwrap_err();
    assert!(matches!(error, NodeError::Timeout { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(30));
    assert!(gone("61.25").await);

    let given_up = Command::new(["sleep", "62.25"]);
    let run = node.exec(&given_up);
    assert!(
        tokio::time::timeout(Duration::from_secs(3), run)
            .await
            .is_err()
    );
    assert!(gone("62.25").await);
    assert_eq!(node.exec(&sh("exit 5")).await.unwrap().status, Some(5));
}

#[tokio::test]
async fn a_program_has_a_small_environment_and_what_it_leaves_running_lives_on() {
    let sshd = Sshd::start("SetEnv SECRET=1");
    let node = sshd.node("n1");
    let output = node.exec(&Command::new(["env"])).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("HOME="), "{text}");
    assert!(!text.contains("SECRET") && !text.contains("SSH_"), "{text}");
    let (go, file) = (sshd.dir().join("go"), sshd.dir().join("later"));
    let script = format!(
        "(until [ -e {} ]; do sleep 0.05; done; echo done >{}) </dev/null >/dev/null 2>&1 &",
        go.display(),
        file.display()
    );
    node.exec(&Command::new(["setsid", "sh", "-c", &script]))
        .await
        .unwrap();
    drop(node);
    std::fs::write(&go, "").unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !file.exists() {
        assert!(Instant::now() < deadline, "it has ended with its node");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_architecture_is_asked_once() {
    let sshd = Sshd::start("");
    let node = sshd.node("n1");
    for _ in 0..3 {
        assert_eq!(node.arch().await.unwrap().as_str(), std::env::consts::ARCH);
    }
    assert_eq!(sshd.log().matches("Starting session").count(), 1);
}
