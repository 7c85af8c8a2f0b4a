//! What is on a terminal's screen, and how another terminal is made to show it.

use std::num::NonZeroU16;

use crate::session::Size;

/// Longest side that is kept, in characters; a client may say anything.
const MAX_SIDE: u32 = 1000;

/// Ends what a client's terminal may still be in (DECSTR, ECMA-48 SGR 0, ED 2, CUP), and
/// leaves its scrollback alone.
const CLEAR: &[u8] = b"\x1b[!p\x1b[0m\x1b[2J\x1b[H";

/// The alternate screen (xterm's private mode 1049), on and off.
const ALTERNATE: [&[u8]; 2] = [b"\x1b[?1049h", b"\x1b[?1049l"];

/// A screen that is not shown anywhere.
pub struct Screen(vt100::Parser);

impl Screen {
    pub fn new(size: Size) -> Self {
        let (rows, columns) = sides(size);
        Self(vt100::Parser::new(rows, columns, 0))
    }

    /// Takes what a program wrote.
    pub fn write(&mut self, output: &[u8]) {
        self.0.process(output);
    }

    pub fn resize(&mut self, size: Size) {
        let (rows, columns) = sides(size);
        self.0.screen_mut().set_size(rows, columns);
    }

    /// What makes a terminal of the same size show this screen, its cursor and its modes,
    /// and the main screen again when a program leaves the alternate one.
    pub fn paint(&self) -> Vec<u8> {
        let screen = self.0.screen();
        let shown = screen.state_formatted();
        let [on, off] = ALTERNATE;
        if !screen.alternate_screen() {
            return [off, CLEAR, shown.as_bytes()].concat();
        }
        // On another parser: ours may be within a sequence.
        let (rows, columns) = screen.size();
        let mut left = vt100::Parser::new(rows, columns, 0);
        *left.screen_mut() = screen.clone();
        left.process(off);
        let main = left.screen().contents_formatted();
        // Entering keeps the cursor and the rendition to which leaving returns.
        [off, CLEAR, main.as_bytes(), on, shown.as_bytes()].concat()
    }
}

/// Rows and columns; a client that does not say gets what terminals once had.
fn sides(size: Size) -> (NonZeroU16, NonZeroU16) {
    const ROWS: NonZeroU16 = NonZeroU16::new(24).unwrap();
    const COLUMNS: NonZeroU16 = NonZeroU16::new(80).unwrap();
    let side = |side: u32, usual| {
        let side = u16::try_from(side.min(MAX_SIDE)).ok();
        side.and_then(NonZeroU16::new).unwrap_or(usual)
    };
    (side(size.rows, ROWS), side(size.columns, COLUMNS))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(rows: u32, columns: u32) -> Size {
        Size {
            rows,
            columns,
            ..Size::default()
        }
    }

    fn shown(screen: &Screen) -> String {
        screen.0.screen().contents()
    }

    #[test]
    fn another_terminal_shows_what_was_there() {
        let mut screen = Screen::new(size(5, 20));
        screen.write(b"first\r\n\x1b[1;31mred\x1b[0m line\r\n\x1b[?2004h$ ");
        let mut other = Screen::new(size(5, 20));
        other.write(b"left over");
        other.write(&screen.paint());
        assert_eq!(shown(&other), "first\nred line\n$ ");
        assert_eq!(other.0.screen().cursor_position(), (2, 2));
        assert!(other.0.screen().bracketed_paste());
        screen.write(b"\x1b[?1049h\x1b[2J\x1b[Heditor");
        other.write(&screen.paint());
        assert!(other.0.screen().alternate_screen());
        assert_eq!(shown(&other), "editor");
        screen.write(b"\x1b[?1049l");
        other.write(&screen.paint());
        assert!(!other.0.screen().alternate_screen());
        assert_eq!(shown(&other), "first\nred line\n$ ");
    }

    #[test]
    fn a_terminal_that_comes_during_the_alternate_screen_has_the_main_one_behind_it() {
        let mut screen = Screen::new(size(5, 20));
        screen.write(b"first\r\n\x1b[32m$ \x1b[?1049h\x1b[2J\x1b[3;4Heditor\x1b[");
        let mut other = Screen::new(size(5, 20));
        other.write(b"of its own, before\r\nssh");
        other.write(&screen.paint());
        for screen in [&mut screen, &mut other] {
            assert!(screen.0.screen().alternate_screen());
            assert_eq!(shown(screen), "\n\n   editor");
            assert_eq!(screen.0.screen().cursor_position(), (2, 9));
        }
        screen.write(b"1m");
        for screen in [&mut screen, &mut other] {
            screen.write(b"\x1b[?1049l");
            assert_eq!(shown(screen), "first\n$ ");
            assert_eq!(screen.0.screen().cursor_position(), (1, 2));
            assert_eq!(screen.0.screen().fgcolor(), vt100::Color::Idx(2));
        }
    }

    /// What terminals are sent, well formed and not.
    fn output() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..20),
            "[ -~äあ👍]{0,20}".prop_map(String::into_bytes),
            "\\x1b\\[[0-9;?]{0,8}[@-~]".prop_map(String::into_bytes),
            "\\x1b[ -~]{1,3}".prop_map(String::into_bytes),
            Just(b"\r\n".to_vec()),
            Just(b"\x1b[?1049h".to_vec()),
        ];
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn whatever_is_written_and_however_it_is_resized_it_can_be_painted(
            steps in proptest::collection::vec((output(), 0u32..60, 0u32..200), 1..6),
        ) {
            let mut screen = Screen::new(size(24, 80));
            for (output, rows, columns) in steps {
                screen.write(&output);
                screen.resize(size(rows, columns));
                screen.write(&output);
                let mut other = Screen::new(size(rows, columns));
                other.write(&screen.paint());
            }
        }
    }
}
