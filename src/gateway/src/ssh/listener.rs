//! Accepts connections, and limits what they may cost before anybody has
//! proved who they are: how many, how long, how many tries.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::server;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use vendetta_sshio::read_ahead::ReadAhead;
use vendetta_sshio::transport::ClientStream;

use super::Services;
use super::handler::Connection;

/// Limits of a listener.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once, authenticated or not.
    pub connections: usize,
    /// Unauthenticated connections at once.
    pub unauthenticated: usize,
    /// Time to authenticate.
    pub login_grace: Duration,
}

/// How long to wait when accept(2) fails, as it does when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `listener` until `stop_accepting`; connections end at `end`.
pub async fn serve(
    listener: TcpListener,
    config: Arc<server::Config>,
    services: Arc<Services>,
    limits: Limits,
    stop_accepting: CancellationToken,
    end: CancellationToken,
) {
    let counters = Arc::new(Counters::default());
    loop {
        let accepted = tokio::select! {
            () = stop_accepting.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(admitted) = counters.admit(peer.ip(), &limits) else {
            // As OpenSSH's MaxStartups: closed without a word, which costs the least.
            tracing::info!(%peer, "refused: too many connections");
            continue;
        };
        // The worker's own runtime is to watch the socket.
        let (Some(worker), Ok(stream)) = (services.workers.next(), stream.into_std()) else {
            tracing::warn!(%peer, "connection lost at once");
            continue;
        };
        let connection = serve_connection(
            stream,
            peer,
            config.clone(),
            services.clone(),
            admitted,
            limits.login_grace,
            end.child_token(),
        );
        services.tasks.spawn_on(connection, worker);
    }
}

async fn serve_connection(
    stream: std::net::TcpStream,
    peer: SocketAddr,
    config: Arc<server::Config>,
    services: Arc<Services>,
    admitted: Admitted,
    login_grace: Duration,
    end: CancellationToken,
) {
    let authenticated = CancellationToken::new();
    let _end_with_us = end.clone().drop_guard();
    let reached = stream.local_addr().ok();
    let stream = TcpStream::from_std(stream)
        .and_then(|stream| ClientStream::new(stream, end.clone()))
        .map(ReadAhead::new);
    let stream = match stream {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%peer, %error, "connection lost at once"),
    };
    let freed = services.freed.clone();
    let handler = Connection::new(services, peer, reached, authenticated.clone(), end.clone());
    let run = async {
        match server::run_stream(config, stream, handler).await {
            Ok(running) => running.await,
            Err(error) => Err(error),
        }
    };
    let mut run = std::pin::pin!(run);
    let ended = tokio::select! {
        ended = &mut run => Some(ended),
        () = authenticated.cancelled() => None,
        () = tokio::time::sleep(login_grace) => {
            tracing::info!(%peer, "not authenticated in time");
            end.cancel();
            Some(run.as_mut().await)
        }
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            let _connected = admitted.authenticated();
            freed.notify_one();
            run.await
        }
    };
    freed.notify_one();
    match ended {
        Ok(()) => tracing::debug!(%peer, "connection ended"),
        Err(error) => tracing::debug!(%peer, %error, "connection ended"),
    }
}

#[derive(Default)]
struct Counters {
    connections: AtomicUsize,
    unauthenticated: Mutex<HashMap<IpAddr, usize>>,
}

impl Counters {
    fn admit(self: &Arc<Self>, address: IpAddr, limits: &Limits) -> Option<Admitted> {
        let mut unauthenticated = self.lock();
        let from_address = unauthenticated.get(&address).copied().unwrap_or(0);
        if self.connections.load(Ordering::Relaxed) >= limits.connections
            || unauthenticated.values().sum::<usize>() >= limits.unauthenticated
            // One address cannot keep everybody else out.
            || from_address >= limits.unauthenticated.div_ceil(2)
        {
            return None;
        }
        unauthenticated.insert(address, from_address + 1);
        self.connections.fetch_add(1, Ordering::Relaxed);
        Some(Admitted {
            counters: self.clone(),
            unauthenticated: Some(address),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.unauthenticated
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A counted connection; dropping it uncounts it.
struct Admitted {
    counters: Arc<Counters>,
    unauthenticated: Option<IpAddr>,
}

impl Admitted {
    /// Counts no longer as unauthenticated.
    fn authenticated(mut self) -> Self {
        self.forget_unauthenticated();
        self
    }

    fn forget_unauthenticated(&mut self) {
        if let Some(address) = self.unauthenticated.take() {
            let mut all = self.counters.lock();
            if let Some(count) = all.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    all.remove(&address);
                }
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.forget_unauthenticated();
        self.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        connections: 3,
        unauthenticated: 2,
        login_grace: Duration::from_secs(1),
    };

    #[test]
    fn each_limit_holds_and_is_given_back() {
        let counters = Arc::new(Counters::default());
        let (a, b, c) = (
            [10, 0, 0, 1].into(),
            [10, 0, 0, 2].into(),
            [10, 0, 0, 3].into(),
        );
        let first = counters.admit(a, &LIMITS).unwrap();
        assert!(
            counters.admit(a, &LIMITS).is_none(),
            "one address has half of them"
        );
        let second = counters.admit(b, &LIMITS).unwrap();
        assert!(
            counters.admit(c, &LIMITS).is_none(),
            "two unauthenticated in all"
        );
        let (first, second) = (first.authenticated(), second.authenticated());
        let third = counters.admit(c, &LIMITS).unwrap().authenticated();
        assert!(
            counters.admit(a, &LIMITS).is_none(),
            "three connections in all"
        );
        drop((first, second, third));
        assert_eq!(counters.connections.load(Ordering::Relaxed), 0);
        assert!(counters.lock().is_empty());
        assert!(counters.admit(a, &LIMITS).is_some());
    }
}
