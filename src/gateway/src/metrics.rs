//! Metrics for Prometheus, over HTTP on loopback: what `status` and `node
//! status` show, as numbers. They are taken when they are asked for.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::inventory::NodeState;
use crate::workspace::Workspaces;

/// The format of <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long a scraper may take to send its request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// Pause after a failed accept (out of descriptors), so that it is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type FloatGauge = Gauge<f64, std::sync::atomic::AtomicU64>;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Metrics {
    workspaces: Workspaces,
    /// Every task of every connection.
    sessions: TaskTracker,
    started: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfNode {
    node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfNodeState {
    node: String,
    state: String,
}

impl Metrics {
    /// Of these workspaces and their nodes, and of the connections whose tasks
    /// are in `sessions`.
    #[must_use]
    pub fn new(workspaces: Workspaces, sessions: TaskTracker) -> Self {
        Self {
            workspaces,
            sessions,
            started: Instant::now(),
        }
    }

    /// Serves `GET /metrics` until `end`.
    pub async fn serve(self, listener: TcpListener, tasks: TaskTracker, end: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = end.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (metrics, end) = (self.clone(), end.clone());
            tasks.spawn(async move {
                let answer = service_fn(|request| {
                    let response = metrics.answer(&request);
                    async { Ok::<_, Infallible>(response) }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_LIMIT)
                    .serve_connection(TokioIo::new(stream), answer);
                // A scraper that goes away is no news.
                let _ = end.run_until_cancelled(serving).await;
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        if request.uri().path() != "/metrics" {
            *response.status_mut() = StatusCode::NOT_FOUND;
        } else if request.method() != Method::GET {
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        } else {
            let kind = hyper::header::HeaderValue::from_static(OPEN_METRICS);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            *response.body_mut() = Full::from(self.text());
        }
        response
    }

    /// All of it in the text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut registry = Registry::with_prefix("vendetta");
        self.of_gateway(&mut registry);
        self.of_nodes(&mut registry);
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &registry);
        text
    }

    fn of_gateway(&self, registry: &mut Registry) {
        let uptime = FloatGauge::default();
        uptime.set(self.started.elapsed().as_secs_f64());
        registry.register_with_unit(
            "uptime",
            "Time since the gateway started",
            Unit::Seconds,
            uptime,
        );
        let tasks = Gauge::<i64>::default();
        tasks.set(i64::try_from(self.sessions.len()).unwrap_or(i64::MAX));
        registry.register(
            "connection_tasks",
            "Tasks of clients' connections: one a connection, one a channel",
            tasks,
        );
        let workspaces = Family::<OfState, Gauge>::default();
        for state in self.workspaces.states() {
            let state = state.as_str().to_owned();
            workspaces.get_or_create(&OfState { state }).inc();
        }
        registry.register("workspaces", "Workspaces by state", workspaces);
    }

    fn of_nodes(&self, registry: &mut Registry) {
        let states = Family::<OfNodeState, Gauge>::default();
        let on_node = Family::<OfNode, Gauge>::default();
        let [
            latency,
            load,
            cores,
            memory,
            free_memory,
            disk,
            free_disk,
            skew,
        ] = std::array::from_fn(|_| Family::<OfNode, FloatGauge>::default());
        for node in self.workspaces.inventory().list() {
            let (name, health) = (node.name().to_string(), node.health());
            for state in [
                NodeState::Unknown,
                NodeState::Up,
                NodeState::Degraded,
                NodeState::Down,
            ] {
                let labels = OfNodeState {
                    node: name.clone(),
                    state: state.as_str().to_owned(),
                };
                states
                    .get_or_create(&labels)
                    .set(i64::from(health.state == state));
            }
            let of = OfNode { node: name };
            let count = i64::try_from(self.workspaces.count_on(&node)).unwrap_or(i64::MAX);
            on_node.get_or_create(&of).set(count);
            let set = |family: &Family<OfNode, FloatGauge>, value: Option<f64>| {
                if let Some(value) = value {
                    family.get_or_create(&of).set(value);
                }
            };
            // Beyond 2^53 bytes a few more or less do not matter.
            #[allow(clippy::cast_precision_loss)]
            let bytes = |bytes: u64| bytes as f64;
            let facts = health.facts;
            set(&latency, health.latency_ms.map(|ms| ms / 1e3));
            set(&load, facts.map(|facts| facts.load[0]));
            set(&cores, facts.map(|facts| f64::from(facts.cores)));
            set(&memory, facts.map(|facts| bytes(facts.memory_total)));
            set(
                &free_memory,
                facts.map(|facts| bytes(facts.memory_available)),
            );
            set(&disk, facts.map(|facts| bytes(facts.disk_total)));
            set(&free_disk, facts.map(|facts| bytes(facts.disk_available)));
            set(&skew, health.clock_skew_seconds);
        }
        registry.register("node_state", "1 for the state that a node is in", states);
        registry.register("node_workspaces", "Workspaces on a node", on_node);
        registry.register("node_load1", "Load average over a minute", load);
        registry.register("node_cores", "Processors", cores);
        for (name, help, unit, family) in [
            (
                "node_latency",
                "Time of a round trip",
                Unit::Seconds,
                latency,
            ),
            ("node_memory", "Memory", Unit::Bytes, memory),
            (
                "node_memory_available",
                "Memory that programs could still get",
                Unit::Bytes,
                free_memory,
            ),
            (
                "node_disk",
                "Size of the file system of our files",
                Unit::Bytes,
                disk,
            ),
            (
                "node_disk_available",
                "What is free of it",
                Unit::Bytes,
                free_disk,
            ),
            (
                "node_clock_skew",
                "How far a node's clock is ahead",
                Unit::Seconds,
                skew,
            ),
        ] {
            registry.register_with_unit(name, help, unit, family);
        }
    }
}
