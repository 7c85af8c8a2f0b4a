//! Text for people: tables, times, sizes, and data that cannot play tricks on a
//! terminal.

use comfy_table::{ContentArrangement, Table};
use jiff::Timestamp;

use super::io::Console;

/// `text` without control characters, so that a name or a message that came
/// from elsewhere can neither move the cursor nor set a window title.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// Rows below their headings, in as many columns as the reader has.
pub(super) fn table(console: &Console, headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    if console.is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(u16::try_from(console.width()).unwrap_or(u16::MAX));
    }
    table.set_header(headings);
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text: String = table
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    match text.split_once('\n') {
        Some((first, rest)) if console.color => format!("\x1b[1m{first}\x1b[0m\n{rest}"),
        _ => text,
    }
}

/// How long ago: "3 hours ago".
pub(super) fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs();
    match seconds {
        ..5 => "just now".to_owned(),
        _ => format!("{} ago", duration(seconds)),
    }
}

/// A length of time in its largest unit: "3 hours".
pub(super) fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// A number of bytes: "12.3 MiB".
pub(super) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::io::tests::client;
    use super::*;

    #[test]
    fn times_are_told_in_their_largest_unit() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let at = |seconds: i64| ago(Timestamp::from_second(1_000_000 - seconds).unwrap(), now);
        assert_eq!(at(-10), "just now");
        assert_eq!(at(4), "just now");
        assert_eq!(at(59), "59 seconds ago");
        assert_eq!(at(60), "1 minute ago");
        assert_eq!(at(7200), "2 hours ago");
        assert_eq!(at(3 * 86_400), "3 days ago");
    }

    #[test]
    fn data_cannot_control_the_terminal() {
        assert_eq!(
            printable("a\x1b]0;x\x07b\u{9b}2J"),
            "a\u{fffd}]0;x\u{fffd}b\u{fffd}2J"
        );
    }

    #[test]
    fn a_table_has_aligned_columns_and_no_trailing_space() {
        let (_client, io) = client(false);
        let console = Console::new(io, &BTreeMap::new());
        let rows = vec![
            vec!["a".to_owned(), "running".to_owned()],
            vec!["long-name".to_owned(), "stopped".to_owned()],
        ];
        assert_eq!(
            table(&console, &["NAME", "STATE"], rows),
            "NAME       STATE\na          running\nlong-name  stopped\n"
        );
    }
}
