//! What the relay between client and environment must hold under load: every
//! byte, in order, and no channel at another's expense.

use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::pipe;
use vendetta_tests::{Gateway, Run, full, random_bytes, sha256};

const MIB: usize = 1024 * 1024;
/// For transfers of hundreds of MiB on a slow, busy machine.
const LONG: Duration = Duration::from_secs(400);

/// Sends `length` random bytes through `run`, an `ssh … cat`, and compares what comes back.
fn through_cat(run: Run, seed: u64, length: usize) -> Vec<u8> {
    let input = random_bytes(seed, length);
    let expected = sha256(&input);
    let run = run.stdin(input).digest_stdout().limit(LONG).ok();
    assert_eq!(run.stdout_length, length as u64, "{run}");
    assert_eq!(run.stdout_sha256, Some(expected), "{run}");
    run.stderr
}

#[test]
fn a_stream_of_300_mib_both_ways_at_once_arrives_intact() {
    let gateway = Gateway::with_workspace();
    through_cat(gateway.exec("ws", "cat"), 2, 300 * MIB);
}

#[test]
fn streams_of_32_mib_both_ways_on_eight_channels_at_once_arrive_intact() {
    let gateway = Gateway::with_workspace();
    through_cat(gateway.exec("ws", "cat"), 3, 32 * MIB);
    let master = gateway.admin().master("ws");
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let run = master.exec("cat");
            scope.spawn(move || through_cat(run, seed, 32 * MIB));
        }
    });
}

#[test]
fn a_reader_that_stops_for_a_minute_costs_little_memory_and_nobody_else_anything() {
    let gateway = Gateway::with_workspace();
    through_cat(gateway.exec("ws", "cat"), 4, 64 * MIB); // buffers that stay are no reader's
    let content = random_bytes(5, 100 * MIB);
    gateway.put("ws", "/tmp/content", content.clone());
    std::thread::sleep(Duration::from_secs(2));
    let before = gateway.process().memory();

    let (reader, writer) = pipe().expect("a pipe");
    let run = gateway
        .exec("ws", "cat /tmp/content")
        .stdout_file(File::from(writer))
        .limit(LONG)
        .start();
    let mut reader = File::from(reader);
    let mut got = vec![0; MIB];
    reader.read_exact(&mut got).expect("the first MiB");

    let stalled = Instant::now();
    let mut others = 0;
    let mut most = 0;
    while stalled.elapsed() < Duration::from_secs(60) {
        through_cat(gateway.exec("ws", "cat"), 6, MIB);
        most = most.max(gateway.process().memory());
        others += 1;
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(
        others >= 3,
        "only {others} other sessions while a reader stalled"
    );
    let cost = most.saturating_sub(before) / MIB as u64;
    assert!(cost <= 16, "the stalled reader cost {cost} MiB");

    reader.read_to_end(&mut got).expect("the rest");
    let _ = run.finish().ok();
    assert!(got == content, "the reader that stopped got other bytes");
}

#[test]
fn one_stalled_channel_leaves_the_19_others_of_its_connection_alone() {
    let gateway = Gateway::with_workspace();
    let content = random_bytes(7, 8 * MIB);
    gateway.put("ws", "/tmp/content", content.clone());
    let expected = Arc::new(sha256(&content));
    let master = gateway.admin().master("ws");

    let (reader, writer) = pipe().expect("a pipe");
    let mut stalled = master
        .exec("cat /dev/zero")
        .stdout_file(File::from(writer))
        .start();
    // Wait until nothing moves any more: every buffer between the two ends is full.
    let stuck = || {
        master
            .exec("cat /proc/$(pgrep -xf 'cat /dev/zero')/io")
            .finish()
            .text()
    };
    let mut last = String::new();
    vendetta_tests::eventually("the unread channel stalls", || {
        std::thread::sleep(Duration::from_millis(500));
        let now = stuck();
        let same = std::mem::replace(&mut last, now.clone()) == now;
        same && !now.is_empty()
    });
    std::thread::scope(|scope| {
        for number in 0..19 {
            let expected = Arc::clone(&expected);
            let (down, both) = (master.exec("cat /tmp/content"), master.exec("cat"));
            scope.spawn(move || {
                through_cat(both, number, 4 * MIB);
                let run = down.digest_stdout().limit(LONG).ok();
                assert_eq!(run.stdout_sha256.as_ref(), Some(&*expected), "{run}");
            });
        }
    });
    assert!(stalled.runs(), "the stalled channel is still there");
    stalled.signal(Signal::SIGTERM);
    drop(reader);
}

#[test]
fn keystrokes_answer_while_a_download_runs_on_the_same_connection() {
    let gateway = Gateway::with_workspace();
    let master = gateway.admin().master("ws");
    let mut download = master.exec("cat /dev/zero").digest_stdout().start();
    let command = "stty -echo; echo ready; while read -r key; do echo \"got $key\"; done";
    let shell = master.ssh().args(["-t", command]).limit(LONG);
    let mut shell = shell.start_on_terminal(24, 80);
    let mut at = shell.expect_stdout(0, "ready");
    let mut moved = download.stdout_length();
    for key in 0..50 {
        shell.send(format!("{key}\n"));
        at = shell.expect_stdout(at, format!("got {key}\r\n"));
        // The answer came while the download ran, not instead of it.
        vendetta_tests::eventually("the download goes on", || download.stdout_length() > moved);
        moved = download.stdout_length();
    }
    download.signal(Signal::SIGTERM);
}

/// How often `log`, of `ssh -v`, says that keys were exchanged.
fn key_exchanges(log: &[u8]) -> usize {
    String::from_utf8_lossy(log)
        .matches("SSH2_MSG_NEWKEYS received")
        .count()
}

#[test]
fn rekeying_every_16_mib_by_the_client_over_512_mib_both_ways_loses_nothing() {
    let gateway = Gateway::with_workspace();
    let run = gateway
        .ssh("ws")
        .args(["-v", "-o", "RekeyLimit=16M", "cat"]);
    let log = through_cat(run, 8, 512 * MIB);
    assert!(
        key_exchanges(&log) >= 32,
        "only {} key exchanges",
        key_exchanges(&log)
    );
}

#[test]
fn rekeying_every_16_mib_by_the_gateway_under_eight_uploads_loses_nothing() {
    let gateway = Gateway::builder()
        .docker()
        .config("[ssh]\nrekey_bytes = 16777216\n")
        .start();
    gateway.workspace("ws", vendetta_tests::TOOLS);
    let log = through_cat(gateway.ssh("ws").args(["-v", "cat"]), 9, 128 * MIB);
    assert!(
        key_exchanges(&log) >= 8,
        "only {} key exchanges",
        key_exchanges(&log)
    );
    let master = gateway.admin().master("ws");
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let run = master.exec("cat");
            scope.spawn(move || through_cat(run, seed, 48 * MIB));
        }
    });
}

#[test]
fn compression_is_taken_and_loses_nothing() {
    let gateway = Gateway::with_workspace();
    let log = through_cat(gateway.ssh("ws").args(["-v", "-C", "cat"]), 10, 32 * MIB);
    let log = String::from_utf8_lossy(&log);
    assert!(log.contains("compression: zlib"), "{log}");
    let text = b"the same again and again\n".repeat(MIB);
    let run = gateway
        .ssh("ws")
        .args(["-C", "cat"])
        .stdin(text.clone())
        .digest_stdout()
        .limit(LONG)
        .ok();
    assert_eq!(run.stdout_sha256, Some(sha256(&text)));
}

#[test]
fn a_mute_channel_outlives_ten_idle_minutes() {
    // One minute, unless the full tests are asked for.
    let idle = Duration::from_secs(if full() { 600 } else { 60 });
    let gateway = Gateway::builder()
        .docker()
        .config("[ssh]\nclient_alive_interval_seconds = 5\n")
        .start();
    gateway.workspace("ws", vendetta_tests::TOOLS);
    let mut run = gateway
        .exec("ws", "echo ready; cat; echo done")
        .limit(idle + LONG)
        .spawn();
    run.expect_stdout(0, "ready\n");
    std::thread::sleep(idle);
    run.send("still here\n");
    run.expect_stdout(0, "still here\n");
    let run = run.finish().ok();
    assert_eq!(run.stdout, b"ready\nstill here\ndone\n");
}
