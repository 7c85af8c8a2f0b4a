//! A page that is shown anew as it changes: drawn in place on a terminal,
//! written one after another elsewhere, one JSON object a line with `--json`.

use std::time::Duration;

use serde_json::Value;

use super::command::{Done, Session};
use super::failure::Failure;

/// Least time between two pages.
const LEAST: Duration = Duration::from_millis(200);

/// Longest time between two pages: times on it ("3 seconds ago") grow old.
const MOST: Duration = Duration::from_secs(2);

/// Shows `page` (text and JSON) until the user leaves, again whenever `changed`
/// returns; with false it will not again.
pub(super) async fn redraw(
    session: &mut Session<'_>,
    mut changed: impl AsyncFnMut() -> bool,
    page: impl Fn(&Session<'_>) -> (String, Value),
) -> Result<Done, Failure> {
    let in_place = session.console.capable && !session.json;
    let mut shown = (String::new(), 0);
    loop {
        let (text, value) = page(session);
        if session.json {
            session.console.out(&format!("{value}\n")).await?;
        } else if in_place {
            let lines = text.lines().count();
            let drawn = over(&text, shown.1, session.console.width());
            session.console.out(&drawn).await?;
            shown = (text, lines);
        } else if text != shown.0 {
            session.console.out(&text).await?;
            shown = (text, 0);
        }
        let wait = async {
            tokio::time::sleep(LEAST).await;
            let change = async {
                if !changed().await {
                    std::future::pending::<()>().await;
                }
            };
            if in_place {
                let _ = tokio::time::timeout(MOST - LEAST, change).await;
            } else {
                change.await;
            }
        };
        tokio::select! {
            () = wait => {}
            () = session.console.interrupted() => return Ok(Done::Ok),
        }
    }
}

/// `text` in place of the `lines` above it (ECMA-48: CPL, EL, ED); a line wider
/// than the terminal is cut, since it would be two.
fn over(text: &str, lines: usize, width: usize) -> String {
    let mut drawn = match lines {
        0 => String::new(),
        lines => format!("\x1b[{lines}F"),
    };
    for line in text.lines() {
        drawn.extend(line.chars().take(width));
        drawn.push_str("\x1b[K\n");
    }
    drawn.push_str("\x1b[J");
    drawn
}

#[cfg(test)]
mod tests {
    use super::over;

    #[test]
    fn a_page_takes_the_place_of_the_one_before() {
        assert_eq!(over("a\nb\n", 0, 80), "a\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(over("wide\n", 2, 3), "\x1b[2Fwid\x1b[K\n\x1b[J");
    }
}
