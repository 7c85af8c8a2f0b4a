//! Editors: what VS Code's Remote-SSH, JetBrains Gateway and open-remote-ssh do on the wire,
//! through the gateway and end to end.

mod jetbrains;
mod open_remote_ssh;
mod remote_protocol;
mod remote_ssh;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use vendetta_tests::{Client, PATIENCE, Run, eventually, random_bytes};

use crate::jump::Jumper;

/// How somebody gets to the workspace `ws`.
enum Way<'a> {
    /// `ssh ws@gateway`.
    Relayed(&'a Client),
    /// `ssh ws.vendetta`, which jumps.
    EndToEnd(Jumper),
}

impl Way<'_> {
    fn end_to_end(client: &Client) -> Self {
        Self::EndToEnd(Jumper::new(client))
    }

    /// A program of OpenSSH with their configuration.
    fn tool(&self, program: &str) -> Run {
        match self {
            Self::Relayed(client) => client.tool(program),
            Self::EndToEnd(jumper) => jumper.tool(program),
        }
    }

    /// Where it leads as `user` of the environment.
    fn destination(&self, user: &str) -> String {
        match self {
            Self::Relayed(_) => format!("ws+{user}@gateway"),
            Self::EndToEnd(_) => format!("{user}@ws.vendetta"),
        }
    }
}

/// A user of the environment and the shell that they log in with.
struct Login {
    user: &'static str,
    home: &'static str,
    shell: &'static str,
}

/// One with an ordinary shell and one with a shell of another language.
const LOGINS: [Login; 2] = [
    Login {
        user: "root",
        home: "/root",
        shell: "/bin/bash",
    },
    Login {
        user: "fish",
        home: "/home/fish",
        shell: "/usr/bin/fish",
    },
];

/// A connection to a port that somebody is about to listen on.
fn connect(port: u16) -> TcpStream {
    let mut stream = None;
    eventually("somebody listens", || {
        stream = TcpStream::connect(("127.0.0.1", port)).ok();
        stream.is_some()
    });
    let stream = stream.expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    stream
}

/// The server at the other end sends back what it gets.
fn echoes(mut stream: TcpStream, seed: u64) {
    let content = random_bytes(seed, 50_000);
    let mut sender = stream.try_clone().expect("a second handle");
    let mut received = vec![0; content.len()];
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| sender.write_all(&content));
        stream.read_exact(&mut received).expect("an answer");
        sending.join().expect("sending").expect("sending");
    });
    assert!(received == content, "connection {seed}");
}
