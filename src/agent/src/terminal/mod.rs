//! Terminals that outlive their clients: `ssh -t WORKSPACE++NAME`.
//!
//! ```text
//!   first shell request ──▶ RUNNING ── program ends, or is ended ──▶ gone
//!                            │  ▲
//!                   clients come and go: each that comes gets the screen as it is
//! ```
//!
//! A [`keeper`] runs the program and keeps its screen. Clients attach to it, any number
//! at once, each with the same rights; the newest gives the size. A client that takes
//! nothing for a moment misses what is written meanwhile, and is shown the screen anew
//! when it takes again, so it never holds up the program or another client.

mod keeper;
mod screen;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

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

#[derive(Debug, Clone)]
struct Kept {
    user: String,
    since: Millis,
    attached: Arc<AtomicU32>,
    orders: mpsc::Sender<Order>,
    /// Ends the program.
    end: CancellationToken,
}

impl Terminals {
    /// Where orders for a terminal go, if it is there.
    pub fn find(&self, uid: u32, name: &TerminalName) -> Option<mpsc::Sender<Order>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = all.get(&(uid, name.clone()))?;
        (!kept.orders.is_closed()).then(|| kept.orders.clone())
    }

    /// Keeps a program that has just started; none: there are [`MOST`] already.
    pub fn keep(
        &self,
        agent: &Arc<crate::connection::Agent>,
        (uid, user): (u32, String),
        name: &TerminalName,
        program: Program,
    ) -> Option<mpsc::Sender<Order>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, kept| !kept.orders.is_closed());
        if all.len() >= MOST {
            return None;
        }
        let (orders, inbox) = mpsc::channel(keeper::ORDERS);
        let kept = Kept {
            user,
            since: now(),
            attached: Arc::default(),
            orders: orders.clone(),
            end: CancellationToken::new(),
        };
        let ends = keeper::Ends {
            wanted: kept.end.clone(),
            stopping: agent.stopping.clone(),
        };
        let work = keeper::keep(program, inbox, Arc::clone(&kept.attached), ends);
        agent.sessions.spawn(work);
        all.insert((uid, name.clone()), kept);
        Some(orders)
    }

    /// How they are.
    pub fn list(&self) -> Vec<TerminalStatus> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let there = all.iter().filter(|(_, kept)| !kept.orders.is_closed());
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
            known == name && of_user && !kept.orders.is_closed()
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
