//! Users and keys.

use super::*;

#[tokio::test]
async fn a_member_manages_their_own_keys_and_an_admin_anybodys() {
    let lab = Lab::new().await;
    let (second, third) = (key_line("second"), key_line("third"));
    let ran = lab
        .run_as("alice", "key add", &format!("# mine\n{second}\n"))
        .await;
    assert_eq!(ran.code(), 0, "{}", ran.stderr);
    assert_eq!(
        lab.run_as("alice", &format!("key add {third}"), "")
            .await
            .code(),
        0
    );
    let keys = lab.run_as("alice", "key list --json", "").await.json();
    let comments: Vec<_> = keys["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| k["comment"].as_str().unwrap())
        .collect();
    assert_eq!(comments, ["first", "second", "third"]);
    let fingerprint = keys["keys"][1]["fingerprint"].as_str().unwrap();

    for line in [
        "key list --user root-user",
        "key add --user root-user",
        "key remove --user root-user SHA",
        "key list --user nobody",
    ] {
        assert_eq!(
            lab.run_as("alice", line, &key_line("x")).await.code(),
            3,
            "{line}"
        );
    }
    assert_eq!(
        lab.run(&format!("key remove --user alice {fingerprint}"))
            .await
            .code(),
        0
    );
    assert_eq!(
        lab.run("key list --user alice --json").await.json()["keys"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        lab.run(&format!("key remove --user alice {fingerprint}"))
            .await
            .code(),
        3
    );
}

#[tokio::test]
async fn a_key_that_is_wrong_private_or_taken_is_refused_and_none_of_the_input_is_kept() {
    let lab = Lab::new().await;
    let good = key_line("good");
    let private = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n";
    for (input, code, says) in [
        ("".to_owned(), 2, "no key"),
        ("ssh-ed25519 AAAA nonsense".to_owned(), 2, "line 1"),
        (format!("{good}\nssh-rsa\n"), 2, "line 2"),
        (private.to_owned(), 2, "private key"),
    ] {
        let ran = lab.run_as("alice", "key add", &input).await;
        assert_eq!(ran.code(), code, "{input}");
        assert!(
            ran.stderr.contains(says) && ran.stderr.contains("hint:"),
            "{says}: {}",
            ran.stderr
        );
    }
    assert_eq!(lab.run(&format!("key add {good}")).await.code(), 0);
    let ran = lab
        .run_as(
            "alice",
            "key add",
            &format!("{}\n{good}\n", key_line("fresh")),
        )
        .await;
    assert_eq!(ran.code(), 4, "{}", ran.stderr);
    assert_eq!(
        lab.run_as("alice", "key list --json", "").await.json()["keys"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        lab.run(&format!("user add bob --key '{good}'"))
            .await
            .code(),
        4
    );
    assert_eq!(lab.run("user add bob --key nonsense").await.code(), 2);
    assert_eq!(
        lab.run("user list --json").await.json()["users"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn users_are_for_admins_and_the_last_admin_stays() {
    let lab = Lab::new().await;
    for line in ["user list", "user add eve", "user remove root-user --yes"] {
        assert_eq!(lab.run_as("alice", line, "").await.code(), 3, "{line}");
    }
    let ran = lab
        .run_as(
            "root-user",
            "user add bob --role admin --key -",
            &key_line("bob"),
        )
        .await;
    assert_eq!(ran.code(), 0, "{}", ran.stderr);
    assert_eq!(lab.run("user remove bob").await.code(), 2, "without --yes");
    assert_eq!(lab.run("user remove bob --yes").await.code(), 0);
    assert_eq!(lab.run("user remove bob --yes").await.code(), 3);
    assert_eq!(
        lab.run("user remove root-user --yes").await.code(),
        4,
        "the last admin"
    );
    lab.run_as("alice", "workspace create mine --provider host", "")
        .await;
    let ran = lab.run("user remove alice --yes").await;
    assert_eq!(ran.code(), 4);
    assert!(ran.stderr.contains("mine"), "{}", ran.stderr);
    let listed = lab.run("user list --json").await.json();
    assert_eq!(listed["users"][0]["keys"], 1, "{listed}");
    let table = lab.run("user list").await.stdout;
    assert!(
        table.contains("root-user") && table.contains("member"),
        "{table}"
    );
}
