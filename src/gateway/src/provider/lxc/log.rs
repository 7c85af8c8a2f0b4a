//! The agent's log, which is a file in its instance, whether that runs or not.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use tokio::time::sleep;

use super::super::{LogOptions, LogStream, ProviderError};
use super::Lxc;
use super::files::{Files, Found};
use super::instance::Instance;

/// Where the script that starts the agent has it write.
const LOG: &str = "/.vendetta/agent.log";

/// Longest log of liblxc that is read.
pub(super) const MAX_LOG: usize = 4 << 20;

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Lines of liblxc's log that are told.
const ERRORS: usize = 3;

impl Lxc {
    /// What the log of an instance says; nothing yet: empty.
    pub(super) async fn log(
        &self,
        name: &str,
        options: LogOptions,
    ) -> Result<Bytes, ProviderError> {
        let found = Files::of(&self.engine, name).read(LOG).await;
        match found.map_err(|trouble| self.engine.failed("read log", trouble))? {
            Some(Found::File(content)) => Ok(match options.tail {
                Some(lines) => last_lines(&content, lines),
                None => content,
            }),
            _ => Ok(Bytes::new()),
        }
    }

    /// The log of an instance, as it grows if wanted.
    pub(super) async fn log_stream(
        &self,
        name: String,
        options: LogOptions,
    ) -> Result<LogStream, ProviderError> {
        let whole = LogOptions {
            tail: None,
            ..options
        };
        let content = self.log(&name, whole).await?;
        let read = content.len();
        let first = match options.tail {
            Some(lines) => last_lines(&content, lines),
            None => content,
        };
        let first = stream::once(std::future::ready(Ok(first)));
        if !options.follow {
            return Ok(first.boxed());
        }
        let more = stream::try_unfold((self.clone(), name, read), |(lxc, name, read)| async move {
            loop {
                // Looked at first: what it says last is read after its end.
                let runs = lxc.runs(&name).await?;
                let length = Files::of(&lxc.engine, &name).length(LOG).await;
                let length = length.map_err(|trouble| lxc.engine.failed("read log", trouble))?;
                if length.unwrap_or(read) != read {
                    let content = lxc.log(&name, LogOptions::default()).await?;
                    // Shorter than before: it was rotated.
                    let from = if content.len() < read { 0 } else { read };
                    let (more, read) = (content.slice(from..), content.len());
                    return Ok(Some((more, (lxc, name, read))));
                }
                if !runs {
                    return Ok(None);
                }
                sleep(LOOK).await;
            }
        });
        Ok(first.chain(more).boxed())
    }

    async fn runs(&self, name: &str) -> Result<bool, ProviderError> {
        match self.engine.get(&format!("/1.0/instances/{name}")).await {
            Ok(value) => {
                let found = Instance::read(&value, &self.engine.gateway_id);
                Ok(found.is_some_and(|instance| instance.running))
            }
            Err(trouble) if trouble.is_absent() => Ok(false),
            Err(trouble) => Err(self.engine.failed("inspect container", trouble)),
        }
    }
}

/// So many lines from the end.
fn last_lines(content: &Bytes, lines: u32) -> Bytes {
    let lines = usize::try_from(lines).unwrap_or(usize::MAX);
    let body = content.strip_suffix(b"\n").unwrap_or(content);
    let ends = body.iter().enumerate().rev();
    let mut ends = ends.filter(|(_, byte)| **byte == b'\n');
    match lines.checked_sub(1) {
        None => Bytes::new(),
        Some(before) => match ends.nth(before) {
            Some((at, _)) => content.slice(at + 1..),
            None => content.clone(),
        },
    }
}

/// The last errors in a log of liblxc, whose lines are
/// `lxc NAME DATE ERROR part - file:function:line - text`.
pub(super) fn errors_in(log: &str) -> String {
    let errors = log.lines().filter(|line| line.contains(" ERROR "));
    let texts: Vec<_> = errors
        .filter_map(|line| line.splitn(3, " - ").nth(2))
        .collect();
    let from = texts.len().saturating_sub(ERRORS);
    texts.get(from..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_lines_are_cut_at_lines() {
        let last = |text: &'static str, lines| last_lines(&Bytes::from(text), lines);
        assert_eq!(last("a\nb\nc\n", 1), "c\n");
        assert_eq!(last("a\nb\nc", 2), "b\nc");
        assert_eq!(last("a\nb\n", 5), "a\nb\n");
        assert_eq!(last("a\n", 0), "");
        assert_eq!(last("", 3), "");
    }

    proptest! {
        #[test]
        fn no_more_lines_than_asked_for(text: String, lines in 0u32..9) {
            let last = last_lines(&Bytes::from(text.clone().into_bytes()), lines);
            let last = std::str::from_utf8(&last).unwrap();
            prop_assert!(text.ends_with(last));
            prop_assert!(last.matches('\n').count() <= usize::try_from(lines).unwrap());
        }
    }

    #[test]
    fn errors_of_liblxc_are_told_without_their_places() {
        let log = "lxc x 2026 WARN cgfsng - a.c:f:1 - warned\n\
                   lxc x 2026 ERROR start - b.c:g:2 - Failed - deep down\nnoise";
        assert_eq!(errors_in(log), "Failed - deep down");
        assert_eq!(errors_in(""), "");
    }
}
