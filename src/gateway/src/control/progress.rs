//! Watching an operation: bars on a terminal that can draw them, lines where
//! there is none, one JSON object a line with `--json`.
//!
//! Every step leaves a line with its time. Where nothing can be drawn, one that
//! takes longer than a second is told while it lasts, too.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use serde_json::json;

use super::failure::Failure;
use super::io::Console;
use super::text::{printable, size};
use crate::workspace::{Operation, Progress};

/// What a step must have taken so far to be told before it ends.
const WORTH_A_LINE: Duration = Duration::from_secs(1);

/// How often a bar moves.
const TICK: Duration = Duration::from_millis(100);

/// How often a transfer is reported in lines.
const TRANSFER_LINE: Duration = Duration::from_secs(5);

/// Shows an operation until it ends; `subject` is what it is about
/// ("workspace x"), `follow_up` the command that asks how it goes on.
pub(super) async fn watch(
    console: &mut Console,
    json: bool,
    mut operation: Operation,
    subject: &str,
    follow_up: &str,
) -> Result<(), Failure> {
    let mut view = View::new(console, json);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let shown = tokio::select! {
            progress = operation.next() => match progress {
                Some(progress) => view.progress(&progress),
                None => break,
            },
            _ = tick.tick() => view.tick(),
            () = console.interrupted() => {
                view.write(console, view.end()).await?;
                return Err(Failure::interrupted(subject, "no longer watched; the work goes on").remedy(follow_up));
            }
        };
        view.write(console, shown).await?;
    }
    view.write(console, view.end()).await?;
    Ok(operation.outcome().await?)
}

/// How progress is shown.
enum View {
    Json,
    Lines(Lines),
    Bars(Bars),
}

/// What is to be written, and where.
enum Shown {
    Nothing,
    /// To stdout.
    Result(String),
    /// To stderr.
    Line(String),
    /// Drawn on the terminal.
    Drawn(Vec<u8>),
}

impl View {
    fn new(console: &Console, json: bool) -> Self {
        if json {
            Self::Json
        } else if console.capable {
            Self::Bars(Bars::new(console))
        } else {
            Self::Lines(Lines::default())
        }
    }

    fn progress(&mut self, progress: &Progress) -> Shown {
        match self {
            Self::Json => match serde_json::to_string(progress) {
                Ok(line) => Shown::Result(format!("{line}\n")),
                Err(_) => Shown::Nothing,
            },
            Self::Lines(lines) => lines.progress(progress, Instant::now()),
            Self::Bars(bars) => bars.progress(progress),
        }
    }

    fn tick(&mut self) -> Shown {
        match self {
            Self::Json => Shown::Nothing,
            Self::Lines(lines) => lines.tick(Instant::now()),
            Self::Bars(bars) => bars.tick(),
        }
    }

    fn end(&self) -> Shown {
        match self {
            Self::Bars(bars) => bars.end(),
            _ => Shown::Nothing,
        }
    }

    async fn write(&self, console: &mut Console, shown: Shown) -> io::Result<()> {
        match shown {
            Shown::Nothing => Ok(()),
            Shown::Result(text) => console.out(&text).await,
            Shown::Line(text) => console.err(&text).await,
            Shown::Drawn(bytes) => console.draw(&bytes).await,
        }
    }
}

/// The last line of `--json`: what became of it.
pub(super) fn result_line(what: &str, value: &impl serde::Serialize) -> String {
    format!("{}\n", json!({ "event": "result", what: value }))
}

/// A step as it is told once it has ended.
fn finished(step: &str, took: Duration) -> String {
    format!("{} ({:.1} s)\n", printable(step), took.as_secs_f64())
}

/// The same for one that failed.
fn failed(step: &str, took: Duration) -> String {
    format!("{} failed ({:.1} s)\n", printable(step), took.as_secs_f64())
}

/// Steps under way, for plain lines.
#[derive(Default)]
struct Lines {
    running: BTreeMap<String, Running>,
}

struct Running {
    since: Instant,
    told: Option<Instant>,
    transfer: Option<(u64, Option<u64>)>,
}

impl Lines {
    fn progress(&mut self, progress: &Progress, now: Instant) -> Shown {
        match progress {
            Progress::Started { step } => {
                let running = Running {
                    since: now,
                    told: None,
                    transfer: None,
                };
                self.running.insert(step.clone(), running);
                Shown::Nothing
            }
            Progress::Transfer { step, done, total } => {
                if let Some(running) = self.running.get_mut(step) {
                    running.transfer = Some((*done, *total));
                }
                Shown::Nothing
            }
            Progress::Message { text, .. } => Shown::Line(format!("{}\n", printable(text))),
            Progress::Finished { step, took } => {
                self.running.remove(step);
                Shown::Line(finished(step, *took))
            }
            // The outcome tells why.
            Progress::Failed { step, .. } => {
                let took = self.running.remove(step).map(|running| now - running.since);
                Shown::Line(failed(step, took.unwrap_or_default()))
            }
        }
    }

    fn tick(&mut self, now: Instant) -> Shown {
        let mut text = String::new();
        for (step, running) in &mut self.running {
            let due = match running.told {
                None => now.duration_since(running.since) >= WORTH_A_LINE,
                Some(told) => {
                    running.transfer.is_some() && now.duration_since(told) >= TRANSFER_LINE
                }
            };
            if !due {
                continue;
            }
            running.told = Some(now);
            let amount = match running.transfer {
                Some((done, Some(total))) => format!(" {} of {}", size(done), size(total)),
                Some((done, None)) => format!(" {}", size(done)),
                None => String::new(),
            };
            text.push_str(&format!("{} …{amount}\n", printable(step)));
        }
        if text.is_empty() {
            Shown::Nothing
        } else {
            Shown::Line(text)
        }
    }
}

/// Steps under way, as bars.
struct Bars {
    bars: MultiProgress,
    steps: BTreeMap<String, ProgressBar>,
    drawing: Drawing,
    unicode: bool,
}

impl Bars {
    fn new(console: &Console) -> Self {
        let drawing = Drawing {
            drawn: Arc::default(),
            size: console.terminal(),
        };
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(drawing.clone()), 20);
        Self {
            bars: MultiProgress::with_draw_target(target),
            steps: BTreeMap::new(),
            drawing,
            unicode: console.unicode,
        }
    }

    fn style(&self, template: &str) -> ProgressStyle {
        // The templates are ours: one that is wrong shows as a plain bar.
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        if self.unicode {
            style.tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ").progress_chars("━━ ")
        } else {
            style.tick_chars("|/-\\ ").progress_chars("=> ")
        }
    }

    fn progress(&mut self, progress: &Progress) -> Shown {
        match progress {
            Progress::Started { step } => {
                let bar = self.bars.add(ProgressBar::new_spinner());
                bar.set_style(self.style("{spinner} {msg} {elapsed}"));
                bar.set_message(printable(step));
                self.steps.insert(step.clone(), bar);
            }
            Progress::Transfer { step, done, total } => {
                let total_style =
                    self.style("{spinner} {msg} [{bar:24}] {binary_bytes} of {binary_total_bytes}");
                let open_style = self.style("{spinner} {msg} {binary_bytes}");
                if let Some(bar) = self.steps.get(step) {
                    match total {
                        Some(total) => {
                            bar.set_style(total_style);
                            bar.set_length(*total);
                        }
                        None => bar.set_style(open_style),
                    }
                    bar.set_position(*done);
                }
            }
            Progress::Message { text, .. } => {
                let _ = self.bars.println(printable(text));
            }
            Progress::Finished { step, took } => {
                self.remove(step);
                let mark = if self.unicode { "✓ " } else { "" };
                let _ = self
                    .bars
                    .println(format!("{mark}{}", finished(step, *took).trim_end()));
            }
            Progress::Failed { step, .. } => {
                let took = self.remove(step);
                let mark = if self.unicode { "✗ " } else { "" };
                let _ = self
                    .bars
                    .println(format!("{mark}{}", failed(step, took).trim_end()));
            }
        }
        self.drawing.take()
    }

    /// Takes the bar of a step away; returns how long it was there.
    fn remove(&mut self, step: &str) -> Duration {
        let Some(bar) = self.steps.remove(step) else {
            return Duration::ZERO;
        };
        bar.finish_and_clear();
        self.bars.remove(&bar);
        bar.elapsed()
    }

    fn tick(&mut self) -> Shown {
        for bar in self.steps.values() {
            bar.tick();
        }
        self.drawing.take()
    }

    fn end(&self) -> Shown {
        for bar in self.steps.values() {
            bar.finish_and_clear();
        }
        let _ = self.bars.clear();
        self.drawing.take()
    }
}

/// Where indicatif draws: into memory, which goes to the client after each step.
#[derive(Debug, Clone)]
struct Drawing {
    drawn: Arc<Mutex<Vec<u8>>>,
    size: Option<tokio::sync::watch::Receiver<super::TerminalSize>>,
}

impl Drawing {
    fn take(&self) -> Shown {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        if drawn.is_empty() {
            Shown::Nothing
        } else {
            Shown::Drawn(std::mem::take(&mut drawn))
        }
    }

    fn add(&self, text: &str) -> io::Result<()> {
        self.drawn
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(text.as_bytes());
        Ok(())
    }

    /// ECMA-48: CUU, CUD, CUF, CUB.
    fn moved(&self, count: usize, direction: char) -> io::Result<()> {
        if count == 0 {
            Ok(())
        } else {
            self.add(&format!("\x1b[{count}{direction}"))
        }
    }

    fn dimension(&self, of: impl FnOnce(super::TerminalSize) -> u16, default: u16) -> u16 {
        match self.size.as_ref().map(|size| of(*size.borrow())) {
            None | Some(0) => default,
            Some(length) => length,
        }
    }
}

impl TermLike for Drawing {
    fn width(&self) -> u16 {
        self.dimension(|size| size.columns, 80)
    }

    fn height(&self) -> u16 {
        self.dimension(|size| size.rows, 24)
    }

    fn move_cursor_up(&self, count: usize) -> io::Result<()> {
        self.moved(count, 'A')
    }

    fn move_cursor_down(&self, count: usize) -> io::Result<()> {
        self.moved(count, 'B')
    }

    fn move_cursor_right(&self, count: usize) -> io::Result<()> {
        self.moved(count, 'C')
    }

    fn move_cursor_left(&self, count: usize) -> io::Result<()> {
        self.moved(count, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.add(text)?;
        self.add("\r\n")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.add(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.add("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
