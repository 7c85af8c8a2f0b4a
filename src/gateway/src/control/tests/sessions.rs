//! Prompt, script, questions, and sessions that are handed over.

use super::*;

#[tokio::test]
async fn destroy_asks_a_person_and_needs_yes_from_a_script() {
    let lab = Lab::new().await;
    lab.run("workspace create one --provider host").await;
    let ran = lab.run("workspace destroy one").await;
    assert_eq!(ran.code(), 2);
    assert!(ran.stderr.contains("--yes"), "{}", ran.stderr);
    for answer in [&b"n\r"[..], b"\r", b"\x03", b"\x04", b""] {
        let ran = lab
            .session("root-user", Some(b"workspace destroy one"), answer, true)
            .await;
        assert_eq!(ran.code(), 130, "{answer:?}");
        assert!(
            ran.stdout.contains("Destroy workspace one"),
            "{}",
            ran.stdout
        );
    }
    assert_eq!(lab.names().await, ["one"]);
    let ran = lab
        .session("root-user", Some(b"workspace destroy one"), b"yes\r", true)
        .await;
    assert_eq!(ran.code(), 0, "{}", ran.stderr);
    lab.run("workspace create two --provider host").await;
    assert_eq!(lab.run("workspace destroy two --yes").await.code(), 0);
    assert!(lab.names().await.is_empty());
}

#[tokio::test]
async fn connect_and_exec_hand_over_the_streams_with_what_was_typed_ahead() {
    let lab = Lab::new().await;
    lab.run("workspace create one --provider host").await;
    let ran = lab.run("workspace connect one --user bob").await;
    let Outcome::Attach(attach) = ran.outcome else {
        panic!()
    };
    assert_eq!(
        (
            attach.workspace.name.as_str(),
            attach.user.as_deref(),
            attach.command
        ),
        ("one", Some("bob"), None)
    );
    let ran = lab
        .run_as(
            "root-user",
            "workspace exec one -- printf '%s|' 'a b' --json",
            "data",
        )
        .await;
    let Outcome::Attach(mut attach) = ran.outcome else {
        panic!()
    };
    assert_eq!(
        attach.command.as_deref(),
        Some(&b"printf '%s|' 'a b' --json"[..])
    );
    let mut stdin = String::new();
    attach.io.stdin.read_to_string(&mut stdin).await.unwrap();
    assert_eq!(stdin, "data");

    let script = b"status\nworkspace exec one -- cat\nfor cat\n";
    let ran = lab.session("root-user", None, script, false).await;
    let Outcome::Attach(mut attach) = ran.outcome else {
        panic!()
    };
    stdin.clear();
    attach.io.stdin.read_to_string(&mut stdin).await.unwrap();
    assert_eq!(stdin, "for cat\n");
}

#[tokio::test]
async fn a_script_stops_at_the_first_failure_with_its_status() {
    let lab = Lab::new().await;
    let script =
        b"# a comment\n\n  version  \nworkspace up absent\nworkspace create never --image x\n";
    let ran = lab.session("root-user", None, script, false).await;
    assert_eq!(ran.code(), 3);
    assert!(ran.stdout.starts_with("vendetta ") && ran.stderr.contains("absent"));
    assert!(lab.names().await.is_empty());

    let ran = lab
        .session("root-user", None, b"version\nexit\nnonsense\n", false)
        .await;
    assert_eq!(ran.code(), 0);
    assert_eq!(lab.session("root-user", None, b"", false).await.code(), 0);
    let ran = lab
        .session("root-user", None, b"key add\nssh-ed25519 AAAA\n", false)
        .await;
    assert_eq!(ran.code(), 2, "stdin is the script");
    assert_eq!(
        lab.session("root-user", None, &vec![b'x'; 100_000], false)
            .await
            .code(),
        2
    );
}

#[tokio::test]
async fn the_prompt_edits_completes_remembers_and_leaves_with_the_last_status() {
    let lab = Lab::new().await;
    lab.run("workspace create blog --provider host").await;
    let keys = b"who\t\rworkspace status b\t\rnonsense\x15workspace up absent\r\x04";
    let ran = lab.session("root-user", None, keys, true).await;
    assert_eq!(ran.code(), 3, "{}", ran.stdout);
    assert!(ran.stdout.contains("root-user (admin)"), "{}", ran.stdout);
    assert!(ran.stdout.contains("ssh blog@127.0.0.1"), "{}", ran.stdout);
    assert!(
        !ran.stdout.replace("\r\n", "").contains('\n'),
        "every line ends in CRLF"
    );
    // The line before the last one, in a new session.
    let ran = lab
        .session("root-user", None, b"\x1b[A\x1b[A\r\x04", true)
        .await;
    assert_eq!(ran.code(), 0);
    assert!(ran.stdout.contains("ssh blog@127.0.0.1"), "{}", ran.stdout);
    assert_eq!(
        lab.session("root-user", None, b"half\x03exit\r", true)
            .await
            .code(),
        0
    );
}
