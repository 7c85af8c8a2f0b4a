use std::process::Command;
use std::sync::atomic::Ordering;

use crate::node::enroll::tests::{Agent, Forwarded, Typist, authorize, bare, key, line, request};
use crate::node::enroll::{EnrollError, Operator, Secret, Way, Ways, enroll};
use crate::node::testing::{Account, Sshd, private_file};
use crate::node::{Command as Program, NodeTransport};

fn accepted(sshd: &Sshd, method: &str) -> usize {
    sshd.log().matches(&format!("Accepted {method}")).count()
}

fn connections(sshd: &Sshd) -> usize {
    // The first is the look whether it listens.
    sshd.log().matches("Connection from").count()
}

/// The gateway's key alone gets in from now on.
async fn gets_in(sshd: &mut Sshd, ways: &Ways) {
    sshd.key = ways.node_key.clone();
    let run = sshd.node("n1").exec(&Program::new(["id", "-un"])).await;
    assert_eq!(run.unwrap().stdout, b"newcomer\n");
}

#[tokio::test]
async fn the_gateway_s_key_that_is_there_already_is_used() {
    let Some(account) = Account::new() else {
        return;
    };
    let sshd = account.sshd("");
    let ways = bare(&key("vendetta node key"));
    authorize(&account, &line(&ways.node_key.public()));
    let typist = Typist::new(&["unused"]);
    let ways = Ways {
        password: Some(typist.clone()),
        ..ways
    };
    let before = connections(&sshd);
    let enrolled = enroll(request(&sshd), ways).await.unwrap();
    assert_eq!(enrolled.way, Way::NodeKey);
    assert!(!enrolled.installed);
    assert_eq!(enrolled.host_key, sshd.host_key.public());
    assert_eq!(connections(&sshd) - before, 1);
    assert_eq!(typist.asked(), 0);
}

#[tokio::test]
async fn the_operator_s_keys_are_tried_but_not_one_with_a_passphrase() {
    let Some(account) = Account::new() else {
        return;
    };
    let mut sshd = account.sshd("");
    let home = tempfile::tempdir().unwrap();
    let ssh = home.path().join(".ssh");
    std::fs::create_dir(&ssh).unwrap();
    for (name, kind, passphrase) in [
        ("id_ed25519", "ed25519", "secret"),
        ("id_ecdsa", "ecdsa", ""),
        ("id_rsa", "rsa", ""),
    ] {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", kind, "-N", passphrase, "-f"])
            .arg(ssh.join(name))
            .status();
        assert!(made.unwrap().success());
    }
    let public = std::fs::read_to_string(ssh.join("id_rsa.pub")).unwrap();
    authorize(&account, &public);
    let ways = || Ways {
        operator: Operator {
            home: Some(home.path().to_owned()),
            agent: None,
        },
        ..bare(&key("vendetta node key"))
    };
    let first = ways();
    let enrolled = enroll(request(&sshd), ways()).await.unwrap();
    let path = ssh.join("id_rsa");
    assert_eq!(enrolled.way, Way::OperatorKey { path });
    assert!(enrolled.installed);

    let public = std::fs::read_to_string(ssh.join("id_ecdsa.pub")).unwrap();
    authorize(&account, &public);
    let second = Ways {
        node_key: first.node_key.clone(),
        ..ways()
    };
    let before = connections(&sshd);
    let enrolled = enroll(request(&sshd), second).await.unwrap();
    assert!(enrolled.way.to_string().ends_with("id_ecdsa"));
    assert_eq!(
        connections(&sshd) - before,
        2,
        "one to get in, one to prove it"
    );
    gets_in(&mut sshd, &first).await;
}

#[tokio::test]
async fn the_operator_s_agent_and_then_the_caller_s_are_asked() {
    let Some(account) = Account::new() else {
        return;
    };
    let mut sshd = account.sshd("");
    let (operator, caller) = (Agent::start(), Agent::start());
    let (known, own) = (key("known"), key("own"));
    operator.add(&known);
    caller.add(&own);
    let forwarded = Forwarded::new(&caller);
    let ways = |node_key| Ways {
        operator: Operator {
            home: None,
            agent: Some(operator.socket()),
        },
        caller_agent: Some(forwarded.clone()),
        ..bare(node_key)
    };
    let (first, second) = (key("one"), key("two"));

    authorize(&account, &(line(&known.public()) + &line(&own.public())));
    let enrolled = enroll(request(&sshd), ways(&first)).await.unwrap();
    let fingerprint = known.public().fingerprint();
    assert_eq!(enrolled.way, Way::OperatorAgent { key: fingerprint });
    assert_eq!(forwarded.opened.load(Ordering::SeqCst), 0);

    authorize(&account, &line(&own.public()));
    let enrolled = enroll(request(&sshd), ways(&second)).await.unwrap();
    let fingerprint = own.public().fingerprint();
    assert_eq!(enrolled.way, Way::CallerAgent { key: fingerprint });
    gets_in(&mut sshd, &bare(&second)).await;
}

#[tokio::test]
async fn more_keys_than_one_connection_may_try_take_another_connection() {
    let Some(account) = Account::new() else {
        return;
    };
    let mut sshd = account.sshd("MaxAuthTries 2");
    let agent = Agent::start();
    let right = key("right");
    for _ in 0..5 {
        agent.add(&key("wrong"));
    }
    agent.add(&right);
    authorize(&account, &line(&right.public()));
    let forwarded = Forwarded::new(&agent);
    let ways = Ways {
        caller_agent: Some(forwarded),
        ..bare(&key("vendetta node key"))
    };
    let node_key = ways.node_key.clone();
    let before = connections(&sshd);
    let enrolled = enroll(request(&sshd), ways).await.unwrap();
    assert!(matches!(enrolled.way, Way::CallerAgent { .. }));
    let took = connections(&sshd) - before;
    assert!((3..=5).contains(&took), "{took}");
    gets_in(&mut sshd, &bare(&node_key)).await;
}

#[tokio::test]
async fn a_password_is_asked_for_at_most_three_times() {
    let Some(account) = Account::new() else {
        return;
    };
    for (config, method) in [
        ("PasswordAuthentication yes", "password"),
        (
            "UsePAM yes\nKbdInteractiveAuthentication yes",
            "keyboard-interactive/pam",
        ),
        ("PasswordAuthentication yes\nMaxAuthTries 2", "password"),
    ] {
        let mut sshd = account.sshd(config);
        let typist = Typist::new(&["wrong", "wronger", Account::PASSWORD]);
        let ways = Ways {
            password: Some(typist.clone()),
            ..bare(&key("vendetta node key"))
        };
        let node_key = ways.node_key.clone();
        let enrolled = enroll(request(&sshd), ways).await.unwrap();
        assert_eq!(enrolled.way, Way::Password, "{config}");
        assert_eq!(typist.asked(), 3);
        assert_eq!(
            typist.prompts.lock().unwrap()[0],
            "newcomer@127.0.0.1's password: "
        );
        assert_eq!(accepted(&sshd, method), 1);
        gets_in(&mut sshd, &bare(&node_key)).await;

        let typist = Typist::new(&["no", "no", "no", Account::PASSWORD]);
        let ways = Ways {
            password: Some(typist.clone()),
            ..bare(&key("another"))
        };
        let error = enroll(request(&sshd), ways).await.unwrap_err();
        assert!(matches!(error, EnrollError::NoWayIn { .. }), "{error}");
        assert_eq!(typist.asked(), 3);
    }
}

#[tokio::test]
async fn a_password_is_never_shown() {
    let secret = Secret::new("open sesame".to_owned());
    assert!(!format!("{secret:?}").contains("sesame"));
}

#[tokio::test]
async fn when_no_way_leads_in_each_is_told_with_its_reason() {
    let Some(account) = Account::new() else {
        return;
    };
    let sshd = account.sshd("PasswordAuthentication yes");
    authorize(&account, "");
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".ssh")).unwrap();
    let file = home.path().join(".ssh/id_ed25519");
    private_file(&file, &key("operator").to_openssh().unwrap());
    let agent = Agent::start();
    let ways = Ways {
        operator: Operator {
            home: Some(home.path().to_owned()),
            agent: Some(home.path().join("no-agent")),
        },
        caller_agent: Some(Forwarded::new(&agent)),
        password: Some(Typist::new(&[])),
        ..bare(&key("vendetta node key"))
    };
    let error = enroll(request(&sshd), ways).await.unwrap_err();
    let EnrollError::NoWayIn { tried, user, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(user, "newcomer");
    let told: Vec<String> = tried.iter().map(ToString::to_string).collect();
    let file = file.display();
    assert_eq!(
        told,
        [
            "the gateway's key: not accepted".to_owned(),
            format!("{file}: not accepted"),
            "the operator's agent: No such file or directory (os error 2)".to_owned(),
            "your agent: it has no keys (ssh-add -l)".to_owned(),
            "a password: not given".to_owned(),
        ]
    );
    assert!(error.remedy().unwrap().contains("ssh vendetta node key"));
    assert!(error.to_string().contains("not accepted; "), "{error}");
}

#[tokio::test]
async fn a_demanded_host_key_is_checked_before_anybody_tries_to_log_in() {
    let Some(account) = Account::new() else {
        return;
    };
    let sshd = account.sshd("PasswordAuthentication yes");
    let typist = Typist::new(&[Account::PASSWORD]);
    let ways = || Ways {
        password: Some(typist.clone()),
        ..bare(&key("vendetta node key"))
    };
    let own = sshd.host_key.public().fingerprint();
    let other = key("other").public().fingerprint();
    let mut demanding = request(&sshd);
    demanding.host_key = Some(other.clone());
    let error = enroll(demanding.clone(), ways()).await.unwrap_err();
    let EnrollError::HostKey { demanded, got, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((demanded, got), (&other, &own));
    assert!(error.remedy().unwrap().contains(&own));
    assert!(!sshd.log().contains("userauth-request"));
    assert_eq!(typist.asked(), 0);
    demanding.host_key = Some(own);
    let enrolled = enroll(demanding, ways()).await.unwrap();
    assert_eq!(enrolled.way, Way::Password);
}

#[tokio::test]
async fn a_machine_behind_a_node_is_enrolled_through_it() {
    let Some(account) = Account::new() else {
        return;
    };
    let (outer, mut inner) = (Sshd::start(""), account.sshd("PasswordAuthentication yes"));
    let jump = std::sync::Arc::new(outer.node("outer"));
    let mut through = request(&inner);
    through.address.jump = Some(jump);
    let ways = Ways {
        password: Some(Typist::new(&[Account::PASSWORD])),
        ..bare(&key("vendetta node key"))
    };
    let node_key = ways.node_key.clone();
    enroll(through, ways).await.unwrap();
    gets_in(&mut inner, &bare(&node_key)).await;
}

#[tokio::test]
async fn a_machine_that_cannot_be_reached_is_told_with_what_to_see_to() {
    let mut sshd = Sshd::start("");
    sshd.kill();
    let error = enroll(request(&sshd), bare(&key("k"))).await.unwrap_err();
    assert!(matches!(error, EnrollError::Link(_)));
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(error.remedy().unwrap().contains("sshd listens"));
}
