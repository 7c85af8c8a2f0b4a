//! Wrong input gets context, problem, remedy and the right exit status, and
//! changes nothing.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use serde_json::Value;
use vendetta_tests::{Finished, Gateway, TOOLS};

/// A command line that is wrong, what it gets on stdin, its exit status, and words of the answer.
type Case<'a> = (&'a str, &'a str, i32, &'a [&'a str]);

/// All that a command may have changed.
fn everything(gateway: &Gateway) -> (Value, Value, Value, Vec<String>) {
    let told = |line: &str| gateway.control(line).ok().json();
    (
        told("workspace list --json"),
        told("user list --json"),
        told("key list --json"),
        gateway.resources(),
    )
}

/// Each part of an error is there for programs.
fn is_whole(run: &Finished, code: i32) {
    let told: Value =
        serde_json::from_slice(&run.stderr).unwrap_or_else(|_| panic!("no JSON: {run}"));
    let error = &told["error"];
    assert_eq!(error["exit_code"], code, "{run}");
    let text = |field: &str| error[field].as_str().unwrap_or_default();
    for field in ["context", "problem"] {
        assert!(!text(field).is_empty(), "no {field}: {run}");
    }
    // Where the problem says what would be right, nothing is left to say.
    let said = [";", " between "]
        .iter()
        .any(|said| text("problem").contains(said));
    assert!(said || !text("remedy").is_empty(), "no remedy: {run}");
}

fn all_fail_and_change_nothing(gateway: &Gateway, cases: &[Case<'_>]) {
    let before = everything(gateway);
    for (line, stdin, code, words) in cases {
        let run = gateway.control(line).stdin(*stdin).finish();
        assert_eq!(run.code(), *code, "{run}");
        assert!(run.stdout.is_empty(), "an error belongs on stderr: {run}");
        for word in *words {
            assert!(
                run.error_text().contains(word),
                "{word:?} is not told: {run}"
            );
        }
        // A line that is no words has no options either.
        if !line.contains("'unclosed") {
            let json = format!("{line} --json");
            let run = gateway.control(&json).stdin(*stdin).finish();
            is_whole(&run.exits(*code), *code);
        }
    }
    assert_eq!(before, everything(gateway));
}

#[test]
fn a_wrong_project_config_is_told_with_line_column_and_the_key_that_was_meant() {
    let gateway = Gateway::docker();
    const CREATE: &str = "workspace create ws --config -";
    all_fail_and_change_nothing(
        &gateway,
        &[
            (CREATE, "", 2, &["image"]),
            (CREATE, "provider: docker\n", 2, &["image"]),
            (CREATE, "provider: dokcer\n", 2, &["1:11", "docker"]),
            (
                CREATE,
                "provider: docker\ndocker: {imaeg: x}\n",
                2,
                &["2:10", "imaeg", "image"],
            ),
            (CREATE, "provider: [docker\n", 2, &["config"]),
            (
                CREATE,
                "provider: docker\ndocker: {image: 'x y'}\n",
                2,
                &["x y"],
            ),
            (
                CREATE,
                "provider: docker\ndocker: {image: x}\nresources: {cpu: -1}\n",
                2,
                &["cpu"],
            ),
            (
                CREATE,
                "provider: docker\ndocker: {image: x}\nresources: {memory: lots}\n",
                2,
                &["3:", "memory"],
            ),
            (
                CREATE,
                "provider: docker\ndocker: {image: x}\nenv: [a, b]\n",
                2,
                &["env"],
            ),
            (
                CREATE,
                "provider: docker\ndocker: {image: x}\nenv: {'A=B': c}\n",
                2,
                &["A=B"],
            ),
            (
                CREATE,
                "name: other\nprovider: docker\ndocker: {image: x}\nname: twice\n",
                2,
                &["name"],
            ),
            (CREATE, "ports: [99999]\n", 2, &["1:9", "65535"]),
            (CREATE, "\u{0}\u{1}\u{2}", 2, &["config"]),
            (CREATE, &"a: &a [*a, *a]\n".repeat(100), 2, &["config"]),
            (CREATE, &"[".repeat(100_000), 2, &["config"]),
        ],
    );
}

#[test]
fn wrong_names_commands_and_keys_are_told() {
    let gateway = Gateway::docker();
    gateway.create(
        "ws",
        &format!("provider: docker\ndocker: {{image: \"{TOOLS}\"}}\n"),
    );
    let long = format!("workspace create {} --image x", "a".repeat(64));
    all_fail_and_change_nothing(
        &gateway,
        &[
            ("workspace create Upper --image x", "", 2, &["Upper"]),
            ("workspace create a_b --image x", "", 2, &["a_b"]),
            ("workspace create -a --image x", "", 2, &["-a"]),
            ("workspace create a- --image x", "", 2, &["a-"]),
            ("workspace create ../x --image x", "", 2, &["../x"]),
            (&long, "", 2, &["63"]),
            ("workspace create ws --image x", "", 4, &["ws"]),
            (
                "workspace create new --image 'UPPER CASE'",
                "",
                2,
                &["UPPER CASE"],
            ),
            (
                "workspace create new --image x --cpu none",
                "",
                2,
                &["none"],
            ),
            ("workspace create new --config /etc/passwd", "", 2, &["-"]),
            ("workspace up wss", "", 3, &["wss", "ws"]),
            (
                "workspace status nothing-like-it",
                "",
                3,
                &["nothing-like-it"],
            ),
            ("workspace destroy ws", "", 2, &["--yes"]),
            ("workspace exec ws", "", 2, &["COMMAND"]),
            ("workspace upp ws", "", 2, &["upp", "up"]),
            ("workspace list --jsn", "", 2, &["--jsn", "--json"]),
            ("workspace logs ws --tail many", "", 2, &["many"]),
            ("no-such-command", "", 2, &["no-such-command"]),
            ("workspace list 'unclosed", "", 2, &["quot"]),
            ("user add alice --key -", "not a key", 2, &["key"]),
            ("user add alice --key -", "", 2, &["key"]),
            (
                "user add alice --key -",
                "-----BEGIN OPENSSH PRIVATE KEY-----\n",
                2,
                &["private"],
            ),
            ("user add Alice", "", 2, &["Alice"]),
            ("user add alice --role king", "", 2, &["king", "admin"]),
            ("user remove nobody --yes", "", 3, &["nobody"]),
            ("key add --user nobody", "x", 3, &["nobody"]),
            ("key remove SHA256:none", "", 3, &["SHA256:none"]),
        ],
    );
    let run = gateway
        .ssh("vendetta")
        .arg(OsStr::from_bytes(b"workspace list \xff\xfe"))
        .finish();
    assert_eq!(run.code(), 2, "{run}");
    gateway.control("workspace status ws").ok();
}

/// What an engine that speaks API `version` says to every question.
fn engine_of(version: &str, socket: &Path) {
    let listener = UnixListener::bind(socket).expect("a socket");
    let body = format!(r#"{{"Version":"19.03","ApiVersion":"{version}","MinAPIVersion":"1.12"}}"#);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines();
            while lines
                .next()
                .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
            {}
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
            let length = body.len();
            // Whoever asked may be gone.
            let _ = write!(&stream, "{head}\r\nContent-Length: {length}\r\n\r\n{body}");
        }
    });
}

#[test]
fn an_engine_with_an_older_api_than_serves_is_told_and_what_to_install() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("docker.sock");
    engine_of("1.40", &socket);
    let config = format!("[docker]\nsocket = \"{}\"\n", socket.display());
    let gateway = Gateway::builder().config(&config).start();
    gateway.create("ws", "provider: docker\ndocker: {image: x}\n");
    let run = gateway.control("workspace up ws").finish().exits(5);
    for word in ["1.40", "1.41", "20.10"] {
        assert!(run.error_text().contains(word), "{run}");
    }
}
