//! Line editing for a client's terminal: termwiz's editor over the channel's
//! bytes. (rustyline and reedline read a tty of their own process, which an SSH
//! channel is not; termwiz asks for a `Terminal`, which `terminal` is.)
//!
//! The editor blocks, so it has a thread while a line is edited. The thread
//! lives on two bounded channels; when the future that reads the line is
//! dropped, both close and the thread ends.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;

use termwiz::cell::{AttributeChange, Intensity};
use termwiz::input::{InputEvent, KeyCode, KeyEvent, Modifiers};
use termwiz::lineedit::{
    Action, CompletionCandidate, LineEditor, LineEditorHost, Movement, OutputElement,
};
use tokio::sync::mpsc;

use super::history::History;
use super::io::Console;
use super::terminal::ChannelTerminal;

/// Longest line, in bytes; what would make it longer is not inserted.
const MAX_LINE: usize = 4096;

/// How a line came to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Enter.
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D on an empty line, or the client is gone.
    End,
}

/// What may follow: the words for a place in the line, which begins at a byte of it.
pub(super) type Complete = Box<dyn Fn(&str) -> (usize, Vec<String>) + Send>;

/// What the editor knows besides the line: history, completion, looks.
pub(super) struct Assistant {
    pub(super) history: History,
    complete: Complete,
    /// The words the user can choose from, shown below the line.
    choices: RefCell<Vec<String>>,
    color: bool,
}

impl Assistant {
    pub(super) fn new(history: History, color: bool, complete: Complete) -> Self {
        Self {
            history,
            complete,
            choices: RefCell::default(),
            color,
        }
    }

    /// For a question, which has neither history nor completion.
    pub(super) fn none(color: bool) -> Self {
        Self::new(
            History::none(),
            color,
            Box::new(|line| (line.len(), Vec::new())),
        )
    }
}

/// Reads a line with editing from a client that has a terminal.
pub(super) async fn read_line(
    console: &mut Console,
    prompt: &str,
    assistant: Assistant,
) -> io::Result<(Line, Assistant)> {
    let Some(size) = console.terminal() else {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the client has no terminal",
        ));
    };
    let (input, from_client) = mpsc::channel::<Vec<u8>>(4);
    let (to_client, mut output) = mpsc::channel::<Vec<u8>>(4);
    let received = std::mem::take(&mut console.pending).into();
    let terminal = ChannelTerminal::new(received, from_client, to_client, size)?;
    let prompt = prompt.to_owned();
    let editing = tokio::task::spawn_blocking(move || edit(terminal, &prompt, assistant));

    let mut input = Some(input);
    loop {
        let fill = async {
            match &input {
                Some(input) => {
                    // Room first: the editor may be waiting for us to take its output.
                    let Ok(room) = input.reserve().await else {
                        return std::future::pending().await;
                    };
                    let more = console.fill().await.unwrap_or(false);
                    room.send(std::mem::take(&mut console.pending));
                    more
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            drawn = output.recv() => match drawn {
                Some(bytes) => console.draw(&bytes).await?,
                None => break,
            },
            more = fill => if !more {
                input = None;
            },
        }
    }
    drop(input);
    let mut edited = editing.await.map_err(io::Error::other)?;
    let mut left: Vec<u8> = edited.bytes.into();
    while let Ok(bytes) = edited.input.try_recv() {
        left.extend(bytes);
    }
    console.pending.splice(..0, left);
    Ok((edited.line, edited.assistant))
}

/// What the editor's thread hands back.
struct Edited {
    line: Line,
    assistant: Assistant,
    bytes: VecDeque<u8>,
    input: mpsc::Receiver<Vec<u8>>,
}

fn edit(mut terminal: ChannelTerminal, prompt: &str, mut assistant: Assistant) -> Edited {
    let mut editor = LineEditor::new(&mut terminal);
    editor.set_prompt(prompt);
    let line = match editor.read_line(&mut assistant) {
        Ok(Some(line)) => Line::Text(line),
        Ok(None) => Line::Interrupted,
        Err(_) => Line::End,
    };
    drop(editor);
    let (bytes, input) = terminal.into_input();
    Edited {
        line,
        assistant,
        bytes,
        input,
    }
}

impl LineEditorHost for Assistant {
    fn render_prompt(&self, prompt: &str) -> Vec<OutputElement> {
        let text = OutputElement::Text(prompt.to_owned());
        if self.color {
            vec![
                OutputElement::Attribute(AttributeChange::Intensity(Intensity::Bold)),
                text,
            ]
        } else {
            vec![text]
        }
    }

    fn render_preview(&self, _line: &str) -> Vec<OutputElement> {
        let choices = self.choices.borrow();
        if choices.is_empty() {
            Vec::new()
        } else {
            vec![OutputElement::Text(choices.join("  "))]
        }
    }

    fn history(&mut self) -> &mut dyn termwiz::lineedit::History {
        &mut self.history
    }

    fn complete(&self, line: &str, cursor: usize) -> Vec<CompletionCandidate> {
        let typed = line.get(..cursor).unwrap_or(line);
        let (start, words) = (self.complete)(typed);
        let candidate = |text: String| CompletionCandidate {
            range: start..cursor,
            text,
        };
        match words.as_slice() {
            [] => Vec::new(),
            [word] => vec![candidate(format!("{word} "))],
            several => {
                let common = common_prefix(several);
                self.choices.replace(words.clone());
                if common.len() > cursor.saturating_sub(start) {
                    vec![candidate(common)]
                } else {
                    // The user goes on; termwiz would put in one after another.
                    Vec::new()
                }
            }
        }
    }

    fn resolve_action(
        &mut self,
        event: &InputEvent,
        editor: &mut LineEditor<'_>,
    ) -> Option<Action> {
        let (key, modifiers) = match event {
            InputEvent::Key(KeyEvent { key, modifiers }) => (key, modifiers),
            InputEvent::Paste(text) => {
                self.choices.borrow_mut().clear();
                let room = editor.get_line_and_cursor().0.len() + text.len() <= MAX_LINE;
                return (!room).then_some(Action::NoAction);
            }
            _ => return None,
        };
        if *key != KeyCode::Tab {
            self.choices.borrow_mut().clear();
        }
        match (*key, *modifiers) {
            // As in a shell: Ctrl-D leaves only from an empty line.
            (KeyCode::Char('D'), Modifiers::CTRL) if !editor.get_line_and_cursor().0.is_empty() => {
                Some(Action::KillAndMove(
                    Movement::ForwardChar(1),
                    Movement::None,
                ))
            }
            (KeyCode::Char('U'), Modifiers::CTRL) => Some(Action::Kill(Movement::StartOfLine)),
            (KeyCode::LeftArrow | KeyCode::ApplicationLeftArrow, Modifiers::CTRL) => {
                Some(Action::Move(Movement::BackwardWord(1)))
            }
            (KeyCode::RightArrow | KeyCode::ApplicationRightArrow, Modifiers::CTRL) => {
                Some(Action::Move(Movement::ForwardWord(1)))
            }
            _ => None,
        }
    }
}

fn common_prefix(words: &[String]) -> String {
    let mut words = words.iter();
    let mut common = words.next().cloned().unwrap_or_default();
    for word in words {
        let same = common.chars().zip(word.chars()).take_while(|(a, b)| a == b);
        common.truncate(same.map(|(c, _)| c.len_utf8()).sum());
    }
    common
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::TerminalSize;
    use super::super::io::tests::{Client, client};
    use super::*;

    fn console() -> (Client, Console) {
        let (client, io) = client(true);
        (client, Console::new(io, &BTreeMap::new()))
    }

    /// What the editor makes of `keys`, one line after another.
    async fn lines(keys: &[u8], count: usize) -> Vec<Line> {
        let (mut client, mut console) = console();
        client.stdin.write_all(keys).await.unwrap();
        let complete = |line: &str| {
            let words = ["status", "stop-all", "version"];
            (
                0,
                words
                    .iter()
                    .filter(|word| word.starts_with(line))
                    .map(|&word| word.to_owned())
                    .collect(),
            )
        };
        let mut assistant = Assistant::new(History::none(), false, Box::new(complete));
        let mut lines = Vec::new();
        for _ in 0..count {
            let (line, back) = read_line(&mut console, "> ", assistant).await.unwrap();
            assistant = back;
            if let Line::Text(text) = &line {
                assistant.history.keep(text);
            }
            lines.push(line);
        }
        lines
    }

    fn text(text: &str) -> Line {
        Line::Text(text.to_owned())
    }

    #[tokio::test]
    async fn keys_edit_the_line_as_in_a_shell() {
        for (keys, want) in [
            (&b"hello\r"[..], "hello"),
            (b"helo\x1b[Dl\r", "hello"),              // left
            (b"ello\x01h\r", "hello"),                // Ctrl-A
            (b"hexx\x7f\x7fllo\r", "hello"),          // backspace
            (b"some words\x17thing\r", "some thing"), // Ctrl-W
            (b"wrong\x15right\r", "right"),           // Ctrl-U
            (b"hxello\x01\x1b[C\x04\r", "hello"),     // right, Ctrl-D deletes
            ("gr\u{fc}\u{df}e\r".as_bytes(), "gr\u{fc}\u{df}e"),
            (b"a\xff\xfeb\r", "ab"), // not UTF-8
        ] {
            assert_eq!(lines(keys, 1).await, [text(want)], "{keys:?}");
        }
    }

    #[tokio::test]
    async fn ctrl_c_drops_the_line_and_ctrl_d_on_an_empty_line_ends() {
        assert_eq!(
            lines(b"half\x03whole\r\x04", 3).await,
            [Line::Interrupted, text("whole"), Line::End]
        );
    }

    #[tokio::test]
    async fn the_arrow_up_brings_back_the_line_before() {
        assert_eq!(
            lines(b"first\r\x1b[A\r", 2).await,
            [text("first"), text("first")]
        );
    }

    #[tokio::test]
    async fn tab_completes_what_is_unique_and_the_common_part_of_what_is_not() {
        assert_eq!(lines(b"v\t\r", 1).await, [text("version ")]);
        assert_eq!(lines(b"s\ta\t\r", 1).await, [text("status ")]);
        assert_eq!(lines(b"s\t\t\t\r", 1).await, [text("st")]);
    }

    #[tokio::test]
    async fn what_is_typed_ahead_is_the_next_line() {
        assert_eq!(
            lines(b"one\rtwo\rthree\r", 3).await,
            [text("one"), text("two"), text("three")]
        );
    }

    #[tokio::test]
    async fn nothing_a_client_sends_stops_or_feeds_the_editor_without_end() {
        let mut flood = b"\x1b[200~".to_vec();
        flood.extend(vec![b'x'; 32 << 10]);
        flood.extend(b"\x03ok\r");
        assert_eq!(lines(&flood, 2).await, [Line::Interrupted, text("ok")]);
        assert_eq!(
            lines(b"\x1b[200~\xff\xff\xff\x1b[201~ok\r", 1).await,
            [text("ok")]
        );
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_the_line_and_its_thread() {
        let (client, mut console) = console();
        drop(client.stdin);
        let (line, _) = read_line(&mut console, "> ", Assistant::none(false))
            .await
            .unwrap();
        assert_eq!(line, Line::End);

        let (_client, mut console) = self::console();
        let reading = read_line(&mut console, "> ", Assistant::none(false));
        tokio::time::timeout(Duration::from_millis(50), reading)
            .await
            .err()
            .unwrap();
        // The runtime waits for its blocking threads when it is dropped: it must not hang.
    }

    #[tokio::test]
    async fn a_terminal_without_a_size_or_with_a_new_one_is_drawn_on() {
        let (mut client, mut console) = console();
        let size = client.size.take().unwrap();
        size.send_replace(TerminalSize::default());
        client.stdin.write_all(b"a").await.unwrap();
        let reading = read_line(&mut console, "vendetta> ", Assistant::none(false));
        let typing = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            size.send_replace(TerminalSize {
                columns: 1,
                rows: 1,
            });
            tokio::time::sleep(Duration::from_millis(30)).await;
            client.stdin.write_all(b"b\r").await.unwrap();
        };
        let (read, ()) = tokio::join!(reading, typing);
        assert_eq!(read.unwrap().0, text("ab"));
        drop(console);
        let mut drawn = String::new();
        client.stdout.read_to_string(&mut drawn).await.unwrap();
        assert!(drawn.contains("vendetta> "), "{drawn:?}");
    }
}
