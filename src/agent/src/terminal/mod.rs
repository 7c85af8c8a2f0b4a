//! Terminals that outlive their clients: `ssh -t WORKSPACE++NAME`.
//!
//! ```text
//!   first shell request ──▶ RUNNING ── program ends, or is ended ──▶ gone
//!                            │  ▲
//!                   clients come and go: each that comes gets the screen as it is
//! ```
//!
//! A [`keeper`] runs the program and keeps its screen. Clients attach to it, any number
//! at once, each with the same rights; the newest gives the size. The program waits for its
//! clients for a moment, and only when none of them takes anything. One that is behind misses
//! what is written meanwhile and is shown the screen anew when it takes again, so it never
//! holds up the program or another client.

mod keeper;
mod screen;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vendetta_proto::TerminalName;
use vendetta_proto::rpc::{Millis, TerminalStatus};

pub use keeper::{OUTPUTS, Order, Output, Program};

/// Most terminals of an environment.
const MOST: usize = 64;

/// The terminals of an environment, by user and name.
#[derive(Debug, Default)]
pub struct Terminals(Mutex<BTreeMap<Key, Kept>>);

type Key = (u32, TerminalName);

#[derive(Debug)]
struct Kept {
    user: String,
    since: Millis,
    attached: Arc<AtomicU32>,
    reach: Reach,
    /// Ends the program.
    end: CancellationToken,
}

/// Where clients reach a terminal.
#[derive(Debug, Clone)]
pub struct Reach {
    /// What they want.
    pub orders: mpsc::Sender<Order>,
    /// What they type.
    pub typed: mpsc::Sender<Bytes>,
}

impl Kept {
    fn is_there(&self) -> bool {
        !self.reach.orders.is_closed()
    }
}

impl Terminals {
    /// The terminal of this user and name. The first who asks has its program started, and
    /// whoever asks meanwhile waits for that.
    ///
    /// # Errors
    /// What `start` says, or that there are [`MOST`] already.
    pub fn find_or_start(
        &self,
        agent: &crate::connection::Agent,
        (uid, user): (u32, String),
        name: &TerminalName,
        start: impl FnOnce() -> Result<Program, String>,
    ) -> Result<Reach, String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, kept| kept.is_there());
        let key = (uid, name.clone());
        if let Some(kept) = all.get(&key) {
            return Ok(kept.reach.clone());
        }
        if all.len() >= MOST {
            return Err("there are too many terminals; end one first".to_owned());
        }
        let program = start()?;
        let (orders, ordered) = mpsc::channel(keeper::ORDERS);
        let (typed, input) = mpsc::channel(keeper::ORDERS);
        let kept = Kept {
            user,
            since: now(),
            attached: Arc::default(),
            reach: Reach { orders, typed },
            end: CancellationToken::new(),
        };
        let inbox = keeper::Inbox {
            orders: ordered,
            typed: input,
        };
        let ends = keeper::Ends {
            wanted: kept.end.clone(),
            stopping: agent.stopping.clone(),
        };
        let work = keeper::keep(program, inbox, Arc::clone(&kept.attached), ends);
        agent.sessions.spawn(work);
        let reach = kept.reach.clone();
        all.insert(key, kept);
        Ok(reach)
    }

    /// How they are.
    pub fn list(&self) -> Vec<TerminalStatus> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let there = all.iter().filter(|(_, kept)| kept.is_there());
        there
            .map(|((_, name), kept)| TerminalStatus {
                name: name.clone(),
                user: kept.user.clone(),
                since: kept.since,
                attached: kept.attached.load(Ordering::Relaxed),
            })
            .collect()
    }

    /// Ends the programs of the terminals of this name, of this user if one is named;
    /// whether there was any.
    pub fn end(&self, name: &TerminalName, user: Option<&str>) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let meant = all.iter().filter(|((_, known), kept)| {
            let of_user = user.is_none_or(|user| kept.user == user);
            known == name && of_user && kept.is_there()
        });
        let mut any = false;
        for (_, kept) in meant {
            kept.end.cancel();
            any = true;
        }
        any
    }
}

fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        since.as_millis().try_into().unwrap_or(Millis::MAX)
    })
}
