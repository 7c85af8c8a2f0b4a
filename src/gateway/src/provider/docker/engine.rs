//! The engine's API over a stream of the node, and its errors as ours.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, BollardRequest};
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue};
use hyper::{Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::sync::OnceCell;
use tokio_util::task::TaskTracker;
use vendetta_proto::spec::ProviderKind;

use super::super::ProviderError;
use super::unusable::{Unusable, why_not};
use crate::node::NodeTransport;

/// Oldest API that is spoken: that of Docker 20.10.
const OLDEST: (usize, usize) = (1, 41);

/// Time limit of a call, in seconds, unless the call itself is meant to take longer.
const LIMIT: u64 = 60;

/// The operation in which "bad request" means that the config asks for what the engine cannot do.
pub(super) const CREATE: &str = "create container";

/// A Docker engine of a node: every call opens a stream of its own, so that one
/// that fails or hangs does not touch another.
#[derive(Debug)]
pub(super) struct Engine {
    node: Arc<dyn NodeTransport>,
    socket: PathBuf,
    tracker: TaskTracker,
    client: OnceCell<bollard::Docker>,
}

impl Engine {
    pub(super) fn new(node: Arc<dyn NodeTransport>, socket: PathBuf, tracker: TaskTracker) -> Self {
        Self {
            node,
            socket,
            tracker,
            client: OnceCell::new(),
        }
    }

    pub(super) fn node(&self) -> &Arc<dyn NodeTransport> {
        &self.node
    }

    /// The client, once the engine has said which API it speaks.
    pub(super) async fn client(&self) -> Result<&bollard::Docker, ProviderError> {
        self.client
            .get_or_try_init(|| async {
                let failed = |error| self.failed("ask its version", error);
                let client = self.connect().map_err(failed)?;
                let client = client.negotiate_version().await.map_err(failed)?;
                let version = client.client_version();
                if (version.major_version, version.minor_version) < OLDEST {
                    return Err(self.unavailable(
                        format!("it speaks API {version}, the oldest that serves is 1.41"),
                        Some("install Docker 20.10 or newer".to_owned()),
                    ));
                }
                Ok(client)
            })
            .await
    }

    /// The client for a call that may take `limit` to begin its answer.
    pub(super) async fn patient(&self, limit: Duration) -> Result<bollard::Docker, ProviderError> {
        Ok(self.client().await?.clone().with_timeout(limit))
    }

    fn connect(&self) -> Result<bollard::Docker, Error> {
        let (node, socket) = (Arc::clone(&self.node), self.socket.clone());
        let tracker = self.tracker.clone();
        let transport = move |request| {
            let (node, socket, tracker) = (Arc::clone(&node), socket.clone(), tracker.clone());
            request_over(node, socket, tracker, request)
        };
        bollard::Docker::connect_with_custom_transport(
            transport,
            Some("http://docker"),
            LIMIT,
            API_DEFAULT_VERSION,
        )
    }

    pub(super) fn unavailable(&self, problem: String, remedy: Option<String>) -> ProviderError {
        ProviderError::Unavailable {
            provider: ProviderKind::Docker,
            node: self.node.name(),
            problem,
            remedy,
        }
    }

    /// What an error of the engine's API means.
    pub(super) fn failed(&self, operation: &'static str, error: Error) -> ProviderError {
        let (status, problem) = match error {
            Error::DockerResponseServerError {
                status_code,
                message,
            } => (status_code, message),
            Error::DockerStreamError { error } => (500, error),
            Error::IOError { err } => return self.unreachable(err),
            Error::RequestTimeoutError => {
                return self.unavailable(format!("{operation}: no answer in time"), None);
            }
            Error::HyperResponseError { err } => {
                return self.unavailable(format!("{operation}: {err}"), None);
            }
            other => (500, other.to_string()),
        };
        let problem = problem.trim().to_owned();
        if status == 400 && operation == CREATE {
            return ProviderError::Refused { operation, problem };
        }
        let remedy = problem
            .contains("no space left on device")
            .then(|| "make room on the node, for instance: docker system prune".to_owned());
        ProviderError::Engine {
            provider: ProviderKind::Docker,
            node: self.node.name(),
            operation,
            problem,
            remedy,
        }
    }

    fn unreachable(&self, error: io::Error) -> ProviderError {
        let text = error.to_string();
        let inner = error.into_inner();
        match inner.map(|inner| inner.downcast::<Unusable>()) {
            Some(Ok(unusable)) => match *unusable {
                Unusable::Node(error) => ProviderError::Node(error),
                other => {
                    let (problem, remedy) = other.explain(&self.node.name());
                    self.unavailable(problem, Some(remedy))
                }
            },
            _ => self.unavailable(format!("{}: {text}", self.socket.display()), None),
        }
    }
}

/// Sends one request over a new stream of the node. The connection is driven
/// by a task that ends with the answer's body.
async fn request_over(
    node: Arc<dyn NodeTransport>,
    socket: PathBuf,
    tracker: TaskTracker,
    mut request: BollardRequest,
) -> Result<Response<Incoming>, Error> {
    let stream = match node.open_unix(&socket).await {
        Ok(stream) => stream,
        Err(error) => {
            return Err(io::Error::other(why_not(node.as_ref(), &socket, error).await).into());
        }
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tracker.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the engine");
        }
    });
    // On a connection of its own a request names path and host apart (RFC 9112 section 3.2.1).
    let target = request
        .uri()
        .path_and_query()
        .map_or("/", |target| target.as_str());
    *request.uri_mut() = target.parse::<Uri>()?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("docker"));
    Ok(sender.send_request(request).await?)
}

/// Whether the engine says that there is no such thing.
pub(super) fn is_absent(error: &Error) -> bool {
    matches!(
        error,
        Error::DockerResponseServerError {
            status_code: 404,
            ..
        }
    )
}

/// Whether the engine says that something stands against it.
pub(super) fn is_conflict(error: &Error) -> bool {
    matches!(
        error,
        Error::DockerResponseServerError {
            status_code: 409,
            ..
        }
    )
}
