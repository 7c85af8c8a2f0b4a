//! The gateway dies as in a power failure, at any moment of a workspace's life.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::{Duration, Instant};

use vendetta_tests::{BUSYBOX, Gateway, Seeded, eventually};

/// Another one each time, which is printed. Repeats a run that failed:
/// `VENDETTA_TEST_SEED=… cargo nextest run crash::`.
fn seed() -> u64 {
    let given = std::env::var("VENDETTA_TEST_SEED").ok();
    let seed = given.and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
    eprintln!("VENDETTA_TEST_SEED={seed}");
    seed
}

/// What is killed: an operation and its command.
const OPERATIONS: [(&str, &str); 4] = [
    ("create", "workspace create victim --config - --up"),
    ("up", "workspace up victim"),
    ("down", "workspace down victim"),
    ("destroy", "workspace destroy victim --yes"),
];

#[test]
fn a_gateway_killed_20_times_at_random_points_leaves_no_orphan_and_loses_no_record() {
    let mut gateway = Gateway::docker();
    let mut random = Seeded::new(seed());
    let config = format!("provider: docker\ndocker: {{image: \"{BUSYBOX}\"}}\n");
    gateway.create("witness", &config);
    gateway.control("workspace up witness").ok();
    gateway.exec("witness", "echo kept >/workspace/file").ok();

    // The moments are those that each takes here and now, so that all of its steps are hit.
    let lengths = ["create", "down", "up", "destroy"].map(|wanted| {
        let operation = OPERATIONS.iter().find(|(name, _)| *name == wanted);
        let (name, line) = operation.expect("an operation");
        let started = Instant::now();
        gateway.control(line).stdin(config.clone()).ok();
        (*name, started.elapsed())
    });
    let mut cut_off = 0;

    for round in 0..20 {
        let (operation, line) = OPERATIONS[round % 4];
        // What each operation starts from.
        if operation != "create" && !gateway.workspaces().contains(&"victim".to_owned()) {
            gateway.create("victim", &config);
        }
        if ["down", "destroy"].contains(&operation) {
            gateway.control("workspace up victim").ok();
        }
        if operation == "up" {
            gateway.control("workspace down victim").ok();
        }
        if operation == "create" && gateway.workspaces().contains(&"victim".to_owned()) {
            gateway.control("workspace destroy victim --yes").ok();
        }
        let running = gateway.control(line).stdin(config.clone()).start();
        let length = lengths.iter().find(|(name, _)| *name == operation);
        let length = length.expect("an operation").1.as_millis();
        let moment = random.below(u64::try_from(length).expect("a short time"));
        std::thread::sleep(Duration::from_millis(moment));
        gateway.kill();
        let acknowledged = running.finish().code() == 0;
        cut_off += usize::from(!acknowledged);
        gateway.start();
        let context = format!(
            "round {round}: killed {moment} ms into {operation}, acknowledged: {acknowledged}"
        );
        eprintln!("{context}");

        let names = gateway.workspaces();
        assert!(
            names.contains(&"witness".to_owned()),
            "{context}: a record is lost: {names:?}"
        );
        let mut there = names.contains(&"victim".to_owned());
        match operation {
            "up" | "down" => assert!(there, "{context}: a record is lost"),
            "create" => assert!(
                there || !acknowledged,
                "{context}: an acknowledged record is lost"
            ),
            _ => assert!(!there || !acknowledged, "{context}: it came back"),
        }
        assert_eq!(
            gateway.exec("witness", "cat /workspace/file").ok().text(),
            "kept",
            "{context}"
        );
        if there {
            let mut up = gateway.control("workspace up victim").finish();
            // A destruction that was decided is carried out after the restart.
            eventually(&format!("{context}: its destruction ends"), || {
                let being_destroyed = up.error_text().contains("being destroyed");
                if being_destroyed {
                    up = gateway.control("workspace up victim").finish();
                }
                !being_destroyed
            });
            there = operation != "destroy" || up.code() != 3;
            assert!(!there || up.code() == 0, "{context}: {up}");
        }
        if there {
            assert_eq!(
                gateway.exec("victim", "echo alive").ok().text(),
                "alive",
                "{context}"
            );
        } else {
            assert_eq!(gateway.workspaces(), ["witness"], "{context}");
        }
        // One container and one volume for each workspace, nothing else.
        let expected = if there { 4 } else { 2 };
        let mut found = Vec::new();
        eventually(&format!("{context}: no orphan is left"), || {
            found = gateway.resources();
            found.len() == expected
        });
        let containers = found
            .iter()
            .filter(|name| name.starts_with("container "))
            .count();
        assert_eq!(containers, expected / 2, "{context}: {found:?}");
    }
    assert!(cut_off >= 10, "only {cut_off} kills came while it worked");
    gateway.control("workspace destroy witness --yes").ok();
    if gateway.workspaces().contains(&"victim".to_owned()) {
        gateway.control("workspace destroy victim --yes").ok();
    }
    assert_eq!(gateway.resources(), Vec::<String>::new());
}

#[test]
fn running_workspaces_outlive_their_gateway() {
    let mut gateway = Gateway::with_workspace();
    gateway
        .exec("ws", "setsid -f sleep 4720 >/dev/null 2>&1")
        .ok();
    gateway.kill();
    gateway.start();
    assert_eq!(
        gateway.exec("ws", "pgrep -xfc 'sleep 4720'").ok().text(),
        "1"
    );
    assert_eq!(gateway.state("ws"), "running");
}
