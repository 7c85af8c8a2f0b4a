//! A client's terminal as termwiz sees one: keys out of the channel's bytes,
//! drawing into them. Plain ECMA-48, which every terminal of today understands.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::Duration;

use termwiz::caps::{Capabilities, ProbeHints};
use termwiz::input::{InputEvent, InputParser, KeyCode, KeyEvent, Modifiers};
use termwiz::render::RenderTty;
use termwiz::render::terminfo::TerminfoRenderer;
use termwiz::surface::Change;
use termwiz::terminal::{ScreenSize, Terminal, TerminalWaker};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::io::TerminalSize;

/// How long the rest of an escape sequence may take before ESC stands for itself.
const ESCAPE_TIME: Duration = Duration::from_millis(50);

/// Bytes the parser may hold without making an event of them: an endless
/// escape sequence or paste is dropped.
const MAX_PARTIAL: usize = 16 << 10;

/// Text that is handed over at once, in bytes.
const MAX_TEXT: usize = 4096;

/// A client's terminal. Blocks, so it belongs on a thread of its own; it ends
/// when either channel does.
pub(super) struct ChannelTerminal {
    input: mpsc::Receiver<Vec<u8>>,
    output: mpsc::Sender<Vec<u8>>,
    /// Received and not looked at; what is left after a line belongs to the next reader.
    bytes: VecDeque<u8>,
    parser: InputParser,
    /// Bytes the parser holds.
    partial: usize,
    events: VecDeque<InputEvent>,
    renderer: TerminfoRenderer,
    size: watch::Receiver<TerminalSize>,
    runtime: Handle,
}

impl ChannelTerminal {
    /// `bytes` were received before, `input` brings more; `output` takes what is drawn.
    pub(super) fn new(
        bytes: VecDeque<u8>,
        input: mpsc::Receiver<Vec<u8>>,
        output: mpsc::Sender<Vec<u8>>,
        size: watch::Receiver<TerminalSize>,
    ) -> io::Result<Self> {
        Ok(Self {
            input,
            output,
            bytes,
            parser: InputParser::new(),
            partial: 0,
            events: VecDeque::new(),
            renderer: TerminfoRenderer::new(capabilities()?),
            size,
            runtime: Handle::current(),
        })
    }

    /// What was received and not used, and where more comes from.
    pub(super) fn into_input(self) -> (VecDeque<u8>, mpsc::Receiver<Vec<u8>>) {
        (self.bytes, self.input)
    }

    /// Takes the text off the front of [`Self::bytes`] up to the next key that
    /// is not text: what arrives together is drawn once.
    fn take_text(&mut self) -> Option<String> {
        let mut text = String::new();
        while text.len() < MAX_TEXT
            && self
                .bytes
                .front()
                .is_some_and(|&byte| byte >= b' ' && byte != 0x7f)
            && let Some(character) = self.take_character()
        {
            text.push(character);
        }
        (!text.is_empty()).then_some(text)
    }

    /// Takes one whole character off [`Self::bytes`]. Bytes that are no UTF-8
    /// are dropped: termwiz's parser does not expect them in a paste.
    fn take_character(&mut self) -> Option<char> {
        loop {
            let length = match *self.bytes.front()? {
                0x00..=0x7f => 1,
                0xc2..=0xdf => 2,
                0xe0..=0xef => 3,
                0xf0..=0xf4 => 4,
                _ => {
                    self.bytes.pop_front();
                    continue;
                }
            };
            if self.bytes.len() < length {
                return None;
            }
            let bytes: Vec<u8> = self.bytes.iter().take(length).copied().collect();
            match std::str::from_utf8(&bytes)
                .ok()
                .and_then(|text| text.chars().next())
            {
                Some(character) => {
                    self.bytes.drain(..length);
                    return Some(character);
                }
                None => {
                    self.bytes.pop_front();
                }
            }
        }
    }

    fn parse(&mut self, bytes: &[u8], maybe_more: bool) {
        let events = &mut self.events;
        self.parser
            .parse(bytes, |event| events.push_back(event), maybe_more);
        self.partial = if events.is_empty() {
            self.partial + bytes.len()
        } else {
            0
        };
        if self.partial > MAX_PARTIAL || (self.partial > 0 && !maybe_more) {
            self.parser = InputParser::new();
            self.partial = 0;
        }
    }
}

fn gone() -> termwiz::Error {
    io::Error::from(io::ErrorKind::UnexpectedEof).into()
}

impl Terminal for ChannelTerminal {
    fn set_raw_mode(&mut self) -> termwiz::Result<()> {
        // The client's terminal is raw as long as the session lasts.
        Ok(())
    }

    fn set_cooked_mode(&mut self) -> termwiz::Result<()> {
        Ok(())
    }

    fn enter_alternate_screen(&mut self) -> termwiz::Result<()> {
        Ok(())
    }

    fn exit_alternate_screen(&mut self) -> termwiz::Result<()> {
        Ok(())
    }

    fn get_screen_size(&mut self) -> termwiz::Result<ScreenSize> {
        let TerminalSize { columns, rows } = *self.size.borrow();
        let or = |size: u16, default| {
            if size == 0 {
                default
            } else {
                usize::from(size)
            }
        };
        Ok(ScreenSize {
            cols: or(columns, 80),
            rows: or(rows, 24),
            xpixel: 0,
            ypixel: 0,
        })
    }

    fn set_screen_size(&mut self, _size: ScreenSize) -> termwiz::Result<()> {
        Ok(())
    }

    fn render(&mut self, changes: &[Change]) -> termwiz::Result<()> {
        let size = self.get_screen_size()?;
        let mut screen = Screen {
            size,
            drawn: Vec::new(),
        };
        self.renderer.render_to(changes, &mut screen)?;
        self.output.blocking_send(screen.drawn).map_err(|_| gone())
    }

    fn flush(&mut self) -> termwiz::Result<()> {
        Ok(())
    }

    fn poll_input(&mut self, _wait: Option<Duration>) -> termwiz::Result<Option<InputEvent>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(upper_case_control(event)));
            }
            if self.partial == 0
                && let Some(text) = self.take_text()
            {
                return Ok(Some(InputEvent::Paste(text)));
            }
            if let Some(character) = self.take_character() {
                self.parse(character.encode_utf8(&mut [0; 4]).as_bytes(), true);
                continue;
            }
            let (input, size, partial) = (&mut self.input, &mut self.size, self.partial > 0);
            enum Next {
                Bytes(Option<Vec<u8>>),
                Resized(bool),
                Silence,
            }
            let next = self.runtime.block_on(async {
                tokio::select! {
                    bytes = input.recv() => Next::Bytes(bytes),
                    changed = size.changed() => Next::Resized(changed.is_ok()),
                    () = tokio::time::sleep(ESCAPE_TIME), if partial => Next::Silence,
                }
            });
            match next {
                Next::Bytes(Some(bytes)) => self.bytes.extend(bytes),
                Next::Bytes(None) | Next::Resized(false) => return Err(gone()),
                Next::Silence => self.parse(b"", false),
                Next::Resized(true) => {
                    let TerminalSize { columns, rows } = *self.size.borrow_and_update();
                    return Ok(Some(InputEvent::Resized {
                        cols: columns.into(),
                        rows: rows.into(),
                    }));
                }
            }
        }
    }

    #[expect(
        clippy::unimplemented,
        reason = "termwiz makes wakers of its own terminals only; its editor asks for none"
    )]
    fn waker(&self) -> TerminalWaker {
        unimplemented!("a waker of a terminal that is not a tty")
    }
}

/// The parser says Ctrl-c, the editor knows Ctrl-C.
fn upper_case_control(event: InputEvent) -> InputEvent {
    match event {
        InputEvent::Key(KeyEvent {
            key: KeyCode::Char(c),
            modifiers: Modifiers::CTRL,
        }) => InputEvent::Key(KeyEvent {
            key: KeyCode::Char(c.to_ascii_uppercase()),
            modifiers: Modifiers::CTRL,
        }),
        other => other,
    }
}

/// Collects what is drawn at once.
struct Screen {
    size: ScreenSize,
    drawn: Vec<u8>,
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.drawn.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl RenderTty for Screen {
    fn get_size_in_cells(&mut self) -> termwiz::Result<(usize, usize)> {
        Ok((self.size.cols, self.size.rows))
    }
}

fn capabilities() -> io::Result<Capabilities> {
    // A name of no terminal, so that neither the server's TERM nor its terminfo
    // files count: plain ECMA-48, which every terminal of today understands.
    let hints = ProbeHints::default()
        .term(Some("none".to_owned()))
        .mouse_reporting(Some(false));
    Capabilities::new_with_hints(hints).map_err(io::Error::other)
}
