//! Services: what `workspace up` does beyond the environment, with real servers
//! (Redis, nginx, and an API between them).

use std::time::{Duration, Instant};

use vendetta_tests::{Gateway, TOOLS, eventually, free_port};

/// An API in front of Redis, in Python: /health says whether Redis answers,
/// everything else counts.
const API: &str = r#"
import http.server, os, socket
def redis(line):
    with socket.create_connection(("127.0.0.1", int(os.environ["VENDETTA_SERVICE_DB_PORT"])), 2) as peer:
        peer.sendall(line.encode() + b"\r\n")
        return peer.recv(100).decode().strip()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            body = redis("PING") if self.path == "/health" else "count " + redis("INCR hits")
            self.send_response(200)
        except OSError as error:
            body = str(error)
            self.send_response(503)
        self.end_headers()
        self.wfile.write(body.encode() + b"\n")
print("api listens", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"#;

const NGINX: &str = "daemon off; pid /tmp/nginx.pid; error_log stderr; events {}
http { access_log /dev/stdout; client_body_temp_path /tmp/a; proxy_temp_path /tmp/b; fastcgi_temp_path /tmp/c;
 uwsgi_temp_path /tmp/d; scgi_temp_path /tmp/e;
 server { listen 127.0.0.1:80; location / { proxy_pass http://127.0.0.1:8000; } } }";

/// db → api → web.
fn chain() -> String {
    format!(
        "provider: docker
docker: {{image: \"{TOOLS}\"}}
hooks: {{create: \"test -e /workspace/api.py\"}}
services:
  web:
    command: exec nginx -c /workspace/nginx.conf
    port: 80
    health_check: /health
    depends_on: [api]
    stop_signal: SIGQUIT
  api:
    command: exec python3 /workspace/api.py
    port: 8000
    health_check: /health
    depends_on: [db]
    restart: always
  db:
    command: exec redis-server --port 6379 --bind 127.0.0.1 --save ''
    port: 6379
    health_check: {{tcp: 6379}}
"
    )
}

/// A gateway with the workspace `ws` of [`chain`], its files in place.
fn gateway_with_chain() -> Gateway {
    let gateway = Gateway::docker();
    gateway.create("ws", &chain());
    // The create hook fails until the files are there, and so lets us in.
    gateway.control("workspace up ws").finish().exits(5);
    gateway.put("ws", "/workspace/api.py", API);
    gateway.put("ws", "/workspace/nginx.conf", NGINX);
    gateway
}

fn services(gateway: &Gateway) -> serde_json::Value {
    let listed = gateway.control("workspace services ws --json").ok().json();
    listed["services"].clone()
}

fn service(gateway: &Gateway, name: &str) -> serde_json::Value {
    let all = services(gateway);
    let all = all.as_array().expect("a list");
    let found = all.iter().find(|service| service["name"] == name);
    found.expect("the service").clone()
}

#[test]
fn a_chain_comes_up_in_order_and_is_reached_from_everywhere() {
    let gateway = gateway_with_chain();
    let up = gateway.control("workspace up ws").ok();
    for word in [
        "db",
        "api",
        "web",
        "healthy",
        "Environment started, services ready. Connect with: ssh",
    ] {
        assert!(up.text().contains(word), "{word}: {up}");
    }
    // In order: each was healthy before the next one started.
    let log = gateway.control("workspace logs ws --json").ok();
    let lines: Vec<serde_json::Value> = log
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let time = |name: &str, word: &str| {
        let line = lines.iter().find(|line| {
            line["service"] == name
                && line["stream"] == "supervisor"
                && line["text"]
                    .as_str()
                    .is_some_and(|text| text.contains(word))
        });
        line.unwrap_or_else(|| panic!("{name} {word}: {log}"))["time"]
            .as_u64()
            .expect("a time")
    };
    assert!(time("db", "healthy") <= time("api", "started"), "{log}");
    assert!(time("api", "healthy") <= time("web", "started"), "{log}");

    // By the mapped port, from the gateway's machine.
    let ports = gateway.control("workspace ports ws --json").ok().json();
    let ports = ports["mapped"].as_array().expect("ports").clone();
    let host_port = |name: &str| {
        let port = ports.iter().find(|port| port["service"] == name);
        port.unwrap_or_else(|| panic!("{name}: {ports:?}"))["host_port"]
            .as_u64()
            .expect("a port")
    };
    let bind = gateway.ports_address();
    let web = format!("http://{bind}:{}/", host_port("web"));
    let curl = |url: &str| vendetta_tests::Run::new("curl").args(["-sS", "--max-time", "20", url]);
    assert!(curl(&web).ok().text().starts_with("count :"));

    // By its name, through a forward of the client.
    let local = free_port();
    let line = format!("127.0.0.1:{local}:web:80");
    let forward = gateway.ssh("ws").args(["-N", "-L", &line]).start();
    eventually("the forward listens", || {
        std::net::TcpStream::connect(("127.0.0.1", local)).is_ok()
    });
    let answer = curl(&format!("http://127.0.0.1:{local}/")).ok();
    assert!(answer.text().starts_with("count :"), "{answer}");
    drop(forward);
    let direct = gateway.ssh("ws").args(["-W", "api:8000"]);
    let answer = direct.stdin("GET /health HTTP/1.0\r\n\r\n").ok();
    assert!(answer.text().contains("+PONG"), "{answer}");

    // And the sessions know where everything is.
    let env = gateway
        .exec("ws", "env | grep ^VENDETTA_SERVICE_ | sort")
        .ok()
        .text();
    for line in [
        "VENDETTA_SERVICE_DB_PORT=6379",
        "VENDETTA_SERVICE_DB_URL=tcp://127.0.0.1:6379",
        "VENDETTA_SERVICE_WEB_URL=http://127.0.0.1:80",
        &format!("VENDETTA_SERVICE_WEB_HOST_PORT={}", host_port("web")),
    ] {
        assert!(env.lines().any(|found| found == line), "{line}: {env}");
    }

    // Nothing is to be done about one that runs.
    let began = Instant::now();
    let again = gateway.control("workspace up ws").ok();
    assert!(again.text().contains("services ready"), "{again}");
    assert!(began.elapsed() < Duration::from_secs(30), "it hangs");
}

#[test]
fn a_health_check_that_fails_fails_up_and_says_what_the_service_wrote() {
    let gateway = Gateway::docker();
    gateway.create(
        "ws",
        &format!(
            "provider: docker\ndocker: {{image: \"{TOOLS}\"}}\nservices:\n  good: {{command: sleep 1000}}\n  bad:\n    command: \
             echo first; echo the port is taken >&2; exec sleep 1000\n    port: 81\n    \
             health_check: {{tcp: 81, interval: 1s, timeout: 1s, retries: 2}}\n  late: {{command: sleep 1000, depends_on: [bad]}}\n"
        ),
    );
    let up = gateway.control("workspace up ws").finish().exits(5);
    for word in [
        "service bad",
        "unhealthy",
        "the port is taken",
        "workspace logs ws bad",
    ] {
        assert!(up.error_text().contains(word), "{word}: {up}");
    }
    assert_eq!(gateway.state("ws"), "failed");
    // One can look around, and what was well goes on.
    assert_eq!(gateway.exec("ws", "echo in").ok().text(), "in");
    assert_eq!(service(&gateway, "good")["state"], "healthy");
    assert_eq!(service(&gateway, "late")["state"], "waiting");
    let log = gateway.control("workspace logs ws bad --tail 5").ok();
    assert!(log.text().contains("the port is taken"), "{log}");
    // Mended, it comes up.
    let serve = "nohup setsid python3 -m http.server 81 >/dev/null 2>&1 </dev/null &
        until echo >/dev/tcp/127.0.0.1/81; do sleep 0.1; done 2>/dev/null";
    gateway.exec("ws", serve).ok();
    gateway.control("workspace up ws").ok();
    assert_eq!(gateway.state("ws"), "running");
}

#[test]
fn a_service_that_crashes_comes_back_and_those_that_need_it_are_told() {
    let gateway = gateway_with_chain();
    gateway.control("workspace up ws").ok();
    let before = service(&gateway, "db");
    let pid = before["pid"].as_u64().expect("a process");
    gateway.exec("ws", &format!("kill -KILL {pid}")).ok();
    eventually("the service is back", || {
        let now = service(&gateway, "db");
        now["state"] == "healthy" && now["restarts"] == 1 && now["pid"].as_u64() != Some(pid)
    });
    let log = gateway.control("workspace logs ws api").ok().text();
    assert!(
        log.lines()
            .any(|line| line.starts_with("-- ") && line.contains("db")),
        "{log}"
    );
    let log = gateway.control("workspace logs ws db").ok().text();
    assert!(log.contains("KILL"), "{log}");
}

#[test]
fn services_are_stopped_started_and_restarted_one_by_one() {
    let gateway = gateway_with_chain();
    gateway.control("workspace up ws").ok();
    let pid = |name: &str| service(&gateway, name)["pid"].as_u64();
    let (db, api, web) = (pid("db"), pid("api"), pid("web"));
    gateway.control("workspace restart ws api").ok();
    assert_eq!(
        (pid("db"), pid("web")),
        (db, web),
        "only the one that was named"
    );
    assert_ne!(pid("api"), api);
    // Those that need it go with it.
    gateway.control("workspace stop ws api").ok();
    assert_eq!(service(&gateway, "web")["state"], "stopped");
    assert_eq!(service(&gateway, "db")["state"], "healthy");
    gateway.control("workspace start ws web").ok();
    for name in ["db", "api", "web"] {
        assert_eq!(service(&gateway, name)["state"], "healthy", "{name}");
    }
    let unknown = gateway
        .control("workspace restart ws wep")
        .finish()
        .exits(3);
    assert!(
        unknown.error_text().contains("did you mean web?"),
        "{unknown}"
    );
    gateway.control("workspace down ws").ok();
    gateway.control("workspace start ws web").finish().exits(4);
}

#[test]
fn up_of_one_that_runs_starts_what_has_failed_and_leaves_what_was_stopped() {
    let gateway = Gateway::docker();
    let flaky = "while test -e /workspace/good; do sleep 0.1; done; echo broken; exit 1";
    gateway.create(
        "ws",
        &format!(
            "provider: docker
docker: {{image: \"{TOOLS}\"}}
hooks: {{create: \"touch /workspace/good\"}}
services:
  flaky: {{command: \"{flaky}\", port: 7000, restart: \"no\", health_check: {{command: \"test -e /workspace/good\"}}}}
  quiet: {{command: sleep infinity}}
"
        ),
    );
    gateway.control("workspace up ws").ok();
    gateway.control("workspace stop ws quiet").ok();
    gateway.exec("ws", "rm /workspace/good").ok();
    eventually("it has failed", || {
        service(&gateway, "flaky")["state"] == "failed"
    });
    let up = gateway.control("workspace up ws").finish().exits(5);
    assert!(up.error_text().contains("service flaky is"), "{up}");
    assert!(up.error_text().contains("broken"), "{up}");
    gateway.exec("ws", "touch /workspace/good").ok();
    let up = gateway.control("workspace up ws").ok();
    assert_eq!(service(&gateway, "flaky")["state"], "healthy", "{up}");
    assert_eq!(service(&gateway, "quiet")["state"], "stopped", "{up}");
    assert!(up.text().contains("restart ws quiet"), "{up}");
}

#[test]
fn services_and_their_log_survive_the_gateway() {
    let mut gateway = gateway_with_chain();
    gateway.control("workspace up ws").ok();
    let pids = |gateway: &Gateway| -> Vec<_> {
        let all = services(gateway);
        let all = all.as_array().expect("a list").clone();
        all.iter().map(|service| service["pid"].clone()).collect()
    };
    let before = pids(&gateway);
    gateway.kill();
    gateway.start();
    gateway.control("workspace up ws").ok();
    assert_eq!(pids(&gateway), before);
    let log = gateway.control("workspace logs ws api").ok().text();
    assert!(log.contains("api listens"), "{log}");
}

#[test]
fn a_burst_of_ten_thousand_lines_loses_none() {
    let gateway = Gateway::docker();
    gateway.create(
        "ws",
        &format!(
            "provider: docker\ndocker: {{image: \"{TOOLS}\"}}\nservices:\n  burst: {{command: \"seq -f 'line %g of the burst' 1 10000; \
             exec sleep 1000\"}}\n"
        ),
    );
    gateway.control("workspace up ws").ok();
    let mut text = String::new();
    eventually("the last line is there", || {
        text = gateway.control("workspace logs ws burst").ok().text();
        text.contains("line 10000 of the burst")
    });
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("line "))
        .collect();
    assert_eq!(lines.len(), 10_000);
    for (number, line) in (1..).zip(&lines) {
        assert_eq!(*line, format!("line {number} of the burst"));
    }
    // Followed, from a moment on, one sees what comes.
    let follow = gateway
        .control("workspace logs ws burst --follow --tail 1")
        .start();
    follow.expect_stdout(0, "line 10000 of the burst");
    drop(follow);
    let none = gateway
        .control("workspace logs ws burst --since 2099-01-01T00:00:00Z")
        .ok();
    assert_eq!(none.text(), "");
}

#[test]
fn up_and_down_ten_times_leaves_nothing_behind() {
    let gateway = gateway_with_chain();
    for _ in 0..10 {
        gateway.control("workspace up ws").ok();
        gateway.control("workspace down ws").ok();
    }
    gateway.control("workspace up ws").ok();
    // One process each, and nothing of the rounds before.
    eventually("no zombie is left", || {
        let left = gateway.exec("ws", "ps -eo stat=,comm= | grep -c '^Z'; true");
        left.ok().text() == "0"
    });
    gateway.control("workspace destroy ws --yes").ok();
    assert_eq!(gateway.resources(), Vec::<String>::new());
    let open = gateway.process().descriptors();
    assert!(open < 100, "{open} descriptors");
}

#[test]
fn progress_is_a_step_a_service_and_json_lines_for_programs() {
    let gateway = gateway_with_chain();
    let up = gateway.control("workspace up ws --json").ok();
    let events: Vec<serde_json::Value> = up
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    for name in ["db", "api", "web"] {
        let step = format!("service {name}");
        for event in ["started", "finished"] {
            assert!(
                events
                    .iter()
                    .any(|e| e["event"] == event && e["step"] == step.as_str()),
                "{event} {step}: {up}"
            );
        }
    }
    assert_eq!(events.last().expect("a result")["event"], "result");
}
