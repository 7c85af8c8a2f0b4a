//! What the relay between client and environment must hold under load: every
//! byte, in order, and no channel at another's expense.

use std::fs::File;
use std::io::{Read, Seek as _};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::pipe;
use vendetta_tests::{Gateway, Run, random_bytes, sha256};

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

/// How many times as long as undisturbed work, before and after, work may take
/// beside a channel that stands still. It costs nothing; this is room for what
/// else the machine does.
const NOISE: u32 = 5;

/// MiB of a download that may pass before a key is answered on the same
/// connection: what is in its buffers already, and room for a busy machine.
const AHEAD_OF_A_KEY: u64 = 64;

/// The median of how long `work` takes.
fn median_time(times: usize, mut work: impl FnMut()) -> Duration {
    let mut taken: Vec<Duration> = (0..times)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    taken.sort_unstable();
    taken[times / 2]
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
    let other = || drop(through_cat(gateway.exec("ws", "cat"), 6, MIB));
    let undisturbed = median_time(15, other);
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
    let mut most = 0;
    let mut others = Vec::new();
    while stalled.elapsed() < Duration::from_secs(60) {
        others.push(median_time(1, other));
        most = most.max(gateway.process().memory());
        std::thread::sleep(Duration::from_millis(500));
    }
    others.sort_unstable();
    let beside = others[others.len() / 2];
    let cost = most.saturating_sub(before) / MIB as u64;
    assert!(cost <= 16, "the stalled reader cost {cost} MiB");

    reader.read_to_end(&mut got).expect("the rest");
    let _ = run.finish().ok();
    assert!(got == content, "the reader that stopped got other bytes");
    let undisturbed = undisturbed.max(median_time(15, other));
    assert!(
        beside <= undisturbed * NOISE,
        "another session takes {beside:?} while a reader stalls, else {undisturbed:?}"
    );
}

#[test]
fn stalled_channels_leave_the_19_others_of_their_connection_alone() {
    let gateway = Gateway::with_workspace();
    let content = random_bytes(7, 2 * MIB);
    gateway.put("ws", "/tmp/content", content.clone());
    let expected = sha256(&content);
    let master = gateway.admin().master("ws");
    let others = || {
        std::thread::scope(|scope| {
            for number in 0..19 {
                let (expected, master) = (&expected, &master);
                scope.spawn(move || {
                    through_cat(master.exec("cat"), number, MIB);
                    let down = master.exec("cat /tmp/content").digest_stdout();
                    let run = down.limit(LONG).ok();
                    assert_eq!(run.stdout_sha256.as_ref(), Some(expected), "{run}");
                });
            }
        });
    };
    let undisturbed = median_time(3, others);

    let (reader, writer) = pipe().expect("a pipe");
    let mut unread = master
        .exec("cat /dev/zero")
        .stdout_file(File::from(writer))
        .start();
    // How far a file is read is known to all who share it.
    let zeros = gateway.scratch().join("zeros");
    let zeros = File::create_new(&zeros)
        .and_then(|file| file.set_len(1 << 36).and_then(|()| File::open(&zeros)));
    let mut zeros = zeros.expect("a file of zeros");
    let mut deaf = master
        .exec("exec sleep 1000000")
        .stdin_file(zeros.try_clone().expect("the file"))
        .start();
    // Wait until nothing moves any more: every buffer between the two ends is full.
    let still = |what: &str, mut position: Box<dyn FnMut() -> String + '_>| {
        let mut last = String::new();
        vendetta_tests::eventually(what, || {
            std::thread::sleep(Duration::from_millis(500));
            let now = position();
            let same = std::mem::replace(&mut last, now.clone()) == now;
            same && !now.is_empty()
        });
    };
    let written = "cat /proc/$(pgrep -xf 'cat /dev/zero')/io";
    let written = || master.exec(written).finish().text();
    still("the unread channel stalls", Box::new(written));
    let sent = || zeros.stream_position().expect("a position").to_string();
    still("the channel to nobody stalls", Box::new(sent));

    let beside = median_time(3, others);
    assert!(unread.runs() && deaf.runs(), "the stalled channels end");
    unread.signal(Signal::SIGTERM);
    deaf.signal(Signal::SIGTERM);
    drop(reader);
    let undisturbed = undisturbed.max(median_time(3, others));
    assert!(
        beside <= undisturbed * NOISE,
        "the others take {beside:?} beside stalled channels, else {undisturbed:?}"
    );
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
    let mut key = 0;
    let mut press = || {
        key += 1;
        shell.send(format!("{key}\n"));
        at = shell.expect_stdout(at, format!("got {key}\r\n"));
    };
    let mut passed = Vec::new();
    for _ in 0..50 {
        let before = download.stdout_length();
        press();
        passed.push(download.stdout_length() - before);
        // The answers come while the download runs, not instead of it.
        vendetta_tests::eventually("the download goes on", || download.stdout_length() > before);
    }
    passed.sort_unstable();
    let median = passed[passed.len() / 2] / MIB as u64;
    assert!(
        median <= AHEAD_OF_A_KEY,
        "a key waits for {median} MiB of a download"
    );
    download.signal(Signal::SIGTERM);
}

/// Reads `reader` to its end, once nothing has been read for a while, and then
/// no faster than a client far away.
pub fn read_slowly(mut reader: impl Read) -> Vec<u8> {
    std::thread::sleep(Duration::from_secs(2));
    let (mut content, mut block) = (Vec::new(), vec![0; 256 * 1024]);
    loop {
        match reader.read(&mut block).expect("reading") {
            0 => return content,
            read => content.extend_from_slice(&block[..read]),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Gives `run` a stdin without end, which nobody reads, and reads its output slowly.
fn answer_to_endless_input(run: Run) -> Vec<u8> {
    let (reader, writer) = pipe().expect("a pipe");
    let run = run
        .stdin_file(File::open("/dev/zero").expect("zeros"))
        .stdout_file(File::from(writer))
        .limit(LONG)
        .start();
    let answer = read_slowly(File::from(reader));
    let _ = run.finish().ok();
    answer
}

#[test]
fn output_reaches_a_slow_reader_whole_though_its_input_has_nowhere_to_go() {
    let gateway = Gateway::with_workspace();
    let content = random_bytes(11, 32 * MIB);
    gateway.put("ws", "/tmp/content", content.clone());
    let answer = answer_to_endless_input(gateway.exec("ws", "cat /tmp/content"));
    assert_eq!(answer.len(), content.len());
    assert!(answer == content, "other bytes came");
}

/// Starts a server on port 7000 of workspace "ws" that reads nothing of what
/// it is sent, answers with `content`, and closes as soon as that has left it.
pub fn answer_without_reading(gateway: &Gateway, content: &[u8]) {
    gateway.put("ws", "/tmp/content", content);
    let server = "import array, fcntl, os, socket, termios, time\n\
         listener = socket.create_server(('127.0.0.1', 7000))\n\
         open('/tmp/listens', 'w')\n\
         while True:\n\
         \x20   connection = listener.accept()[0]\n\
         \x20   if os.fork() == 0:\n\
         \x20       connection.sendall(open('/tmp/content', 'rb').read())\n\
         \x20       connection.shutdown(socket.SHUT_WR)\n\
         \x20       unsent = array.array('i', [1])\n\
         \x20       while unsent[0]:\n\
         \x20           time.sleep(0.01)\n\
         \x20           fcntl.ioctl(connection, termios.TIOCOUTQ, unsent)\n\
         \x20       os._exit(0)\n\
         \x20   connection.close()\n";
    gateway.put("ws", "/tmp/server.py", server);
    let start = "setsid -f python3 /tmp/server.py </dev/null >/tmp/server.log 2>&1; \
                 until [ -e /tmp/listens ]; do sleep 0.1; done";
    gateway.exec("ws", start).ok();
}

#[test]
fn an_early_answer_to_an_upload_reaches_a_slow_reader_whole() {
    let gateway = Gateway::with_workspace();
    let content = random_bytes(12, 32 * MIB);
    answer_without_reading(&gateway, &content);
    let forward = gateway.ssh("ws").args(["-W", "127.0.0.1:7000"]);
    let answer = answer_to_endless_input(forward);
    assert_eq!(answer.len(), content.len());
    assert!(answer == content, "other bytes came");
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
    const IDLE: Duration = Duration::from_secs(600);
    // As it comes, and with a gateway that asks often whether the client is there.
    let gateways = ["", "[ssh]\nclient_alive_interval_seconds = 5\n"]
        .map(|config| Gateway::builder().docker().config(config).start());
    let mut runs = gateways.each_ref().map(|gateway| {
        gateway.workspace("ws", vendetta_tests::TOOLS);
        let run = gateway.exec("ws", "echo ready; cat; echo done");
        let run = run.limit(IDLE + LONG).spawn();
        run.expect_stdout(0, "ready\n");
        run
    });
    std::thread::sleep(IDLE);
    for run in &mut runs {
        run.send("still here\n");
        run.expect_stdout(0, "still here\n");
    }
    for run in runs {
        assert_eq!(run.finish().ok().stdout, b"ready\nstill here\ndone\n");
    }
}
