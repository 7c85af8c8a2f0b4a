//! Runs one terminal's program, and passes on between it and its clients.

use std::collections::VecDeque;
use std::future::pending;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use nix::sys::signal::Signal;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::screen::Screen;
use crate::process::{Child, hang_up_group, signal_group};
use crate::session::{Master, Size};

/// Orders, and pieces of input, that may wait.
pub(super) const ORDERS: usize = 16;

/// Reads of output that a client may be behind.
pub const OUTPUTS: usize = 8;

/// Bytes of input that the program may be behind; more waits in its clients.
const INPUT: usize = 64 * 1024;

/// How long output waits when no client takes it.
const STALL: Duration = Duration::from_millis(500);

/// How often it is looked whether a client that is behind takes again.
const LOOK: Duration = Duration::from_millis(100);

/// How long a silence ends a program's last words.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How long they may be at most: a job in the background goes on writing.
const LAST_WORDS_MOST: Duration = Duration::from_secs(1);

/// How long a client may be behind when the program has ended, and still be told.
const PARTING: Duration = Duration::from_secs(10);

/// How long a program may live on after it was told to end.
const GRACE: Duration = Duration::from_secs(10);

/// A program on a terminal.
#[derive(Debug)]
pub struct Program {
    /// Our side of its terminal.
    pub master: Master,
    /// Its first process.
    pub child: Child,
    /// The terminal's size.
    pub size: Size,
}

/// What a client wants, but for typing, which waits for the program and so has a queue of
/// its own.
#[derive(Debug)]
pub enum Order {
    /// To be shown the screen, and what is written from now on.
    Attach {
        /// Its size.
        size: Size,
        /// Where it is shown.
        output: mpsc::Sender<Output>,
    },
    /// To have another size.
    Resize(Size),
    /// To signal the program.
    Signal(Signal),
}

/// What clients send, as it arrives.
pub(super) struct Inbox {
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) typed: mpsc::Receiver<Bytes>,
}

/// What a client is told.
#[derive(Debug, Clone)]
pub enum Output {
    /// For its terminal.
    Data(Bytes),
    /// The program has ended.
    Ended(ExitStatus),
    /// The workspace is stopping.
    Stopping,
}

/// What ends a program before its time.
pub(super) struct Ends {
    /// Somebody wants it to end.
    pub(super) wanted: CancellationToken,
    /// The agent stops.
    pub(super) stopping: CancellationToken,
}

struct Client {
    output: mpsc::Sender<Output>,
    /// It has missed something.
    behind: bool,
}

/// Clients, and what they are shown.
struct Audience {
    screen: Screen,
    clients: Vec<Client>,
    attached: Arc<AtomicU32>,
}

impl Audience {
    fn add(&mut self, output: mpsc::Sender<Output>) {
        let behind = output
            .try_send(Output::Data(self.screen.paint().into()))
            .is_err();
        self.clients.push(Client { output, behind });
        self.count();
    }

    fn count(&mut self) {
        self.clients.retain(|client| !client.output.is_closed());
        let count = u32::try_from(self.clients.len()).unwrap_or(u32::MAX);
        self.attached.store(count, Ordering::Relaxed);
    }

    /// Shows `data` to all who have room for it. Only when nobody has is it waited for.
    async fn show(&mut self, data: Bytes) {
        self.screen.write(&data);
        let mut shown = false;
        let mut full = Vec::new();
        for client in self.clients.iter_mut().filter(|client| !client.behind) {
            match client.output.try_send(Output::Data(data.clone())) {
                Ok(()) => shown = true,
                Err(_) => full.push(client),
            }
        }
        for client in full {
            client.behind = true;
            if !shown {
                let send = client.output.send(Output::Data(data.clone()));
                shown = matches!(timeout(STALL, send).await, Ok(Ok(())));
                client.behind = !shown;
            }
        }
    }

    /// Shows the screen to those who missed something and take again.
    fn catch_up(&mut self) {
        self.count();
        for client in self.clients.iter_mut().filter(|client| client.behind) {
            if client.output.capacity() == client.output.max_capacity() {
                let paint = Output::Data(self.screen.paint().into());
                client.behind = client.output.try_send(paint).is_err();
            }
        }
    }

    /// Tells all that it is over, after what they have missed; those who do not take it
    /// within `limit` are left.
    async fn part(&mut self, word: Output, limit: Duration) {
        let until = Instant::now() + limit;
        let screen = &self.screen;
        let told = self.clients.iter().map(|client| {
            let word = word.clone();
            timeout_at(until, async move {
                if client.behind {
                    let paint = Output::Data(screen.paint().into());
                    let _ = client.output.send(paint).await;
                }
                let _ = client.output.send(word).await;
            })
        });
        join_all(told).await;
    }
}

/// Keeps a program until it has ended.
pub(super) async fn keep(program: Program, mut inbox: Inbox, attached: Arc<AtomicU32>, ends: Ends) {
    let Program {
        master,
        mut child,
        size,
    } = program;
    let mut audience = Audience {
        screen: Screen::new(size),
        clients: Vec::new(),
        attached,
    };
    let mut input: VecDeque<u8> = VecDeque::new();
    let mut buffer = vec![0; 16 * 1024];
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silent = false;
    // When a program that was told to end is killed.
    let mut deadline = None;
    let status = loop {
        let (typed, _) = input.as_slices();
        tokio::select! {
            read = master.read(&mut buffer), if !silent => match read {
                Ok(0) | Err(_) => silent = true,
                Ok(read) => {
                    let data = Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default());
                    audience.show(data).await;
                }
            },
            written = master.write(typed), if !typed.is_empty() => match written {
                Ok(written) => drop(input.drain(..written)),
                Err(_) => input.clear(),
            },
            Some(data) = inbox.typed.recv(), if input.len() < INPUT => input.extend(data),
            order = inbox.orders.recv() => match order {
                Some(Order::Attach { size, output }) => {
                    resize(&master, &mut audience, size);
                    audience.add(output);
                }
                Some(Order::Resize(size)) => resize(&master, &mut audience, size),
                Some(Order::Signal(signal)) => signal_group(child.pid, signal, false),
                // Not before the list of terminals is gone, and with it the agent.
                None => break None,
            },
            _ = looks.tick(), if !audience.clients.is_empty() => audience.catch_up(),
            status = &mut child.exit => break status.ok(),
            () = ends.wanted.cancelled(), if deadline.is_none() => {
                deadline = Some(Instant::now() + GRACE);
                hang_up_group(child.pid, false);
            }
            () = until(deadline) => {
                deadline = None;
                signal_group(child.pid, Signal::SIGKILL, false);
            }
            () = ends.stopping.cancelled() => {
                audience.part(Output::Stopping, STALL).await;
                hang_up_group(child.pid, false);
                return;
            }
        }
    };
    inbox.orders.close();
    let most = Instant::now() + LAST_WORDS_MOST;
    while Instant::now() < most {
        let Ok(Ok(read @ 1..)) = timeout(LAST_WORDS, master.read(&mut buffer)).await else {
            break;
        };
        let data = Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default());
        audience.show(data).await;
    }
    if let Some(status) = status {
        tokio::select! {
            () = audience.part(Output::Ended(status), PARTING) => {}
            () = ends.stopping.cancelled() => {}
        }
    }
}

/// Waits until `deadline`; without one, for ever.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

fn resize(master: &Master, audience: &mut Audience, size: Size) {
    let _ = master.resize(size);
    audience.screen.resize(size);
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn audience() -> Audience {
        Audience {
            screen: Screen::new(Size::default()),
            clients: Vec::new(),
            attached: Arc::default(),
        }
    }

    /// A client that has just come, and been painted the screen.
    fn client(audience: &mut Audience) -> mpsc::Receiver<Output> {
        let (sender, mut output) = mpsc::channel(OUTPUTS);
        audience.add(sender);
        assert!(matches!(output.try_recv(), Ok(Output::Data(_))));
        output
    }

    fn text(output: &mut mpsc::Receiver<Output>) -> String {
        match output.try_recv() {
            Ok(Output::Data(data)) => String::from_utf8_lossy(&data).into_owned(),
            other => panic!("no text: {other:?}"),
        }
    }

    #[tokio::test]
    async fn nobody_waits_for_one_who_is_slower_than_another() {
        let mut audience = audience();
        let mut slow = client(&mut audience);
        let mut quick = client(&mut audience);
        for n in 0..3 * OUTPUTS {
            let line = format!("line {n}\r\n");
            let shown = audience.show(line.clone().into()).now_or_never();
            assert!(shown.is_some(), "line {n} is waited for");
            assert_eq!(text(&mut quick), line);
        }
        // What the slow one was shown before it fell behind, and then all there is.
        for n in 0..OUTPUTS {
            assert_eq!(text(&mut slow), format!("line {n}\r\n"));
        }
        audience.catch_up();
        let painted = text(&mut slow);
        assert!(
            painted.contains(&format!("line {}", 3 * OUTPUTS - 1)),
            "{painted}"
        );
        assert!(quick.try_recv().is_err(), "nothing twice");
    }

    #[tokio::test]
    async fn one_who_is_behind_is_shown_the_end_before_being_told_of_it() {
        let mut audience = audience();
        let (mut behind, mut quick) = (client(&mut audience), client(&mut audience));
        for n in 0..=OUTPUTS {
            audience.show(format!("line {n}\r\n").into()).await;
            text(&mut quick);
        }
        let word = Output::Ended(ExitStatus::from_raw(7 << 8));
        let taken = async {
            let mut taken = Vec::new();
            while let Some(output) = behind.recv().await {
                taken.push(output);
                if matches!(taken.last(), Some(Output::Ended(_))) {
                    break;
                }
            }
            taken
        };
        let (taken, ()) = tokio::join!(taken, audience.part(word, PARTING));
        let [.., Output::Data(painted), Output::Ended(status)] = taken.as_slice() else {
            panic!("{taken:?}");
        };
        let painted = String::from_utf8_lossy(painted);
        assert!(painted.contains(&format!("line {OUTPUTS}")), "{painted}");
        assert_eq!(status.code(), Some(7));
        assert!(matches!(quick.try_recv(), Ok(Output::Ended(_))));
    }
}
