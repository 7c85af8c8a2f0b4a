//! The editor's end of the protocol that VS Code and its server speak, as far as it takes to
//! ask the server something and to come back after a lost link.
//!
//! A connection begins as an upgrade of HTTP and goes on without WebSocket's frames. In it are
//! frames of VS Code's own: a header of 13 bytes, which numbers and acknowledges, and a body
//! (src/vs/base/parts/ipc/common/ipc.net.ts of microsoft/vscode 1.96). Control frames are JSON and shake
//! hands; regular ones are calls and their results (ipc.ts beside it). What is numbered outlives
//! its connection: whoever comes back with the same token goes on where both had been.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::{Value, json};

/// Types of frames.
const REGULAR: u8 = 1;
const CONTROL: u8 = 2;
const ACKNOWLEDGE: u8 = 3;

/// What a connection is for.
const MANAGEMENT: u8 = 1;
const EXTENSION_HOST: u8 = 2;

/// Types of messages in regular frames of a management connection.
const CALL: u64 = 100;
const INITIALIZED: u64 = 200;
const RESULT: u64 = 201;

/// What an extension host says first: that it is ready to be told what to run.
const READY: &[u8] = &[2];

/// What a client must know of a server.
pub(super) struct Server {
    pub(super) commit: String,
    pub(super) connection_token: &'static str,
}

/// The answer to `GET path`: status and body.
pub(super) fn get(mut stream: TcpStream, path: &str) -> (u16, Vec<u8>) {
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("asking");
    let status = head(&mut stream).1;
    let mut body = Vec::new();
    stream.read_to_end(&mut body).expect("an answer");
    (status, body)
}

/// The head of an answer, and its status.
fn head(stream: &mut TcpStream) -> (String, u16) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8(head).expect("text");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status: {head}"));
    (head, status)
}

/// A connection's frames in one and the other direction.
struct Frames {
    stream: TcpStream,
    /// Number of the last regular frame that was sent, and that came.
    sent: u32,
    received: u32,
}

impl Frames {
    fn send(&mut self, kind: u8, body: &[u8]) {
        if kind == REGULAR {
            self.sent += 1;
        }
        let number = if kind == REGULAR { self.sent } else { 0 };
        let length = u32::try_from(body.len()).expect("a short body");
        let mut frame = vec![kind];
        for field in [number, self.received, length] {
            frame.extend_from_slice(&field.to_be_bytes());
        }
        frame.extend_from_slice(body);
        self.stream.write_all(&frame).expect("sending a frame");
    }

    /// The body of the next frame of type `wanted`; those of other types mean nothing here,
    /// and what came already is not taken twice.
    fn next(&mut self, wanted: u8) -> Vec<u8> {
        loop {
            let mut header = [0; 13];
            self.stream.read_exact(&mut header).expect("a frame");
            let field = |at: usize| {
                let bytes = header[at..at + 4].try_into().expect("four bytes");
                u32::from_be_bytes(bytes)
            };
            let mut body = vec![0; field(9) as usize];
            self.stream.read_exact(&mut body).expect("its body");
            let (kind, number) = (header[0], field(1));
            if kind == REGULAR {
                if number <= self.received {
                    continue;
                }
                assert_eq!(number, self.received + 1, "a message is lost");
                self.received = number;
                self.send(ACKNOWLEDGE, &[]);
            }
            if kind == wanted {
                return body;
            }
        }
    }

    fn say(&mut self, message: &Value) -> Value {
        self.send(CONTROL, message.to_string().as_bytes());
        serde_json::from_slice(&self.next(CONTROL)).expect("JSON")
    }

    /// Upgrades `stream` and shakes hands on it; returns what the server says at last.
    fn shake_hands(&mut self, server: &Server, session: &str, back: bool, purpose: u8) -> Value {
        // Key and its answer are those of RFC 6455, section 1.3.
        write!(
            self.stream,
            "GET /?reconnectionToken={session}&reconnection={back}&skipWebSocketFrames=true HTTP/1.1\r\n\
             Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        .expect("asking");
        let (head, status) = head(&mut self.stream);
        assert_eq!(status, 101, "{head}");
        assert!(
            head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
            "{head}"
        );
        let auth = json!({"type": "auth", "auth": server.connection_token, "data": session});
        let sign = self.say(&auth);
        assert_eq!(sign["type"], "sign", "{sign}");
        self.say(&json!({
            "type": "connectionType",
            "commit": server.commit,
            "signedData": sign["signedData"],
            "desiredConnectionType": purpose,
            "args": {"language": "en"},
        }))
    }
}

/// One window's conversation with a server, over one connection after another.
pub(super) struct Window<'a> {
    server: &'a Server,
    session: &'static str,
    frames: Frames,
    calls: u64,
}

impl<'a> Window<'a> {
    /// A new one over `stream`, which `session` names for when it comes back.
    pub(super) fn open(server: &'a Server, stream: TcpStream, session: &'static str) -> Self {
        let frames = Frames {
            stream,
            sent: 0,
            received: 0,
        };
        let mut window = Self {
            server,
            session,
            frames,
            calls: 0,
        };
        window.connect(false);
        // Who it is comes first, and the server's channels are there.
        window.frames.send(
            REGULAR,
            &packed(&json!({"remoteAuthority": "ssh-remote+ws", "clientId": session})),
        );
        let message = window.frames.next(REGULAR);
        assert_eq!(unpack(&mut message.as_slice()), json!([INITIALIZED]));
        window
    }

    /// The same one over another connection.
    pub(super) fn reopen(&mut self, stream: TcpStream) {
        self.frames.stream = stream;
        self.connect(true);
    }

    fn connect(&mut self, back: bool) {
        let answer = self
            .frames
            .shake_hands(self.server, self.session, back, MANAGEMENT);
        assert_eq!(answer, json!({"type": "ok"}));
    }

    /// What the server says of itself and where it runs.
    pub(super) fn environment(&mut self) -> Value {
        self.calls += 1;
        let call = json!([
            CALL,
            self.calls,
            "remoteextensionsenvironment",
            "getEnvironmentData"
        ]);
        let mut message = packed(&call);
        message.extend(packed(&json!({"remoteAuthority": "ssh-remote+ws"})));
        self.frames.send(REGULAR, &message);
        let answer = self.frames.next(REGULAR);
        let mut rest = answer.as_slice();
        assert_eq!(unpack(&mut rest), json!([RESULT, self.calls]));
        unpack(&mut rest)
    }
}

/// The server starts an extension host and hands it the connection.
pub(super) fn extension_host_starts(server: &Server, stream: TcpStream, session: &str) {
    let mut frames = Frames {
        stream,
        sent: 0,
        received: 0,
    };
    let answer = frames.shake_hands(server, session, false, EXTENSION_HOST);
    assert_eq!(answer, json!({}));
    assert_eq!(frames.next(REGULAR), READY);
}

/// Tags of values in messages.
const UNDEFINED: u8 = 0;
const STRING: u8 = 1;
const ARRAY: u8 = 4;
const OBJECT: u8 = 5;
const NUMBER: u8 = 6;

/// A value as it stands in a message: a tag, and a length or a number in groups of seven bits.
fn packed(value: &Value) -> Vec<u8> {
    let tagged = |tag: u8, mut number: u64| {
        let mut bytes = vec![tag];
        while number > 0x7f {
            bytes.push(0x80 | u8::try_from(number & 0x7f).expect("seven bits"));
            number >>= 7;
        }
        bytes.push(u8::try_from(number).expect("seven bits"));
        bytes
    };
    match value {
        Value::String(text) => {
            [tagged(STRING, text.len() as u64), text.clone().into_bytes()].concat()
        }
        Value::Number(number) => tagged(NUMBER, number.as_u64().expect("a natural number")),
        Value::Array(values) => {
            let mut bytes = tagged(ARRAY, values.len() as u64);
            bytes.extend(values.iter().flat_map(packed));
            bytes
        }
        other => {
            let text = other.to_string();
            [tagged(OBJECT, text.len() as u64), text.into_bytes()].concat()
        }
    }
}

/// The value that `bytes` begins with; they are left with what follows it.
fn unpack(bytes: &mut &[u8]) -> Value {
    let tag = take(bytes, 1)[0];
    if tag == UNDEFINED {
        return Value::Null;
    }
    let mut number = 0_u64;
    for shift in (0..).step_by(7) {
        let byte = take(bytes, 1)[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let length = usize::try_from(number).expect("a length");
    match tag {
        STRING => String::from_utf8_lossy(take(bytes, length)).into(),
        ARRAY => (0..number).map(|_| unpack(bytes)).collect(),
        OBJECT => serde_json::from_slice(take(bytes, length)).expect("JSON"),
        NUMBER => number.into(),
        tag => panic!("a value of type {tag}"),
    }
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}
