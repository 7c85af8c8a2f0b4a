//! Workspaces that nobody uses are stopped, and come back when somebody does.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use vendetta_tests::{Gateway, PATIENCE, Running, TOOLS, eventually, free_port};

/// Longer than the workspaces of these tests may be idle.
const WHILE: Duration = Duration::from_secs(5);

fn config(more: &str) -> String {
    format!("provider: docker\ndocker: {{image: \"{TOOLS}\"}}\nidle_timeout: 2s\n{more}\n")
}

fn goes_idle(gateway: &Gateway) {
    eventually("it goes idle", || gateway.state("ws") == "stopped");
}

/// An echo server answers at the end of a connection, now and after a while in which
/// nothing else holds the workspace up: `held` did until now.
fn stays_alive(mut stream: &TcpStream, held: Running) {
    let mut ask = || {
        stream.write_all(b"x").expect("sending");
        let mut answer = [0];
        stream.read_exact(&mut answer).expect("an answer");
    };
    ask();
    drop(held);
    sleep(WHILE);
    ask();
}

#[test]
fn one_that_nobody_uses_is_stopped_and_comes_up_for_the_next_who_connects() {
    let mut gateway = Gateway::docker();
    gateway.create("ws", &config(""));
    let events = gateway.control("events").spawn();
    events.expect_stderr(0, "Watching");
    gateway.control("workspace up ws").ok();
    goes_idle(&gateway);
    events.expect_stdout(0, "it went idle: nothing had used it for 2s");
    let status = gateway.control("workspace status ws").ok().text();
    assert!(status.contains("stopped, went idle after 2s,"), "{status}");

    let run = gateway.exec("ws", "echo hello").ok();
    assert_eq!(run.text(), "hello");
    goes_idle(&gateway);
    // And it is known for what it is after a restart.
    gateway.kill();
    gateway.start();
    assert_eq!(gateway.state("ws"), "stopped");
    let status = gateway.control("workspace status ws").ok().text();
    assert!(status.contains("went idle after 2s"), "{status}");
    gateway.exec("ws", "true").ok();

    // Taken down on purpose is something else, also when it was idle already.
    goes_idle(&gateway);
    gateway.control("workspace down ws").ok();
    let run = gateway.exec("ws", "true").finish();
    assert!(![0, 255].contains(&run.code()), "{run}");
    assert!(run.error_text().contains("workspace up ws"), "{run}");
    let status = gateway.control("workspace status ws").ok().text();
    assert!(!status.contains("idle after 2s,"), "{status}");
}

#[test]
fn sessions_and_forwards_in_use_keep_it_up_and_idle_connections_do_not() {
    let gateway = Gateway::docker();
    gateway.create("ws", &config("ports: [8000]"));
    let started = "date +%s.%N >/tmp/started; ";
    let session = gateway.exec("ws", &format!("{started} sleep 6; echo done"));
    assert_eq!(session.ok().text(), "done");

    // A session holds it up until there is what is to hold it up.
    let hold = || {
        let session = gateway.exec("ws", "echo up; exec cat").spawn();
        session.expect_stdout(0, "up\n");
        session
    };
    // A connection to a mapped port, with a byte now and then.
    let held = hold();
    gateway.echo_server("ws", "tcp 127.0.0.1 8000");
    let ports = gateway.control("workspace ports ws --json").ok().json();
    let port = ports["mapped"][0]["host_port"].as_u64().expect("a port");
    let port = u16::try_from(port).expect("a port");
    let mapped = SocketAddr::new(gateway.ports_address(), port);
    let stream = TcpStream::connect_timeout(&mapped, PATIENCE).expect("connecting");
    stays_alive(&stream, held);

    // A forward of ssh, while a connection is open.
    let held = hold();
    drop(stream);
    let local = free_port();
    let forward = gateway
        .ssh("ws")
        .args(["-N", "-L", &format!("127.0.0.1:{local}:127.0.0.1:8000")])
        .spawn();
    let local = SocketAddr::from(([127, 0, 0, 1], local));
    let mut stream = None;
    eventually("the forward listens", || {
        stream = TcpStream::connect(local).ok();
        stream.is_some()
    });
    let stream = stream.expect("a connection");
    stays_alive(&stream, held);
    drop(stream);
    // The ssh connection is still there, and holds no channel open.
    goes_idle(&gateway);
    // What comes over it brings the workspace up again.
    let stream = TcpStream::connect(local).expect("the forward still listens");
    eventually("it is up", || gateway.state("ws") == "running");
    drop((stream, forward));
}

#[test]
fn a_client_that_stays_is_let_in_again() {
    let gateway = Gateway::docker();
    gateway.create("ws", &config(""));
    let master = gateway.admin().master("ws");
    assert_eq!(master.exec("echo first").ok().text(), "first");
    goes_idle(&gateway);
    let run = master.exec("echo again").ok();
    assert_eq!(run.text(), "again");
    assert!(
        run.error_text().contains("start"),
        "told why it took a while: {run}"
    );
    gateway.control("workspace down ws").ok();
    let run = master.exec("true").finish();
    assert!(run.error_text().contains("taken down on purpose"), "{run}");
}

#[test]
fn a_service_that_is_busy_keeps_it_up_until_it_ends() {
    let gateway = Gateway::docker();
    let command = "while ! test -e /tmp/stop; do sleep 0.1; done";
    let service = format!("{{command: \"{command}\", busy: true, restart: \"no\"}}");
    gateway.create("ws", &config(&format!("services: {{job: {service}}}")));
    gateway.control("workspace up ws").ok();
    sleep(WHILE);
    assert_eq!(gateway.state("ws"), "running");
    gateway.exec("ws", "touch /tmp/stop").ok();
    goes_idle(&gateway);
}

#[test]
fn the_way_in_is_never_cut_by_going_idle() {
    let gateway = Gateway::docker();
    gateway.create("ws", &config(""));
    gateway.control("workspace up ws").ok();
    // Around the moment at which it goes idle, each time a little later.
    for round in 0..12 {
        sleep(Duration::from_millis(1900 + 20 * round));
        assert_eq!(gateway.exec("ws", "echo in").ok().text(), "in", "{round}");
    }
}
