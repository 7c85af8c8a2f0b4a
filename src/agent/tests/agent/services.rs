//! Services: their order, health, crashes and ends, their logs, what they and
//! others are told of them, and the gateway's questions.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use vendetta_proto::ServiceName;
use vendetta_proto::agent::AgentConfig;
use vendetta_proto::rpc::{
    Answer, ListeningPort, LogLine, Request, ServiceState, ServiceStatus, Settled, Stream,
};
use vendetta_proto::spec::{HealthCheck, Probe, Restart, Service};

use crate::fixture::{Agent, Watch, first_line, is_root, lives, wait_until};

fn name(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn names(list: &[&str]) -> BTreeSet<ServiceName> {
    list.iter().map(|one| name(one)).collect()
}

fn service(command: &str) -> Service {
    Service {
        command: command.to_owned(),
        ..Service::default()
    }
}

fn after(dependencies: &[&str], service: Service) -> Service {
    Service {
        depends_on: dependencies.iter().map(|one| name(one)).collect(),
        ..service
    }
}

fn checked(probe: Probe, service: Service) -> Service {
    let health_check = Some(HealthCheck {
        probe,
        interval: Some("1s".parse().unwrap()),
        timeout: Some("2s".parse().unwrap()),
        retries: Some(2),
        start_period: None,
    });
    Service {
        health_check,
        ..service
    }
}

/// An agent whose services work in the agent's own folder.
fn start(services: impl IntoIterator<Item = (&'static str, Service)>) -> Agent {
    let services: BTreeMap<ServiceName, Service> = services
        .into_iter()
        .map(|(one, service)| (name(one), service))
        .collect();
    Agent::configured(|config| {
        config.workdir = config.listen.parent().map(Path::to_owned);
        config.services = services;
    })
}

/// Asks for a change and gives the last statuses, when it is done.
fn change(agent: &Agent, request: &Request) -> BTreeMap<String, ServiceStatus> {
    let mut answers = agent.ask(request);
    assert_eq!(answers.pop(), Some(Answer::Done), "{answers:?}");
    by_name(answers.pop())
}

fn by_name(answer: Option<Answer>) -> BTreeMap<String, ServiceStatus> {
    let Some(Answer::Services { services }) = answer else {
        panic!("{answer:?} is no list of services");
    };
    services
        .into_iter()
        .map(|status| (status.name.to_string(), status))
        .collect()
}

fn start_all(agent: &Agent) -> BTreeMap<String, ServiceStatus> {
    let services = BTreeSet::new();
    change(agent, &Request::Start { services })
}

fn stop_all(agent: &Agent) -> BTreeMap<String, ServiceStatus> {
    let services = BTreeSet::new();
    change(agent, &Request::Stop { services })
}

fn statuses(agent: &Agent) -> BTreeMap<String, ServiceStatus> {
    by_name(agent.ask(&Request::Services { follow: false }).pop())
}

fn logs(agent: &Agent, services: &[&str], tail: Option<u32>, since: Option<u64>) -> Vec<LogLine> {
    let answers = agent.ask(&Request::Logs {
        services: names(services),
        follow: false,
        tail,
        since,
    });
    answers.into_iter().map(line).collect()
}

fn line(answer: Answer) -> LogLine {
    match answer {
        Answer::Log(line) => line,
        other => panic!("{other:?} is no line of a log"),
    }
}

/// The lines of a log as "service: text", without what a process wrote.
fn told(agent: &Agent, services: &[&str]) -> Vec<String> {
    let lines = logs(agent, services, None, None).into_iter();
    lines
        .filter(|line| line.stream == Stream::Supervisor)
        .map(|line| format!("{}: {}", line.service, line.text))
        .collect()
}

fn place(lines: &[String], beginning: &str) -> usize {
    lines
        .iter()
        .position(|line| line.starts_with(beginning))
        .unwrap_or_else(|| panic!("{beginning} is not in {lines:#?}"))
}

/// A service that writes its name into `order` when it is asked to end, from when it is
/// [`ready`].
fn tells_its_end(name: &str) -> Service {
    service(&format!(
        "trap 'echo {name} >>order; exit 0' TERM; echo >ready-{name}; while :; do sleep 0.05; done"
    ))
}

/// Waits until those services have set their traps.
fn ready(agent: &Agent, services: &[&str]) {
    wait_until("their traps are set", || {
        let mut files = services.iter();
        files.all(|name| agent.path(&format!("ready-{name}")).exists())
    });
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A service that answers each connection to `port` with the file `answer`.
fn answering(port: u16) -> Service {
    Service {
        port: Some(port),
        ..service(&format!(
            // Not before it was asked: socat gives up when nobody takes the question.
            "exec socat TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr SYSTEM:'read -r line; cat answer'"
        ))
    }
}

#[test]
fn a_chain_starts_in_order_and_each_waits_for_the_health_of_the_one_before() {
    let ready = |file: &str| Probe::Command(format!("test -f {file}"));
    let slow = |file: &str| service(&format!("sleep 0.7; touch {file}; exec sleep 300"));
    let job = Service {
        restart: Some(Restart::No),
        ..service("sleep 1; echo migrated")
    };
    let agent = start([
        ("web", after(&["api"], service("exec sleep 300"))),
        (
            "api",
            after(&["db", "migrate"], checked(ready("api"), slow("api"))),
        ),
        ("db", checked(ready("db"), slow("db"))),
        ("migrate", after(&["db"], job)),
    ]);
    assert!(
        statuses(&agent)
            .values()
            .all(|status| status.state == ServiceState::Stopped)
    );
    let after = start_all(&agent);
    assert!(after.values().all(|status| status.settled == Settled::Well));
    assert_eq!(after["web"].state, ServiceState::Healthy);
    assert_eq!(after["migrate"].state, ServiceState::Exited);
    assert_eq!(after["migrate"].ended.as_deref(), Some("exit status 0"));
    let told = told(&agent, &[]);
    let order = [
        "db: started",
        "db: healthy",
        "migrate: started",
        "migrate: ended: exit status 0",
        "api: started",
        "api: healthy",
        "web: started",
    ];
    let places: Vec<usize> = order.iter().map(|line| place(&told, line)).collect();
    assert!(places.is_sorted(), "{told:#?}");

    // All run, so there is nothing to do, and nothing is done.
    let answers = agent.ask(&Request::Start {
        services: BTreeSet::new(),
    });
    assert_eq!(answers.len(), 2, "{answers:?}");
    assert_eq!(by_name(answers.into_iter().next()), after);
}

#[test]
fn a_failing_check_settles_badly_and_the_log_says_why() {
    let broken = service("echo about to fail; echo oops >&2; exec sleep 300");
    let probe = Probe::Command("echo no disk; exit 3".to_owned());
    let agent = start([
        ("db", checked(probe, broken)),
        ("web", after(&["db"], service("exec sleep 300"))),
    ]);
    let after = start_all(&agent);
    assert_eq!(
        (after["db"].state, after["db"].settled),
        (ServiceState::Unhealthy, Settled::Badly)
    );
    assert_eq!(
        after["db"].reason.as_deref(),
        Some("the check ended with exit status 3: no disk")
    );
    assert_eq!(
        (after["web"].state, after["web"].settled),
        (ServiceState::Waiting, Settled::Badly)
    );
    assert_eq!(
        after["web"].reason.as_deref(),
        Some("waits for db (unhealthy)")
    );
    let lines = logs(&agent, &["db"], Some(20), None);
    let has = |stream, text: &str| {
        let same = |line: &&LogLine| line.stream == stream && line.text == text;
        lines.iter().find(same).is_some()
    };
    assert!(has(Stream::Stdout, "about to fail"), "{lines:#?}");
    assert!(has(Stream::Stderr, "oops"), "{lines:#?}");
    let reason = "unhealthy: the check ended with exit status 3: no disk";
    assert!(has(Stream::Supervisor, reason), "{lines:#?}");
}

#[test]
fn http_and_tcp_checks_ask_the_port() {
    let (http, tcp) = (free_port(), free_port());
    let agent = start([
        (
            "web",
            checked(Probe::Http("/up".to_owned()), answering(http)),
        ),
        ("db", checked(Probe::Tcp(tcp), answering(tcp))),
    ]);
    std::fs::write(agent.path("answer"), "HTTP/1.1 503 Busy\r\n\r\n").unwrap();
    let after = start_all(&agent);
    assert_eq!(after["db"].state, ServiceState::Healthy);
    assert_eq!(after["web"].state, ServiceState::Unhealthy);
    let reason = format!("GET /up on port {http}: answered 503");
    assert_eq!(after["web"].reason.as_ref(), Some(&reason));
    std::fs::write(agent.path("answer"), "HTTP/1.1 204 None\r\n\r\n").unwrap();
    wait_until("it is healthy again", || {
        statuses(&agent)["web"].state == ServiceState::Healthy
    });
}

#[test]
fn a_check_takes_the_answer_to_its_end_so_that_no_service_sees_a_reset() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut request = [0; 4096];
        let _ = stream.read(&mut request)?;
        stream.write_all(b"HTTP/1.0 404 Not Found\r\n")?;
        // After the status is known.
        std::thread::sleep(Duration::from_millis(50));
        stream.write_all(b"\r\n")?;
        for _ in 0..64 {
            stream.write_all(&[b'x'; 16 * 1024])?;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read(&mut request)
    });
    let web = Service {
        port: Some(port),
        ..service("exec sleep 300")
    };
    let agent = start([("web", checked(Probe::Http("/".to_owned()), web))]);
    let after = start_all(&agent);
    assert_eq!(after["web"].state, ServiceState::Unhealthy);
    assert_eq!(served.join().unwrap().unwrap(), 0, "closed, and not reset");
}

#[test]
fn a_check_that_hangs_is_killed_with_all_it_started() {
    let probe = Probe::Command("sleep 300 & echo $! >hangs; wait".to_owned());
    let agent = start([("db", checked(probe, service("exec sleep 300")))]);
    let after = start_all(&agent);
    assert_eq!(after["db"].state, ServiceState::Unhealthy);
    assert_eq!(
        after["db"].reason.as_deref(),
        Some("the check did not end within 2s")
    );
    stop_all(&agent);
    let pid = std::fs::read_to_string(agent.path("hangs")).unwrap();
    wait_until("what the check started is gone", || !lives(&pid));
}

#[test]
fn one_that_crashed_comes_back_and_its_dependants_run_on_and_are_told() {
    let agent = start([
        ("db", service("exec sleep 300")),
        ("web", after(&["db"], service("exec sleep 300"))),
    ]);
    let before = start_all(&agent);
    let pid = before["db"].pid.unwrap();
    let mut watch = agent.watch(&Request::Services { follow: true });
    assert_eq!(by_name(watch.next()), before);
    agent.text(&format!("kill -SEGV {pid}"));
    let crashed = by_name(watch.next());
    assert_eq!(crashed["db"].state, ServiceState::BackingOff);
    assert_eq!(crashed["db"].ended.as_deref(), Some("killed by SIGSEGV"));
    assert!(crashed["db"].next_start.is_some());
    assert_eq!(
        crashed["web"].reason.as_deref(),
        Some("runs without what it depends on: db (backing-off)")
    );
    let mut back = crashed;
    while back["db"].settled != Settled::Well {
        back = by_name(watch.next());
    }
    assert_eq!(back["db"].state, ServiceState::Healthy);
    assert_eq!(back["db"].restarts, 1);
    assert_ne!(back["db"].pid, Some(pid));
    assert_eq!(back["web"].pid, before["web"].pid);
    assert_eq!(back["web"].reason, None);
    let told = told(&agent, &["web"]);
    let lost = place(&told, "web: db, which it depends on, is backing-off");
    let again = place(&told, "web: db, which it depends on, is healthy again");
    assert!(lost < again);
}

#[test]
fn one_that_crashes_over_and_over_is_settled_badly() {
    let once = |service| Service {
        restart: Some(Restart::No),
        ..service
    };
    let agent = start([
        ("loop", service("echo try; exit 7")),
        ("once", once(service("exit 7"))),
        ("absent", once(service("no-such-program-anywhere"))),
        (
            "nowhere",
            once(Service {
                working_dir: Some("no-such-folder".to_owned()),
                ..service("true")
            }),
        ),
    ]);
    let after = start_all(&agent);
    assert!(
        after
            .values()
            .all(|status| status.settled == Settled::Badly)
    );
    let crashing = &after["loop"];
    assert_eq!(crashing.ended.as_deref(), Some("exit status 7"));
    let reason = crashing.reason.as_deref().unwrap();
    let times = reason
        .strip_prefix("it ended ")
        .and_then(|rest| rest.strip_suffix(" times in a row"));
    assert!(
        times.is_some_and(|times| times.parse::<u32>().unwrap() >= 3),
        "{reason}"
    );
    assert_eq!(after["once"].state, ServiceState::Failed);
    assert_eq!(
        after["absent"].ended.as_deref(),
        Some("exit status 127 (the command was not found)")
    );
    let reason = after["nowhere"].reason.as_ref().unwrap();
    assert!(reason.contains("no-such-folder does not exist"), "{reason}");
    // It is tried on.
    wait_until("it is tried a fifth time", || {
        statuses(&agent)["loop"].restarts >= 4
    });
    // After a stop it is not.
    let stopped = stop_all(&agent);
    assert!(
        stopped
            .values()
            .all(|status| status.state == ServiceState::Stopped && status.settled == Settled::Well)
    );
}

#[test]
fn a_stop_goes_from_dependants_to_dependencies() {
    let agent = start([
        ("db", tells_its_end("db")),
        ("api", after(&["db"], tells_its_end("api"))),
        ("web", after(&["api"], tells_its_end("web"))),
        ("other", tells_its_end("other")),
    ]);
    start_all(&agent);
    ready(&agent, &["db", "api", "web", "other"]);
    let services = names(&["db"]);
    let after = change(&agent, &Request::Stop { services });
    assert_eq!(after["db"].state, ServiceState::Stopped);
    assert_eq!(after["other"].state, ServiceState::Healthy);
    let order = || std::fs::read_to_string(agent.path("order")).unwrap();
    assert_eq!(order(), "web\napi\ndb\n");
}

#[test]
fn the_agent_stops_services_in_order_and_leaves_nothing() {
    let stubborn =
        service("trap '' TERM; echo $$ >stubborn; echo >ready-slow; while :; do sleep 0.05; done");
    let mut agent = start([
        ("db", tells_its_end("db")),
        ("web", after(&["db"], tells_its_end("web"))),
        ("slow", stubborn),
    ]);
    start_all(&agent);
    ready(&agent, &["db", "web", "slow"]);
    agent.terminate();
    assert!(agent.process.wait().unwrap().success());
    let order = std::fs::read_to_string(agent.path("order")).unwrap();
    assert_eq!(order, "web\ndb\n");
    let pid = std::fs::read_to_string(agent.path("stubborn")).unwrap();
    assert!(!lives(&pid));
}

#[test]
fn a_stop_ends_the_group_and_whatever_else_stems_from_the_service() {
    let command = "\
        sh -c 'trap \"\" TERM; echo $$ >deaf; while :; do sleep 0.05; done' & \
        setsid sh -c 'echo $$ >outside; exec sleep 300' & \
        trap 'exit 0' TERM; \
        while :; do sleep 0.05; done";
    let family = Service {
        stop_grace_period: Some("1s".parse().unwrap()),
        ..service(command)
    };
    let agent = start([
        ("family", family),
        ("daemon", service("sleep 300 & echo $! >left")),
    ]);
    let after = start_all(&agent);
    assert_eq!(after["daemon"].state, ServiceState::Exited);
    wait_until("all have begun", || {
        ["deaf", "outside", "left"]
            .iter()
            .all(|file| std::fs::read_to_string(agent.path(file)).is_ok_and(|pid| lives(&pid)))
    });
    let after = stop_all(&agent);
    assert!(
        after
            .values()
            .all(|status| status.state == ServiceState::Stopped)
    );
    for file in ["deaf", "outside", "left"] {
        let pid = std::fs::read_to_string(agent.path(file)).unwrap();
        assert!(!lives(&pid), "{file} still lives");
    }
    let told = told(&agent, &["family"]);
    place(&told, "family: killed: it did not end within 1s");
}

#[test]
fn a_crash_takes_the_rest_of_the_group_with_it() {
    let agent = start([("family", service("sleep 300 & echo $! >>children; wait"))]);
    let before = start_all(&agent);
    let pid = before["family"].pid.unwrap();
    agent.text(&format!("kill -KILL {pid}"));
    let children = || std::fs::read_to_string(agent.path("children")).unwrap();
    wait_until("it runs again", || children().lines().count() == 2);
    let children = children();
    let (first, second) = children.trim_end().split_once('\n').unwrap();
    assert!(!lives(first));
    assert!(lives(second));
}

#[test]
fn a_restart_is_another_process_and_the_stop_signal_is_its_own() {
    let polite = Service {
        stop_signal: Some("SIGQUIT".to_owned()),
        ..service(
            "trap 'echo goodbye; exit 0' QUIT; trap '' TERM; echo >ready-db; while :; do sleep 0.05; done",
        )
    };
    let agent = start([
        ("db", polite),
        ("web", after(&["db"], service("exec sleep 300"))),
    ]);
    let before = start_all(&agent);
    ready(&agent, &["db"]);
    let services = names(&["db"]);
    let after = change(&agent, &Request::Restart { services });
    assert_eq!(after["db"].state, ServiceState::Healthy);
    assert_eq!(after["db"].restarts, 0);
    assert_ne!(after["db"].pid, before["db"].pid);
    assert_eq!(after["web"].pid, before["web"].pid);
    let lines = logs(&agent, &["db"], None, None);
    assert!(
        lines.iter().any(|line| line.text == "goodbye"),
        "{lines:#?}"
    );
}

#[test]
fn a_burst_loses_no_line_and_keeps_their_order() {
    let agent = start([(
        "loud",
        service("seq 1 10000; printf 'no end'; exec sleep 0.1"),
    )]);
    let mut watch = agent.watch(&Request::Logs {
        services: BTreeSet::new(),
        follow: true,
        // All of it: the first lines may be there before the question is.
        tail: None,
        since: None,
    });
    start_all(&agent);
    let mut found = Vec::new();
    while found.last().is_none_or(|last| last != "no end") {
        let line = line(watch.next().unwrap());
        if line.stream == Stream::Stdout {
            found.push(line.text);
        }
    }
    let expected: Vec<String> = (1..=10_000).map(|number| number.to_string()).collect();
    assert_eq!(found[..10_000], expected);
    assert_eq!(found.len(), 10_001);
}

#[test]
fn a_follower_goes_on_over_rotations() {
    // With their time the lines are 90 bytes: some 9 MB, in 3 files.
    let loud = service("seq -f '%073g' 1 100000; echo done; exec sleep 300");
    let agent = start([("loud", loud)]);
    let mut watch = agent.watch(&Request::Logs {
        services: names(&["loud"]),
        follow: true,
        tail: None,
        since: None,
    });
    start_all(&agent);
    // It takes its time at first: the writer must not wait for it.
    wait_until("all is written", || {
        let last = logs(&agent, &["loud"], Some(1), None).pop();
        last.is_some_and(|line| line.text == "done")
    });
    let files = std::fs::read_dir(agent.path("log").join("loud")).unwrap();
    let is_log = |name: &std::ffi::OsString| name.to_string_lossy().ends_with(".log");
    let names = files.map(|file| file.unwrap().file_name());
    assert_eq!(names.filter(is_log).count(), 3);
    let mut last = 0;
    loop {
        let line = line(watch.next().unwrap());
        match (line.stream, line.text.as_str()) {
            (Stream::Supervisor, _) => {}
            (_, "done") => break,
            (_, number) => {
                let number: u32 = number.trim_start_matches('0').parse().unwrap();
                assert_eq!(number, last + 1);
                last = number;
            }
        }
    }
    assert_eq!(last, 100_000);
}

#[test]
fn logs_outlive_the_agent_and_can_be_read_by_tail_and_time() {
    let mut agent = start([
        (
            "a",
            service(
                "echo one; touch one; until [ -e between ]; do sleep 0.05; done; echo two >&2; exec sleep 300",
            ),
        ),
        (
            "b",
            service(
                "until [ -e one ]; do sleep 0.05; done; sleep 0.2; echo between; sleep 0.2; touch between; exec sleep 300",
            ),
        ),
    ]);
    let after = start_all(&agent);
    wait_until("all is written", || {
        let lines = logs(&agent, &[], None, None);
        ["two", "between"]
            .iter()
            .all(|text| lines.iter().any(|line| line.text == *text))
    });
    let written: Vec<LogLine> = logs(&agent, &[], None, None)
        .into_iter()
        .filter(|line| line.stream != Stream::Supervisor)
        .collect();
    let texts: Vec<&str> = written.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(texts, ["one", "between", "two"]);
    assert_eq!(written[2].stream, Stream::Stderr);
    let since = logs(&agent, &["a"], None, Some(written[1].time));
    assert_eq!(since, written[2..]);
    assert_eq!(logs(&agent, &[], Some(2), None), written[1..]);

    agent.process.kill().unwrap();
    agent.process.wait().unwrap();
    // As if it had been killed while it wrote.
    let file = agent.path("log").join("a").join("0000000001.log");
    let mut torn = std::fs::read(&file).unwrap();
    torn.extend_from_slice(b"17600000");
    std::fs::write(&file, torn).unwrap();
    agent.restart();
    for status in after.values() {
        let pid = status.pid.unwrap().to_string();
        wait_until("what the killed agent left is gone", || !lives(&pid));
    }
    start_all(&agent);
    wait_until("both of its lives are in the log", || {
        let lines = logs(&agent, &["a"], None, None);
        let texts = lines.iter().filter(|line| line.stream == Stream::Stdout);
        texts.map(|line| line.text.as_str()).eq(["one", "one"])
    });
    assert_eq!(statuses(&agent)["a"].state, ServiceState::Healthy);
}

#[test]
fn every_process_is_told_of_the_services_and_clients_cannot_change_that() {
    let agent = Agent::configured(|config| {
        let show = service("env | grep ^VENDETTA; exec sleep 300");
        let web = Service {
            port: Some(8080),
            health_check: None,
            env: [("VENDETTA_WORKSPACE".to_owned(), "forged".to_owned())].into(),
            ..show
        };
        let api = Service {
            port: Some(9090),
            health_check: serde_json::from_str("\"/up\"").unwrap(),
            ..service("true")
        };
        config.services = [(name("web-app"), web), (name("api"), api)].into();
        config.host_ports = [(name("web-app"), 20001)].into();
    });
    let expected = [
        "VENDETTA_SERVICE_API_PORT=9090",
        "VENDETTA_SERVICE_API_URL=http://127.0.0.1:9090",
        "VENDETTA_SERVICE_WEB_APP_HOST_PORT=20001",
        "VENDETTA_SERVICE_WEB_APP_PORT=8080",
        "VENDETTA_SERVICE_WEB_APP_URL=tcp://127.0.0.1:8080",
        "VENDETTA_WORKSPACE=demo",
    ];
    let session = agent
        .ssh()
        .args(["-o", "SetEnv=VENDETTA_SERVICE_API_PORT=1", "ws"])
        .arg("env | grep ^VENDETTA | sort")
        .output()
        .unwrap();
    let text = String::from_utf8(session.stdout).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    let services = names(&["web-app"]);
    change(&agent, &Request::Start { services });
    wait_until("the service has said all", || {
        let lines = logs(&agent, &["web-app"], None, None);
        let mut texts: Vec<String> = lines
            .into_iter()
            .filter(|line| line.stream == Stream::Stdout)
            .map(|line| line.text)
            .collect();
        texts.sort();
        texts == expected
    });
}

#[test]
fn a_service_runs_as_its_user_in_its_directory_with_its_variables() {
    if !is_root() {
        return;
    }
    let show = Service {
        user: Some("nobody".to_owned()),
        working_dir: Some("/usr/share".to_owned()),
        env: [("FROM_WORKSPACE".to_owned(), "no".to_owned())].into(),
        ..service(
            "id -un; pwd; echo $FROM_WORKSPACE $USER; echo ${SSH_CONNECTION-none}; exec sleep 300",
        )
    };
    let absent = Service {
        user: Some("nobody-at-all".to_owned()),
        restart: Some(Restart::No),
        ..service("true")
    };
    let agent = start([("show", show), ("absent", absent)]);
    let after = start_all(&agent);
    assert_eq!(after["absent"].state, ServiceState::Failed);
    let reason = after["absent"].reason.as_ref().unwrap();
    assert!(reason.contains("no user nobody-at-all"), "{reason}");
    wait_until("it has said all", || {
        let lines = logs(&agent, &["show"], None, None);
        let texts: Vec<String> = lines
            .into_iter()
            .filter(|line| line.stream == Stream::Stdout)
            .map(|line| line.text)
            .collect();
        texts == ["nobody", "/usr/share", "no nobody", "none"]
    });
}

#[test]
fn what_is_asked_wrongly_is_answered_with_what_is_wrong() {
    let agent = start([("database", service("exec sleep 300"))]);
    let error = |line: &str| match agent.ask_raw(line).as_slice() {
        [Answer::Error { problem, not_found }] => (problem.clone(), *not_found),
        other => panic!("{other:?}"),
    };
    for line in ["nonsense", "", "{}", r#"{"request":"explode"}"#] {
        let (problem, not_found) = error(line);
        assert!(problem.contains("request"), "{line}: {problem}");
        assert!(!not_found);
    }
    let (problem, not_found) = error(r#"{"request":"start","services":["databse"]}"#);
    assert_eq!(
        problem,
        "there is no service databse here; did you mean database?"
    );
    assert!(not_found);
    let logs = r#"{"request":"logs","services":["x"],"follow":true,"tail":null,"since":null}"#;
    assert_eq!(
        error(logs),
        (
            "there is no service x here; there are database".to_owned(),
            true
        )
    );
    let long = format!(r#"{{"request":"mark","mark":"{}"}}"#, "x".repeat(1 << 21));
    assert!(error(&long).0.contains("at most 1048576 bytes"));
    assert_eq!(agent.text("echo alive"), "alive\n");
}

#[test]
fn marks_are_remembered_until_the_agent_ends() {
    let mut agent = start([]);
    let mark = || Request::Mark {
        mark: "up hook".to_owned(),
    };
    let is_marked = || Request::IsMarked {
        mark: "up hook".to_owned(),
    };
    let before = |before| vec![Answer::Marked { before }];
    assert_eq!(agent.ask(&is_marked()), before(false));
    assert_eq!(agent.ask(&mark()), before(false));
    assert_eq!(agent.ask(&mark()), before(true));
    assert_eq!(agent.ask(&is_marked()), before(true));
    agent.terminate();
    agent.process.wait().unwrap();
    agent.restart();
    assert_eq!(agent.ask(&is_marked()), before(false));
}

#[test]
fn a_forward_to_a_services_name_leads_to_it() {
    let port = free_port();
    let agent = start([("db", checked(Probe::Tcp(port), answering(port)))]);
    std::fs::write(agent.path("answer"), "hello\n").unwrap();
    start_all(&agent);
    for host in ["db", "DB", "localhost"] {
        let mut client = agent
            .ssh()
            .args(["-W", &format!("{host}:{port}"), "ws"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(first_line(&mut client), "hello", "{host}");
        let _ = client.kill();
        client.wait().unwrap();
    }
}

fn ports(watch: &mut Watch) -> Vec<ListeningPort> {
    match watch.next() {
        Some(Answer::Ports { ports }) => ports,
        other => panic!("{other:?}"),
    }
}

#[test]
fn ports_of_the_environment_are_listed_and_followed() {
    // Somebody else's port of the same machine.
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, second) = (free_port(), free_port());
    let agent = start([("db", checked(Probe::Tcp(port), answering(port)))]);
    std::fs::write(agent.path("answer"), "").unwrap();
    let mut watch = agent.watch(&Request::Ports { follow: true });
    assert_eq!(ports(&mut watch), []);
    start_all(&agent);
    let found = ports(&mut watch);
    assert_eq!(found.len(), 1, "{found:?}, not {foreign:?}");
    assert_eq!(
        (found[0].port, found[0].address.as_str()),
        (port, "127.0.0.1")
    );
    assert_eq!(found[0].program.as_deref(), Some("socat"));
    assert_eq!(found[0].service, Some(name("db")));
    assert!(found[0].pid.is_some());
    let mut client = agent
        .ssh()
        .arg("ws")
        .arg(format!("exec socat TCP-LISTEN:{second},bind=127.0.0.1 -"))
        .spawn()
        .unwrap();
    let other = loop {
        let mut found = ports(&mut watch).into_iter();
        if let Some(other) = found.find(|found| found.port == second) {
            break other;
        }
    };
    assert_eq!(other.service, None);
    stop_all(&agent);
    let mut found = ports(&mut watch);
    while found.iter().any(|found| found.port == port) {
        found = ports(&mut watch);
    }
    client.kill().unwrap();
    client.wait().unwrap();
}

#[test]
fn where_the_network_is_its_own_whatever_listens_is_listed() {
    // As a system's own daemon: no descendant of the agent.
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = foreign.local_addr().unwrap().port();
    let agent = Agent::configured(|config| config.own_network = true);
    let found = ports(&mut agent.watch(&Request::Ports { follow: false }));
    let other = found.iter().find(|found| found.port == port).unwrap();
    assert_eq!(other.pid, Some(std::process::id()));
    assert_eq!(other.service, None);
}

#[test]
fn many_watchers_see_the_same_and_one_that_does_not_read_holds_up_nobody() {
    let loud = service("while :; do echo 'a line that is long enough to fill something'; done");
    let agent = start([("loud", loud), ("db", service("exec sleep 300"))]);
    let deaf = agent.watch(&Request::Logs {
        services: BTreeSet::new(),
        follow: true,
        tail: None,
        since: None,
    });
    let request = Request::Services { follow: true };
    let mut watches: Vec<Watch> = (0..8).map(|_| agent.watch(&request)).collect();
    let after = start_all(&agent);
    assert_eq!(after["db"].state, ServiceState::Healthy);
    for watch in &mut watches {
        while by_name(watch.next()) != after {}
    }
    let services = names(&["loud"]);
    let stopped = change(&agent, &Request::Stop { services });
    assert_eq!(stopped["loud"].state, ServiceState::Stopped);
    for watch in &mut watches {
        while by_name(watch.next())["loud"].state != ServiceState::Stopped {}
    }
    drop(deaf);
}

#[test]
fn what_cannot_be_looked_after_is_refused_at_the_start() {
    let refused = |change: &dyn Fn(&mut AgentConfig)| {
        let agent = start([]);
        let mut config: AgentConfig =
            serde_json::from_slice(&std::fs::read(agent.path("agent.json")).unwrap()).unwrap();
        change(&mut config);
        let file = agent.path("wrong.json");
        std::fs::write(&file, serde_json::to_vec(&config).unwrap()).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_vendetta-agent"))
            .args(["serve", "--config"])
            .arg(file)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let text = refused(&|config| {
        let on = |other: &str| after(&[other], service("true"));
        config.services = [(name("web"), on("api")), (name("api"), on("web"))].into();
    });
    assert!(text.contains("api -> web -> api"), "{text}");
    let text = refused(&|config| {
        let wrong = Service {
            stop_signal: Some("SIGNOTHING".to_owned()),
            ..service("true")
        };
        config.services = [(name("web"), wrong)].into();
    });
    assert!(text.contains("\"SIGNOTHING\" is not a signal"), "{text}");
}
