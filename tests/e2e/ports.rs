//! Ports of the gateway's machine that lead into workspaces, and the same on the
//! user's own machine.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use serde_json::Value;
use vendetta_tests::{
    BUSYBOX, Gateway, PATIENCE, Seeded, TOOLS, eventually, free_port, random_bytes,
};

use crate::relay::{answer_without_reading, read_slowly};

fn docker(image: &str, more: &str) -> String {
    format!("provider: docker\ndocker: {{image: \"{image}\"}}\n{more}\n")
}

/// What `workspace ports` says of the only mapped port.
fn mapped(gateway: &Gateway, name: &str) -> Value {
    let line = format!("workspace ports {name} --json");
    let ports = gateway.control(&line).ok().json();
    let [port] = &ports["mapped"].as_array().expect("a list")[..] else {
        panic!("not one port: {ports}")
    };
    port.clone()
}

fn number(port: &Value, key: &str) -> u16 {
    let number = port[key].as_u64().unwrap_or_else(|| panic!("{port}"));
    u16::try_from(number).expect("a port")
}

/// Where the only mapped port of a workspace is.
fn address(gateway: &Gateway, name: &str) -> SocketAddr {
    let port = number(&mapped(gateway, name), "host_port");
    SocketAddr::new(gateway.ports_address(), port)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("connecting to a port");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a time limit");
    stream
}

/// What an echo server sends back, to the end.
fn echoed(mut stream: TcpStream, data: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut writer = stream.try_clone()?;
    thread::scope(|scope| {
        let sent = scope.spawn(move || {
            writer.write_all(data)?;
            writer.shutdown(Shutdown::Write)
        });
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        sent.join().expect("the writer")?;
        Ok(answer)
    })
}

/// Whether an echo server answers there.
fn echoes(address: SocketAddr) -> bool {
    let stream = TcpStream::connect_timeout(&address, PATIENCE);
    stream.is_ok_and(|stream| echoed(stream, b"hello").is_ok_and(|answer| answer == b"hello"))
}

fn refuses(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, PATIENCE).is_err()
}

#[test]
fn a_port_leads_inside_and_stays_the_same_until_the_workspace_is_destroyed() {
    let mut gateway = Gateway::docker();
    gateway.create("ws", &docker(TOOLS, "ports: [8000]"));
    assert_eq!(mapped(&gateway, "ws")["state"], "closed");
    let port = address(&gateway, "ws");
    assert!(refuses(port), "it is not up");
    gateway.control("workspace up ws").ok();
    gateway.echo_server("ws", "tcp 127.0.0.1 8000");
    let data = random_bytes(1, 3 << 20);
    assert!(echoed(connect(port), &data).expect("an answer") == data);

    let text = gateway.control("workspace ports ws").ok().text();
    let line = format!(
        "ssh -N -L 8000:localhost:8000 ws@127.0.0.1 -p {}",
        gateway.address().port()
    );
    assert!(text.contains(&line), "{text}");
    let status = gateway.control("workspace status ws").ok().text();
    assert!(
        status.contains(&format!("port 8000 on {}", port.port())),
        "{status}"
    );

    gateway.control("workspace down ws").ok();
    assert!(refuses(port), "closed before down has ended");
    gateway.control("workspace up ws").ok();
    gateway.echo_server("ws", "tcp 127.0.0.1 8000");
    assert_eq!(address(&gateway, "ws"), port);
    assert!(echoes(port));

    // A gateway that comes back finds the environment running.
    gateway.kill();
    assert!(refuses(port));
    gateway.start();
    eventually("the port is open again", || echoes(port));
    assert_eq!(address(&gateway, "ws"), port);

    gateway.create("other", &docker(TOOLS, "ports: [8000]"));
    assert_ne!(address(&gateway, "other"), port);
    gateway.control("workspace destroy ws --yes").ok();
    assert!(refuses(port));
    gateway.create("third", &docker(TOOLS, "ports: [80]"));
    assert_eq!(address(&gateway, "third"), port, "it is free for others");
}

#[test]
fn an_early_answer_to_an_upload_arrives_whole() {
    let gateway = Gateway::docker();
    gateway.create("ws", &docker(TOOLS, "ports: [7000]"));
    gateway.control("workspace up ws").ok();
    let content = random_bytes(2, 32 << 20);
    answer_without_reading(&gateway, &content);
    let reader = connect(address(&gateway, "ws"));
    let mut writer = reader.try_clone().expect("a socket");
    thread::scope(|scope| {
        let upload = scope.spawn(move || while writer.write_all(&[0; 1 << 16]).is_ok() {});
        let answer = read_slowly(&reader);
        assert_eq!(answer.len(), content.len());
        assert!(answer == content, "other bytes came");
        reader.shutdown(Shutdown::Both).expect("hanging up");
        upload.join().expect("the writer");
    });
}

#[test]
fn services_have_ports_and_what_else_listens_inside_is_found() {
    let gateway = Gateway::docker();
    let service =
        "{command: python3 -m http.server 8000 --bind 127.0.0.1, port: 8000, health_check: /}";
    gateway.create(
        "ws",
        &docker(TOOLS, &format!("services: {{web: {service}}}")),
    );
    gateway.control("workspace up ws").ok();
    let web = address(&gateway, "ws");
    let port = mapped(&gateway, "ws");
    assert_eq!(port["service"], "web");
    assert_eq!(port["url"], format!("http://{web}"));
    let answer = echoed(connect(web), b"GET / HTTP/1.0\r\n\r\n").expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.0 200"), "{answer:?}");
    let told = gateway
        .exec("ws", "echo $VENDETTA_SERVICE_WEB_HOST_PORT")
        .ok();
    assert_eq!(told.text(), web.port().to_string());

    // The line that is shown, with a port that is free here.
    let line = port["forward"].as_str().expect("a line");
    assert!(
        line.starts_with("ssh -N -L 8000:web:8000 ws@127.0.0.1"),
        "{line}"
    );
    let local = free_port();
    let forward = format!("127.0.0.1:{local}:web:8000");
    let forward = gateway.ssh("ws").args(["-N", "-L", &forward]).spawn();
    let local = SocketAddr::from(([127, 0, 0, 1], local));
    eventually("the forward leads to the service", || {
        TcpStream::connect(local).is_ok_and(|stream| {
            echoed(stream, b"GET / HTTP/1.0\r\n\r\n").is_ok_and(|answer| !answer.is_empty())
        })
    });
    drop(forward);

    gateway.echo_server("ws", "tcp 127.0.0.1 9000");
    let mut found = Value::Null;
    eventually("it is found, and nothing else", || {
        let ports = gateway.control("workspace ports ws --json").ok().json();
        let all = ports["discovered"].as_array().expect("a list").clone();
        found = all.first().cloned().unwrap_or_default();
        all.len() == 1
    });
    assert_eq!(found["port"], 9000);
    assert_eq!(found["address"], "127.0.0.1");
    let program = found["program"].as_str().expect("a program");
    assert!(program.starts_with("python3"), "{found}");
    let line = found["forward"].as_str().expect("a line");
    assert!(
        line.starts_with("ssh -N -L 9000:localhost:9000 ws@"),
        "{line}"
    );

    // Followed, it is told when something else listens.
    let follow = gateway
        .control("workspace ports ws --follow --json")
        .spawn();
    let seen = follow.expect_stdout(0, "\"port\":9000");
    gateway.echo_server("ws", "tcp 127.0.0.1 9001");
    let seen = follow.expect_stdout(seen, "\"port\":9001");
    gateway.control("workspace down ws").ok();
    follow.expect_stdout(seen, "\"discovered\":null");
}

#[test]
fn many_connections_at_once_carry_their_own_data_and_a_stalled_one_holds_up_none() {
    let gateway = Gateway::docker();
    gateway.create("ws", &docker(TOOLS, "ports: [8000]"));
    gateway.control("workspace up ws").ok();
    gateway.echo_server("ws", "tcp 127.0.0.1 8000");
    let port = address(&gateway, "ws");
    // It sends until nobody takes any more, and reads nothing of what comes back.
    let stalled = connect(port);
    let mut writer = stalled.try_clone().expect("the same stream");
    writer
        .set_write_timeout(Some(std::time::Duration::from_secs(2)))
        .expect("a time limit");
    while writer.write_all(&[0; 1 << 16]).is_ok() {}
    thread::scope(|scope| {
        for seed in 0..40 {
            scope.spawn(move || {
                let length = Seeded::new(seed).below(1 << 19);
                let data = random_bytes(seed, usize::try_from(length).expect("small"));
                assert!(echoed(connect(port), &data).expect("an answer") == data);
            });
        }
    });
    drop(stalled);
}

#[test]
fn a_port_on_which_nothing_listens_inside_resets_the_connection_at_once() {
    let gateway = Gateway::docker();
    gateway.create("ws", &docker(TOOLS, "ports: [8000]"));
    gateway.control("workspace up ws").ok();
    let mut stream = connect(address(&gateway, "ws"));
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer);
    let reset = end.expect_err("a reset").kind();
    assert_eq!(reset, std::io::ErrorKind::ConnectionReset);

    // And that is shown, until something does.
    assert_eq!(mapped(&gateway, "ws")["listening"], false);
    let shown = || gateway.control("workspace ports ws").ok().text();
    assert!(shown().contains("open, nothing listens inside"));
    gateway.echo_server("ws", "tcp 127.0.0.1 8000");
    eventually("it listens", || mapped(&gateway, "ws")["listening"] == true);
    assert!(!shown().contains("nothing listens"));
    gateway.control("workspace down ws").ok();
    assert_eq!(mapped(&gateway, "ws")["listening"], Value::Null);
}

#[test]
fn nothing_stays_open_in_the_gateway_after_down() {
    let gateway = Gateway::docker();
    gateway.create("ws", &docker(TOOLS, "ports: [8000, 8001, 8002]"));
    let cycle = || {
        gateway.control("workspace up ws").ok();
        gateway.echo_server("ws", "tcp 127.0.0.1 8000");
        let ports = gateway.control("workspace ports ws --json").ok().json();
        let port = number(&ports["mapped"][0], "host_port");
        let port = SocketAddr::new(gateway.ports_address(), port);
        let open: Vec<_> = (0..20).map(|_| connect(port)).collect();
        assert!(echoes(port));
        gateway.control("workspace down ws").ok();
        // They are told, and not just left.
        for mut stream in open {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
        }
    };
    cycle();
    let before = gateway.process().descriptors();
    cycle();
    eventually("all descriptors are closed", || {
        gateway.process().descriptors() <= before
    });
}

#[test]
fn a_port_that_a_program_holds_is_skipped_or_told_and_tried_again() {
    let gateway = Gateway::docker();
    let at = |port| SocketAddr::new(gateway.ports_address(), port);
    gateway.create("one", &docker(BUSYBOX, "ports: [8000]"));
    let first = address(&gateway, "one");
    let next = TcpListener::bind(at(first.port() + 1)).expect("nobody else is here");
    gateway.create("two", &docker(BUSYBOX, "ports: [8000]"));
    assert_eq!(address(&gateway, "two").port(), first.port() + 2);
    drop(next);

    // Given, and then somebody else takes it.
    let program = TcpListener::bind(first).expect("it is not up");
    let up = gateway.control("workspace up one").ok();
    let said = format!("{}{}", up.text(), up.error_text());
    let holder = format!("(pid {})", std::process::id());
    assert!(said.contains(&holder), "{up}");
    let port = mapped(&gateway, "one");
    assert_eq!(port["state"], "taken");
    let problem = port["problem"].as_str().expect("a problem");
    assert!(problem.contains(&holder), "{port}");
    drop(program);
    eventually("the port is open", || {
        mapped(&gateway, "one")["state"] == "open"
    });
    connect(first);
}

#[test]
fn a_wish_is_honoured_or_refused_with_who_holds_the_port() {
    let gateway = Gateway::builder().host().start();
    let wish = |port: u16| {
        format!(
            "provider: host\nservices: {{db: {{command: sleep 1, port: 5432, host_port: {port}}}}}\n"
        )
    };
    let port = gateway.free_port();
    gateway.create("one", &wish(port));
    assert_eq!(number(&mapped(&gateway, "one"), "host_port"), port);

    let create = |name: &str, port| {
        let line = format!("workspace create {name} --config -");
        gateway.control(&line).stdin(wish(port)).finish().exits(4)
    };
    let refused = create("two", port).error_text();
    let holder = format!("port {port} is held by service db of workspace one");
    assert!(refused.contains(&holder), "{refused}");
    let alice = gateway.member("alice");
    let refused = alice
        .control("workspace create two --config -")
        .stdin(wish(port))
        .finish()
        .exits(4)
        .error_text();
    assert!(
        refused.contains("held by another workspace") && !refused.contains("one"),
        "{refused}"
    );
    let program = TcpListener::bind(SocketAddr::new(gateway.ports_address(), 0));
    let program = program.expect("a port");
    let held = program.local_addr().expect("its address").port();
    let refused = create("two", held).error_text();
    let holder = format!("(pid {})", std::process::id());
    assert!(refused.contains(&holder), "{refused}");
    assert!(create("two", 80).error_text().contains("1024"));

    // Nothing is left of what was refused.
    assert_eq!(gateway.workspaces(), ["one"]);
    gateway.control("workspace destroy one --yes").ok();
    gateway.create("two", &wish(port));
    assert_eq!(number(&mapped(&gateway, "two"), "host_port"), port);
}

#[test]
fn the_local_command_connects_with_the_ports_forwarded() {
    let gateway = Gateway::docker();
    let inside = free_port();
    gateway.create("ws", &docker(TOOLS, &format!("ports: [{inside}]")));
    // The first connection brings it up.
    let run = gateway
        .front()
        .args(["workspace", "connect", "ws", "--no-forward"])
        .stdin("echo is-$((40 + 2)); exit 4\n")
        .finish()
        .exits(4);
    assert!(run.text().contains("is-42"), "{run}");
    assert!(!run.error_text().contains("leads to"), "{run}");
    gateway.echo_server("ws", &format!("tcp 127.0.0.1 {inside}"));

    let forwarding = |flag: Option<&str>| {
        let run = gateway.front().args(["workspace", "connect", "ws"]);
        run.args(flag).spawn()
    };
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let mut same = forwarding(None);
    let told = format!("vendetta: tcp://127.0.0.1:{inside} leads to port {inside}\n");
    same.expect_stderr(0, &told);
    eventually("the same port leads there", || echoes(local(inside)));
    same.send("echo in-the-shell\n");
    same.expect_stdout(0, "in-the-shell");

    // The same port is taken now, so it is another one.
    let other = forwarding(Some("--forward-only"));
    other.expect_stderr(0, format!(" leads to port {inside}\n"));
    let said = String::from_utf8(other.stderr()).expect("text");
    let port: u16 = said
        .split_once("127.0.0.1:")
        .and_then(|(_, rest)| rest.split_once(' '))
        .and_then(|(port, _)| port.parse().ok())
        .unwrap_or_else(|| panic!("no port: {said}"));
    assert_ne!(port, inside);
    eventually("another port leads there", || echoes(local(port)));
    drop(other);
    same.send("exit 3\n");
    assert_eq!(same.finish().code(), 3);
}

#[test]
fn connect_says_what_the_gateway_refuses() {
    let gateway = Gateway::builder().host().start();
    let run = gateway.front().args(["workspace", "connect", "absent"]);
    let run = run.finish().exits(3);
    assert!(run.error_text().contains("no such workspace"), "{run}");
    let run = gateway.control("workspace connect absent --forward-only");
    let run = run.finish().exits(2);
    assert!(run.error_text().contains("local command"), "{run}");
}
