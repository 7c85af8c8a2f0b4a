//! Files of an instance, running or not, through the engine.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::timeout;

use super::engine::{Engine, Trouble};

/// Longest file that is read: the agent's log is kept shorter than this.
const MAX_FILE: usize = 32 << 20;

/// How long the opening of a file may take.
const OPEN_LIMIT: Duration = Duration::from_secs(20);

/// What was in a file goes.
const OVERWRITE: &str = "overwrite";

/// What stays as it is in the value of a query.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'.')
    .remove(b'-')
    .remove(b'_');

/// What is at a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    File(Bytes),
    /// A symbolic link to this.
    Link(String),
    Directory,
}

/// The files of one instance.
#[derive(Debug, Clone)]
pub(super) struct Files {
    engine: Arc<Engine>,
    instance: String,
}

impl Files {
    pub(super) fn of(engine: &Arc<Engine>, instance: &str) -> Self {
        Self {
            engine: Arc::clone(engine),
            instance: instance.to_owned(),
        }
    }

    fn at(&self, path: &str) -> String {
        let path = utf8_percent_encode(path, QUERY);
        format!("/1.0/instances/{}/files?path={path}", self.instance)
    }

    /// Opens a file, in a task that goes on to its end though nobody waits any more: an
    /// engine that is left waiting for the other end of a pipe can neither stop nor remove
    /// the instance (LXD 5.0). Nor does anybody try to meanwhile.
    async fn open(&self, path: &str) -> Result<Option<Response<Incoming>>, Trouble> {
        let (files, path) = (self.clone(), path.to_owned());
        let open = async move {
            let _opening = files.engine.files.lock(&files.instance).await;
            match timeout(OPEN_LIMIT, files.get(&path)).await {
                Ok(opened) => opened,
                Err(_) => {
                    // Should it be a pipe, this is its other end; nothing is written.
                    let other_end = files.write(&path, "file", "0600", "append", Bytes::new());
                    let _ = timeout(OPEN_LIMIT, other_end).await;
                    let limit = OPEN_LIMIT.as_secs();
                    Err(Trouble::Said {
                        status: 500,
                        problem: format!(
                            "{path} was not opened within {limit} s: it is no plain file, or the engine hangs"
                        ),
                    })
                }
            }
        };
        let opened = self.engine.tracker.spawn(open).await;
        opened.unwrap_or_else(|error| Err(self.engine.unavailable(error.to_string(), None).into()))
    }

    async fn get(&self, path: &str) -> Result<Option<Response<Incoming>>, Trouble> {
        let request = Request::new(Full::default());
        let response = self.engine.send(&self.at(path), request).await?;
        if response.status().is_success() {
            return Ok(Some(response));
        }
        let trouble = self.engine.refusal(response).await;
        if trouble.is_absent() {
            Ok(None)
        } else {
            Err(trouble)
        }
    }

    /// What is there; none: nothing.
    pub(super) async fn read(&self, path: &str) -> Result<Option<Found>, Trouble> {
        let Some(response) = self.open(path).await? else {
            return Ok(None);
        };
        // Incus and LXD have their own names for the same headers.
        let kind = ["x-incus-type", "x-lxd-type"].map(|name| response.headers().get(name).cloned());
        let kind = kind.into_iter().flatten().next();
        let kind = kind.as_ref().and_then(|kind| kind.to_str().ok());
        if kind == Some("directory") {
            return Ok(Some(Found::Directory));
        }
        let link = kind == Some("symlink");
        let content = self.engine.bytes(response, MAX_FILE).await?;
        Ok(Some(if link {
            Found::Link(String::from_utf8_lossy(&content).trim_end().to_owned())
        } else {
            Found::File(content)
        }))
    }

    /// How long a file is, without reading it; none: there is none.
    pub(super) async fn length(&self, path: &str) -> Result<Option<usize>, Trouble> {
        let Some(response) = self.open(path).await? else {
            return Ok(None);
        };
        let length = response.headers().get(CONTENT_LENGTH);
        Ok(length.and_then(|length| length.to_str().ok()?.parse().ok()))
    }

    async fn write(
        &self,
        path: &str,
        kind: &'static str,
        mode: &'static str,
        how: &'static str,
        content: Bytes,
    ) -> Result<(), Trouble> {
        let mut request = Request::new(Full::new(content));
        *request.method_mut() = Method::POST;
        let headers = request.headers_mut();
        let set = |name| (name, HeaderValue::from_static("0"));
        headers.extend(
            ["x-incus-uid", "x-incus-gid", "x-lxd-uid", "x-lxd-gid"]
                .map(hyper::header::HeaderName::from_static)
                .map(set),
        );
        for (name, value) in [("type", kind), ("mode", mode), ("write", how)] {
            for engine in ["incus", "lxd"] {
                if let Ok(name) = hyper::header::HeaderName::try_from(format!("x-{engine}-{name}"))
                {
                    headers.insert(name, HeaderValue::from_static(value));
                }
            }
        }
        let binary = HeaderValue::from_static("application/octet-stream");
        headers.insert(CONTENT_TYPE, binary);
        let response = self.engine.send(&self.at(path), request).await?;
        self.engine.answer(response).await.map(drop)
    }

    /// Writes a file of root. One that is there keeps its mode.
    pub(super) async fn put(
        &self,
        path: &str,
        mode: &'static str,
        content: impl Into<Bytes>,
    ) -> Result<(), Trouble> {
        self.write(path, "file", mode, OVERWRITE, content.into())
            .await
    }

    /// Writes a file of root in the place of whatever is there, which may be anything that
    /// root of the instance made: written to, a pipe would take the content and keep nothing.
    pub(super) async fn replace(
        &self,
        path: &str,
        mode: &'static str,
        content: impl Into<Bytes>,
    ) -> Result<(), Trouble> {
        let mut request = Request::new(Full::default());
        *request.method_mut() = Method::DELETE;
        let response = self.engine.send(&self.at(path), request).await?;
        match self.engine.answer(response).await {
            Err(trouble) if !trouble.is_absent() => Err(trouble),
            _ => self.put(path, mode, content).await,
        }
    }

    /// Makes a directory of root, and its parents; there already is fine.
    pub(super) async fn make_dir(&self, path: &str) -> Result<(), Trouble> {
        let mut missing = vec![path];
        while let Some(dir) = missing.last() {
            match self
                .write(dir, "directory", "0755", OVERWRITE, Bytes::new())
                .await
            {
                Ok(()) => {
                    missing.pop();
                }
                Err(trouble) if trouble.is_absent() => match dir.rsplit_once('/') {
                    Some((parent, _)) if !parent.is_empty() => missing.push(parent),
                    _ => return Err(trouble),
                },
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(())
    }

    /// Makes a symbolic link.
    pub(super) async fn link(&self, path: &str, target: &str) -> Result<(), Trouble> {
        let target = Bytes::copy_from_slice(target.as_bytes());
        self.write(path, "symlink", "0777", OVERWRITE, target).await
    }
}
