//! Runs one terminal's program, and passes on between it and its clients.

use std::collections::VecDeque;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::screen::Screen;
use crate::process::{Child, hang_up_group, signal_group};
use crate::session::{Master, Size};

/// Orders that may wait.
pub(super) const ORDERS: usize = 16;

/// Reads of output that a client may be behind.
pub const OUTPUTS: usize = 8;

/// Bytes of input that the program may be behind; more waits in its clients.
const INPUT: usize = 64 * 1024;

/// How long output waits for a client that takes nothing.
const STALL: Duration = Duration::from_millis(500);

/// How often it is looked whether such a client takes again.
const LOOK: Duration = Duration::from_millis(100);

/// How long a program's last words are waited for.
const LAST_WORDS: Duration = Duration::from_millis(100);

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

/// What a client wants.
#[derive(Debug)]
pub enum Order {
    /// To be shown the screen, and what is written from now on.
    Attach {
        /// Its size.
        size: Size,
        /// Where it is shown.
        output: mpsc::Sender<Output>,
    },
    /// To type.
    Input(Bytes),
    /// To have another size.
    Resize(Size),
    /// To signal the program.
    Signal(Signal),
}

/// What a client is told.
#[derive(Debug)]
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

    async fn show(&mut self, data: Bytes) {
        self.screen.write(&data);
        for client in self.clients.iter_mut().filter(|client| !client.behind) {
            let send = client.output.send(Output::Data(data.clone()));
            client.behind = timeout(STALL, send).await.is_err();
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

    /// Tells all that it is over.
    async fn part(&mut self, word: impl Fn() -> Output) {
        for client in &self.clients {
            let _ = timeout(STALL, client.output.send(word())).await;
        }
    }
}

/// Keeps a program until it has ended.
pub(super) async fn keep(
    program: Program,
    mut inbox: mpsc::Receiver<Order>,
    attached: Arc<AtomicU32>,
    ends: Ends,
) {
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
    let (mut silent, mut asked_to_end) = (false, false);
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
            order = inbox.recv(), if input.len() < INPUT => match order {
                Some(Order::Attach { size, output }) => {
                    resize(&master, &mut audience, size);
                    audience.add(output);
                }
                Some(Order::Input(data)) => input.extend(data),
                Some(Order::Resize(size)) => resize(&master, &mut audience, size),
                Some(Order::Signal(signal)) => signal_group(child.pid, signal, false),
                // Not before the list of terminals is gone, and with it the agent.
                None => break None,
            },
            _ = looks.tick(), if !audience.clients.is_empty() => audience.catch_up(),
            status = &mut child.exit => break status.ok(),
            () = ends.wanted.cancelled(), if !asked_to_end => {
                asked_to_end = true;
                hang_up_group(child.pid, false);
                let pid = child.pid;
                if let Ok(status) = timeout(GRACE, &mut child.exit).await {
                    break status.ok();
                }
                signal_group(pid, Signal::SIGKILL, false);
            }
            () = ends.stopping.cancelled() => {
                audience.part(|| Output::Stopping).await;
                hang_up_group(child.pid, false);
                return;
            }
        }
    };
    inbox.close();
    while let Ok(Ok(read @ 1..)) = timeout(LAST_WORDS, master.read(&mut buffer)).await {
        let data = Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default());
        audience.show(data).await;
    }
    if let Some(status) = status {
        audience.part(|| Output::Ended(status)).await;
    }
}

fn resize(master: &Master, audience: &mut Audience, size: Size) {
    let _ = master.resize(size);
    audience.screen.resize(size);
}
