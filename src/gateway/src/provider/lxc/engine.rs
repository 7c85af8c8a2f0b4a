//! The REST API that Incus and LXD share, over streams of the node, and its errors as ours.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use vendetta_proto::spec::ProviderKind;

use super::super::ProviderError;
use super::choice::Choice;
use super::locks::Locks;
use crate::node::NodeTransport;

/// Time limit of a call that does not wait for anything.
const LIMIT: Duration = Duration::from_secs(60);

/// Longest answer that is read: the list of all instances of a big server is some megabytes.
const MAX_ANSWER: usize = 64 << 20;

/// Why the engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// It says why.
    #[error("{problem}")]
    Said {
        /// As HTTP has it; an operation that failed in the background has 400, or its own.
        status: u16,
        problem: String,
    },
    /// It could not be asked.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

impl Trouble {
    /// Whether there is no such thing.
    pub(super) fn is_absent(&self) -> bool {
        match self {
            Self::Said { status, problem } => {
                *status == 404 || problem.to_lowercase().ends_with("not found")
            }
            Self::Provider(_) => false,
        }
    }

    /// Whether there is such a thing already.
    pub(super) fn is_conflict(&self) -> bool {
        match self {
            Self::Said { status, problem } => {
                *status == 409
                    || problem.contains("already exists")
                    || problem.contains("UNIQUE constraint")
            }
            Self::Provider(_) => false,
        }
    }

    /// Whether its words have one of these in them.
    pub(super) fn says(&self, words: &[&str]) -> bool {
        match self {
            Self::Said { problem, .. } => words.iter().any(|words| problem.contains(words)),
            Self::Provider(_) => false,
        }
    }
}

/// What an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Software {
    Incus,
    Lxd,
}

/// What every answer of the API is in.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    error_code: u16,
    #[serde(default)]
    metadata: Value,
}

/// What was answered.
#[derive(Debug)]
pub(super) enum Answered {
    /// The thing that was asked for.
    Now(Value),
    /// Path of the operation that will do it.
    Later(String),
}

/// What was chosen of a node's engines ([`super::choice`]).
#[derive(Debug, Default)]
pub(super) struct Chosen {
    now: RwLock<Option<Choice>>,
    /// Held by whoever chooses.
    pub change: Mutex<()>,
}

impl Chosen {
    pub(super) fn get(&self) -> Option<Choice> {
        let now = self.now.read();
        now.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, choice: Choice) {
        let now = self.now.write();
        *now.unwrap_or_else(PoisonError::into_inner) = Some(choice);
    }
}

/// An engine of a node: every call opens a stream of its own, so that one that fails
/// or hangs does not touch another.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) node: Arc<dyn NodeTransport>,
    /// Where one may listen, the preferred first.
    pub(super) sockets: Vec<PathBuf>,
    /// The label of all that is ours.
    pub(super) gateway_id: String,
    pub(super) tracker: TaskTracker,
    pub(super) choice: Chosen,
    /// Held by whoever opens a file of an instance, or ends the instance.
    pub(super) files: Locks<String>,
}

impl Engine {
    pub(super) fn new(
        node: Arc<dyn NodeTransport>,
        sockets: Vec<PathBuf>,
        gateway_id: String,
        tracker: TaskTracker,
    ) -> Self {
        Self {
            node,
            sockets,
            gateway_id,
            tracker,
            choice: Chosen::default(),
            files: Locks::default(),
        }
    }

    pub(super) fn node(&self) -> &Arc<dyn NodeTransport> {
        &self.node
    }

    /// Asks for something and reads the answer, for up to `limit`.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answered, Trouble> {
        let body = body.map(|body| Bytes::from(body.to_string()));
        let mut request = Request::new(Full::new(body.unwrap_or_default()));
        *request.method_mut() = method;
        let reply = async {
            let response = self.exchange(path, request).await?;
            self.answer(response).await
        };
        self.within(limit, reply).await
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        match timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => {
                let problem = format!("no answer within {} s", limit.as_secs());
                let remedy = "see on the node what the engine does, or start it again".to_owned();
                Err(self.unavailable(problem, Some(remedy)).into())
            }
        }
    }

    /// What there is at `path`.
    pub(super) async fn get(&self, path: &str) -> Result<Value, Trouble> {
        self.get_within(path, LIMIT).await
    }

    /// What there is at `path`, when the engine may take `limit` to say so.
    pub(super) async fn get_within(&self, path: &str, limit: Duration) -> Result<Value, Trouble> {
        match self.ask(Method::GET, path, None, limit).await? {
            Answered::Now(value) => Ok(value),
            Answered::Later(_) => Ok(Value::Null),
        }
    }

    /// What the engine is. One of neither name is of Incus's kin.
    pub(super) async fn software(&self) -> Result<Software, ProviderError> {
        let server = self.get("/1.0").await;
        let server = server.map_err(|trouble| self.failed("ask what it is", trouble))?;
        let name = server.get("environment").and_then(|all| all.get("server"));
        Ok(match name.and_then(Value::as_str) {
            Some("lxd") => Software::Lxd,
            _ => Software::Incus,
        })
    }

    /// Has something done.
    pub(super) async fn order(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answered, Trouble> {
        self.ask(method, path, body, LIMIT).await
    }

    /// Sends a request, and waits until its answer begins.
    pub(super) async fn send(
        &self,
        path: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Trouble> {
        self.within(LIMIT, self.exchange(path, request)).await
    }

    /// Sends a request over a new stream of the node. The connection is driven by a task
    /// that ends with the answer's body.
    async fn exchange(
        &self,
        path: &str,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Trouble> {
        let lost = |error: hyper::Error| Trouble::from(self.unavailable(error.to_string(), None));
        let stream = self.open().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(lost)?;
        self.tracker.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the engine");
            }
        });
        *request.uri_mut() = path.parse().map_err(|_| Trouble::Said {
            status: 400,
            problem: format!("{path} is not a path"),
        })?;
        let host = hyper::header::HeaderValue::from_static("engine");
        request.headers_mut().insert(HOST, host);
        sender.send_request(request).await.map_err(lost)
    }

    /// Reads an answer that is not a file.
    pub(super) async fn answer(&self, response: Response<Incoming>) -> Result<Answered, Trouble> {
        let status = response.status();
        let bytes = self.bytes(response, MAX_ANSWER).await?;
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| {
            let said = String::from_utf8_lossy(&bytes).trim().to_owned();
            self.unavailable(format!("it does not speak its API: {status} {said}"), None)
        })?;
        match answer.kind.as_str() {
            "sync" => Ok(Answered::Now(answer.metadata)),
            "async" => Ok(Answered::Later(answer.operation)),
            _ => Err(Trouble::Said {
                status: match answer.error_code {
                    0 => status.as_u16(),
                    code => code,
                },
                problem: answer.error.trim().to_owned(),
            }),
        }
    }

    /// The whole of a body that is no longer than `most`, as long as it goes on coming.
    pub(super) async fn bytes(
        &self,
        response: Response<Incoming>,
        most: usize,
    ) -> Result<Bytes, Trouble> {
        let mut body = Limited::new(response.into_body(), most);
        let mut bytes = BytesMut::new();
        while let Some(frame) = self.within(LIMIT, async { Ok(body.frame().await) }).await? {
            let frame = frame.map_err(|error| self.unavailable(error.to_string(), None))?;
            if let Ok(data) = frame.into_data() {
                bytes.extend_from_slice(&data);
            }
        }
        Ok(bytes.freeze())
    }

    /// Reads what an answer that is an error says.
    pub(super) async fn refusal(&self, response: Response<Incoming>) -> Trouble {
        let status = response.status();
        match self.answer(response).await {
            Err(trouble) => trouble,
            Ok(_) => Trouble::Said {
                status: StatusCode::INTERNAL_SERVER_ERROR.as_u16(),
                problem: status.to_string(),
            },
        }
    }

    pub(super) fn unavailable(&self, problem: String, remedy: Option<String>) -> ProviderError {
        ProviderError::Unavailable {
            provider: ProviderKind::Lxc,
            node: self.node.name(),
            problem,
            remedy,
        }
    }

    /// What trouble in an operation means.
    pub(super) fn failed(&self, operation: &'static str, trouble: Trouble) -> ProviderError {
        let problem = match trouble {
            Trouble::Provider(error) => return error,
            Trouble::Said { problem, .. } => problem,
        };
        let remedy = problem.contains("no space left on device").then(|| {
            "make room on the node, for instance: incus image list, incus image delete".to_owned()
        });
        ProviderError::Engine {
            provider: ProviderKind::Lxc,
            node: self.node.name(),
            operation,
            problem,
            remedy,
        }
    }
}
