//! Terminals that outlive their clients.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use nix::sys::signal::Signal;
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate, load_secret_key};
use russh::{Channel, client};
use vendetta_tests::{BUSYBOX, Gateway, PATIENCE, Running, eventually};

use crate::jump::Jumper;

/// `ssh -t LOGIN` on a terminal of its own.
fn attach(gateway: &Gateway, login: &str) -> Running {
    gateway.ssh(login).arg("-tt").start_on_terminal(24, 80)
}

fn terminals(gateway: &Gateway) -> serde_json::Value {
    let listed = gateway.control("workspace terminals ws --json").ok();
    listed.json()["terminals"].clone()
}

/// What a client's own terminal of 24 lines shows by now, where something was before.
fn screen(client: &Running) -> vt100::Parser {
    let size = |side| std::num::NonZeroU16::new(side).expect("a size");
    let mut terminal = vt100::Parser::new(size(24), size(80), 0);
    terminal.process(b"before ssh\r\n");
    terminal.process(&client.stdout());
    terminal
}

/// Its text, once `shown` holds of it.
fn screen_when(client: &Running, what: &str, shown: impl Fn(&vt100::Screen) -> bool) -> String {
    eventually(what, || shown(screen(client).screen()));
    screen(client).screen().contents()
}

/// Loses its link.
fn cut_off(client: Running) {
    let mut client = client;
    client.signal(Signal::SIGKILL);
    let _ = client.finish();
}

#[test]
fn a_terminal_loses_neither_its_program_nor_its_screen() {
    let mut gateway = Gateway::with_workspace();
    let mut client = attach(&gateway, "ws++main");
    client.send("PS1=; x=kept; echo $((40 + 2)) is on the screen; stty size\n");
    let seen = client.expect_stdout(0, "42 is on the screen");
    client.expect_stdout(seen, "24 80");
    client.send("(sleep 2; echo said while nobody was there) &\n");
    // The keystrokes have arrived, and their echo.
    client.expect_stdout(seen, "while nobody was there");
    cut_off(client);
    eventually("nobody is attached", || {
        terminals(&gateway)[0]["attached"] == 0
    });

    // Whatever becomes of the gateway.
    gateway.kill();
    gateway.start();
    let login = "ws++main";
    let mut client = gateway.ssh(login).arg("-tt").start_on_terminal(30, 100);
    client.expect_stdout(0, "42 is on the screen");
    client.expect_stdout(0, "said while nobody was there\r\n");
    client.send("echo is-$x; stty size\n");
    let seen = client.expect_stdout(0, "is-kept");
    client.expect_stdout(seen, "30 100");
    let listed = terminals(&gateway);
    assert_eq!(listed[0]["name"], "main");
    assert_eq!(listed[0]["user"], "root");
    assert_eq!(listed[0]["attached"], 1);
    client.send("exit 7\n");
    assert_eq!(client.finish().code(), 7);
    eventually("it is gone", || {
        terminals(&gateway) == serde_json::json!([])
    });
}

#[test]
fn two_who_are_attached_see_the_same_and_a_third_user_has_one_of_their_own() {
    let gateway = Gateway::with_workspace();
    let mut first = attach(&gateway, "ws+dev+pair");
    first.send("echo $((1 + 1))nd\n");
    first.expect_stdout(0, "2nd");
    let mut second = attach(&gateway, "ws+dev+pair");
    second.expect_stdout(0, "2nd");
    second.send("echo from $((1 + 2))\n");
    first.expect_stdout(0, "from 3");
    second.expect_stdout(0, "from 3");
    let other = attach(&gateway, "ws++pair");
    eventually("both are there", || {
        terminals(&gateway).as_array().map(Vec::len) == Some(2)
    });
    let end = "workspace terminals ws --end pair --user dev";
    gateway.control(end).ok();
    let _ = (first.finish(), second.finish());
    eventually("only one is left", || {
        let listed = terminals(&gateway);
        listed.as_array().map(Vec::len) == Some(1) && listed[0]["user"] == "root"
    });
    gateway
        .control("workspace terminals ws --end nobody")
        .finish()
        .exits(3);
    let text = gateway.control("workspace terminals ws").ok().text();
    assert!(text.contains("ssh -t ws+root+pair@"), "{text}");
    cut_off(other);
}

#[test]
fn one_who_takes_nothing_holds_up_neither_the_program_nor_another() {
    let gateway = Gateway::with_workspace();
    let mut stalled = attach(&gateway, "ws++main");
    stalled.send("PS1=; echo $((40 + 2)) is there\n");
    stalled.expect_stdout(0, "42 is there");
    stalled.signal(Signal::SIGSTOP);
    let mut other = attach(&gateway, "ws++main");
    // More than everything on the way can hold.
    other.send("seq 3000000; echo $((20 + 3)) done; touch /tmp/done\n");
    eventually("the program has ended", || {
        gateway
            .exec("ws", "test -e /tmp/done")
            .finish()
            .status
            .success()
    });
    eventually("it is shown", || {
        String::from_utf8_lossy(&other.stdout()).contains("23 done")
    });
    stalled.signal(Signal::SIGCONT);
    stalled.expect_stdout(0, "23 done");
    cut_off(stalled);
    cut_off(other);
}

#[test]
fn what_is_no_shell_on_a_terminal_stays_plain() {
    let gateway = Gateway::with_workspace();
    let run = gateway.exec("ws++main", "echo plain; exit 3").finish();
    assert_eq!(run.exits(3).text(), "plain");
    let run = gateway.ssh("ws+dev+main").arg("-T").stdin("id -un\n").ok();
    assert_eq!(run.text(), "dev");
    let client = gateway.admin();
    let copy = gateway.scratch().join("copy").display().to_string();
    client
        .tool("scp")
        .args(["-q", "ws++main@gateway:/etc/passwd", &copy])
        .ok();
    assert_eq!(terminals(&gateway), serde_json::json!([]));
    let run = gateway.ssh("ws++Wrong").arg("-tt").finish();
    assert_ne!(run.code(), 0, "{run}");
}

#[test]
fn a_full_screen_program_is_shown_again_and_the_shell_behind_it_when_it_ends() {
    let gateway = Gateway::docker();
    gateway.workspace("ws", BUSYBOX);
    let mut client = attach(&gateway, "ws++main");
    client.send("PS1='$ '; clear; seq 7; vi /etc/passwd\n");
    let in_vi = |screen: &vt100::Screen| {
        let text = screen.contents();
        screen.alternate_screen() && text.contains("root:") && text.contains("/etc/passwd")
    };
    screen_when(&client, "vi is there", in_vi);
    client.send("jjll");
    let at = |screen: &vt100::Screen| in_vi(screen) && screen.cursor_position() == (2, 2);
    let before = screen_when(&client, "its cursor has moved", at);
    cut_off(client);

    let mut client = attach(&gateway, "ws++main");
    assert_eq!(screen_when(&client, "vi is shown again", at), before);
    client.send(":q\n");
    let left = screen_when(&client, "vi has ended", |screen| {
        !screen.alternate_screen() && screen.contents().ends_with("\n$ ")
    });
    assert_eq!(left, "1\n2\n3\n4\n5\n6\n7\n$ ");
    client.send("exit 3\n");
    assert_eq!(client.finish().code(), 3);
}

#[test]
fn a_terminal_is_there_after_the_gateway_was_killed_beneath_its_client() {
    let mut gateway = Gateway::with_workspace();
    let mut client = attach(&gateway, "ws++main");
    client.send("PS1=; x=kept; echo $((40 + 2)) is on the screen\n");
    client.expect_stdout(0, "42 is on the screen");
    gateway.kill();
    assert_eq!(client.finish().code(), 255);
    gateway.start();
    let mut client = attach(&gateway, "ws++main");
    let seen = client.expect_stdout(0, "42 is on the screen");
    client.send("echo is-$x; exit 7\n");
    client.expect_stdout(seen, "is-kept");
    assert_eq!(client.finish().code(), 7);
}

#[test]
fn a_terminal_is_the_same_end_to_end_and_relayed() {
    let gateway = Gateway::with_workspace();
    let jumper = Jumper::new(gateway.admin());
    let direct = |login: &str| {
        let ssh = jumper.tool("ssh").arg(format!("{login}@ws.vendetta"));
        ssh.arg("-tt").start_on_terminal(24, 80)
    };
    let mut client = direct("+main");
    client.send("PS1=; x=kept; echo $((40 + 2)) is on the screen\n");
    client.expect_stdout(0, "42 is on the screen");
    cut_off(client);
    let relayed = attach(&gateway, "ws++main");
    relayed.expect_stdout(0, "42 is on the screen");
    let mut client = direct("vendetta+main");
    let seen = client.expect_stdout(0, "42 is on the screen");
    client.send("echo is-$x\n");
    client.expect_stdout(seen, "is-kept");
    relayed.expect_stdout(0, "is-kept");
    let mut other = direct("dev+main");
    other.send("id -un; exit 4\n");
    other.expect_stdout(0, "dev\r\n");
    assert_eq!(other.finish().code(), 4);
    // Anything else over such a login is plain.
    let plain = jumper.tool("ssh").args(["+main@ws.vendetta", "echo plain"]);
    assert_eq!(plain.ok().text(), "plain");
    client.send("exit 5\n");
    assert_eq!(client.finish().code(), 5);
    assert_eq!(relayed.finish().code(), 5);
}

/// A client that needs no program to be started for each request, so that several of it
/// ask for a shell at the same moment.
struct InProcess;

impl client::Handler for InProcess {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// A session of `login` on a terminal that has no shell yet, and its connection.
async fn on_the_verge(
    gateway: &Gateway,
    login: &str,
) -> anyhow::Result<(client::Handle<InProcess>, Channel<client::Msg>)> {
    let config = Arc::new(client::Config::default());
    let mut handle = client::connect(config, gateway.address(), InProcess).await?;
    let key = Arc::new(load_secret_key(gateway.admin().key(), None)?);
    let key = PrivateKeyWithHashAlg::new(key, None);
    let login = handle.authenticate_publickey(login, key).await?;
    anyhow::ensure!(login.success(), "no login");
    let channel = handle.channel_open_session().await?;
    channel
        .request_pty(false, "xterm", 80, 24, 0, 0, &[])
        .await?;
    Ok((handle, channel))
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_come_first_at_once_share_one_program() -> anyhow::Result<()> {
    let gateway = Gateway::with_workspace();
    for round in 0..3 {
        let name = format!("main{round}");
        let login = format!("ws++{name}");
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(on_the_verge(&gateway, &login).await?);
        }
        let shells = clients
            .iter()
            .map(|(_, channel)| channel.request_shell(false));
        join_all(shells)
            .await
            .into_iter()
            .collect::<Result<(), _>>()?;
        eventually("all are attached to one", || {
            let listed = terminals(&gateway);
            listed[0]["name"] == name && listed[0]["attached"] == clients.len()
        });
        let end = format!("workspace terminals ws --end {name}");
        gateway.control(&end).ok();
        eventually("it is gone", || {
            terminals(&gateway) == serde_json::json!([])
        });
    }
    Ok(())
}

#[test]
fn it_ends_with_its_shell_though_a_job_in_the_background_goes_on_writing() {
    let gateway = Gateway::with_workspace();
    let mut client = attach(&gateway, "ws++main");
    // It opens the terminal again and again, since the kernel hangs it up with the shell.
    let job = "while exec 3>$t; do echo x >&3; done";
    let jobs = format!("for n in 1 2 3; do setsid sh -c \"{job}\" & done");
    client.send(format!("t=$(tty); {jobs}; exit 6\n"));
    assert_eq!(client.finish().code(), 6);
    eventually("it is gone", || {
        terminals(&gateway) == serde_json::json!([])
    });
}

#[test]
fn input_that_nobody_reads_keeps_nobody_from_coming_back() {
    let gateway = Gateway::with_workspace();
    let mut client = attach(&gateway, "ws++main");
    client.send("PS1=; stty -echo; echo $((40 + 2)) is on the screen; sleep 1000\n");
    client.expect_stdout(0, "42 is on the screen");
    client.send("a line of what is pasted\n".repeat(8_000));
    // All of it has left here once nothing more is taken from it.
    std::thread::sleep(Duration::from_secs(1));
    cut_off(client);
    for _ in 0..2 {
        let client = attach(&gateway, "ws++main");
        client.expect_stdout(0, "42 is on the screen");
        eventually("it alone is attached", || {
            terminals(&gateway)[0]["attached"] == 1
        });
        cut_off(client);
    }
    let client = attach(&gateway, "ws++main");
    client.expect_stdout(0, "42 is on the screen");
    gateway.control("workspace terminals ws --end main").ok();
    assert_ne!(client.finish().code(), 0);
}

#[test]
fn one_whose_link_stood_still_at_the_end_is_told_the_end() {
    let gateway = Gateway::with_workspace();
    let both = || gateway.ssh("ws++main").arg("-tt").limit(3 * PATIENCE);
    let mut stalled = both().start_on_terminal(24, 80);
    stalled.send("PS1=; echo $((40 + 2)) is there\n");
    stalled.expect_stdout(0, "42 is there");
    stalled.signal(Signal::SIGSTOP);
    let mut other = both().start_on_terminal(24, 80);
    // More than everything on the way can hold.
    other.send("seq 1500000; echo $((20 + 3)) done; exit 7\n");
    assert_eq!(other.finish().code(), 7);
    std::thread::sleep(Duration::from_secs(3));
    stalled.signal(Signal::SIGCONT);
    let told = stalled.finish();
    assert_eq!(told.code(), 7);
    assert!(told.text().contains("23 done"), "{told}");
}

#[test]
fn a_name_that_no_terminal_can_have_is_told_with_those_that_it_can() {
    let gateway = Gateway::with_workspace();
    let long = "x".repeat(200);
    for name in ["BAD/NAME", "@", "+@", "", &long] {
        let refused = gateway.exec(&format!("ws++{name}"), "true").finish();
        let refused = refused.exits(2);
        for told in ["workspace ws: terminal name", "1 to 63 lower-case letters"] {
            assert!(refused.error_text().contains(told), "{refused}");
        }
    }
    let refused = gateway.exec("ws+nobody-here+main", "true").finish();
    let refused = refused.exits(3);
    let told = "has no user \"nobody-here\"";
    assert!(refused.error_text().contains(told), "{refused}");
}
