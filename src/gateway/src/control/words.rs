//! From a line of text to a command: words as a POSIX shell splits them, then
//! clap; and what is said to a line that is none.

use std::sync::OnceLock;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ColorChoice, CommandFactory as _, FromArgMatches as _};
use serde_json::json;

use super::command::CommandLine;
use super::failure::Failure;
use super::io::Console;

/// What a line asks for.
#[derive(Debug)]
pub(super) enum Parsed {
    /// A command.
    Command(CommandLine),
    /// Help, for stdout.
    Help(String),
    /// What is wrong with the line, for stderr; the exit status is 2.
    Usage(String),
}

/// Splits a line into words.
pub(super) fn split(line: &[u8]) -> Result<Vec<String>, Failure> {
    let line = std::str::from_utf8(line).map_err(|_| {
        Failure::usage("command line", "it is not UTF-8").remedy("ssh vendetta help")
    })?;
    if line.contains('\0') {
        return Err(Failure::usage("command line", "it has a NUL byte").remedy("ssh vendetta help"));
    }
    shlex::split(line).ok_or_else(|| {
        Failure::usage(
            "command line",
            "a quote is not closed, or a backslash ends the line",
        )
        .remedy("close the quote; a quote for the gateway must be quoted for your own shell too")
    })
}

/// Makes a command of words, for a client that looks at `console`.
pub(super) fn parse(words: Vec<String>, console: &Console) -> Parsed {
    let words = if words.is_empty() {
        vec!["help".to_owned()]
    } else {
        words
    };
    let json = wants_json(&words);
    let color = if console.color {
        ColorChoice::Always
    } else {
        ColorChoice::Never
    };
    let tree = CommandLine::command()
        .color(color)
        .term_width(console.width());
    let parsed = tree
        .try_get_matches_from(std::iter::once("vendetta".to_owned()).chain(words.iter().cloned()))
        .and_then(|matches| CommandLine::from_arg_matches(&matches));
    let mut error = match parsed {
        Ok(command) => return Parsed::Command(command),
        Err(error) => error,
    };
    suggest(&mut error, &CommandLine::command());
    if json && let Some(help) = help_in_json(CommandLine::command(), &words) {
        return Parsed::Help(help);
    }
    let text = error.render();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Parsed::Help(styled(&text, console)),
        _ if json => {
            let text = text.to_string();
            let problem = text.trim().strip_prefix("error: ").unwrap_or(text.trim());
            let error = json!({
                "context": "command line",
                "problem": problem,
                "remedy": "ssh vendetta help",
                "exit_code": 2,
            });
            Parsed::Usage(format!("{}\n", json!({ "error": error })))
        }
        _ => Parsed::Usage(styled(&text, console)),
    }
}

/// Has `error`, about words that `tree` does not know, suggest what people use: the
/// verb where its noun was left out ("up" for "workspace up"), nothing that is hidden.
pub fn suggest(error: &mut clap::Error, tree: &clap::Command) {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return;
    };
    let visible = || tree.get_subcommands().filter(|noun| !noun.is_hide_set());
    let meant: Vec<String> = visible()
        .filter(|noun| noun.get_subcommands().any(|verb| verb.get_name() == word))
        .map(|noun| format!("{} {word}", noun.get_name()))
        .collect();
    let hidden = |name: &String| {
        let mut all = tree.get_subcommands();
        all.any(|noun| noun.get_name() == name && noun.is_hide_set())
    };
    let kind = ContextKind::SuggestedSubcommand;
    if !meant.is_empty() {
        error.insert(kind, ContextValue::Strings(meant));
    } else if let Some(ContextValue::Strings(names)) = error.remove(kind) {
        let names: Vec<String> = names.into_iter().filter(|name| !hidden(name)).collect();
        if !names.is_empty() {
            error.insert(kind, ContextValue::Strings(names));
        }
    }
}

fn styled(text: &clap::builder::StyledStr, console: &Console) -> String {
    if console.color {
        text.ansi().to_string()
    } else {
        text.to_string()
    }
}

/// The help that the words ask for, as an object; none when they ask for
/// something else. Help is clap's own command, which takes no flag of ours.
pub fn help_in_json(tree: clap::Command, words: &[String]) -> Option<String> {
    let others = words.iter().filter(|word| *word != "--json").cloned();
    let error = tree
        .try_get_matches_from(std::iter::once("vendetta".to_owned()).chain(others))
        .err()?;
    (error.kind() == ErrorKind::DisplayHelp)
        .then(|| format!("{}\n", json!({ "help": error.render().to_string() })))
}

/// Whether the words ask for JSON, readable or not.
pub fn wants_json(words: &[String]) -> bool {
    words
        .iter()
        .take_while(|word| *word != "--")
        .any(|word| word == "--json")
}

/// Whether the first word of `line` names a command of the tree.
pub(super) fn is_command(line: &[u8]) -> bool {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let mut tree = CommandLine::command();
        tree.build();
        tree.get_subcommands()
            .flat_map(|command| {
                std::iter::once(command.get_name()).chain(command.get_all_aliases())
            })
            .map(str::to_owned)
            .collect()
    });
    let first = line
        .split(u8::is_ascii_whitespace)
        .find(|word| !word.is_empty());
    first.is_some_and(|first| names.iter().any(|name| name.as_bytes() == first))
}

/// The line as the audit log keeps it: values of environment variables may be
/// secrets, and so may the words of a command in a workspace.
pub(super) fn for_audit(words: &[String]) -> String {
    let mut kept: Vec<String> = Vec::new();
    let mut hide_next = false;
    for word in words.iter().take_while(|word| *word != "--") {
        let variable = if hide_next {
            Some(word.as_str())
        } else {
            word.strip_prefix("--env=")
        };
        kept.push(
            match variable.and_then(|variable| variable.split_once('=')) {
                Some((name, _)) if hide_next => format!("{name}=…"),
                Some((name, _)) => format!("--env={name}=…"),
                None => word.clone(),
            },
        );
        hide_next = word == "--env";
    }
    // Cannot fail: a line with a NUL was refused.
    shlex::try_join(kept.iter().map(String::as_str)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verb_without_its_noun_is_known_and_nothing_hidden_is_suggested() {
        let said = |line: &str| {
            let tree = CommandLine::command();
            let words = std::iter::once("vendetta").chain(line.split(' '));
            let mut error = tree.clone().try_get_matches_from(words).unwrap_err();
            suggest(&mut error, &tree);
            error.render().to_string()
        };
        assert!(
            said("up demo").contains("'workspace up'"),
            "{}",
            said("up demo")
        );
        let several = said("add x");
        for noun in ["user add", "key add", "node add"] {
            assert!(several.contains(noun), "{several}");
        }
        assert!(said("wrkspace up").contains("'workspace'"));
        assert!(said("workspace lst").contains("'list'"));
        for hidden in ["git-upload", "git-receive-pack2"] {
            assert!(!said(hidden).contains("similar"), "{}", said(hidden));
        }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn a_command_is_known_by_its_first_word() {
        for line in [
            "workspace up x",
            "  help",
            "ws list",
            "user add",
            "whoami",
            "completion bash",
        ] {
            assert!(is_command(line.as_bytes()), "{line}");
        }
        for line in ["", "   ", "ls -la", "workspaces", "WORKSPACE up", "--help"] {
            assert!(!is_command(line.as_bytes()), "{line}");
        }
        assert!(!is_command(b"\xff\xfe"));
        assert!(is_command(b"workspace \xff"));
    }

    #[test]
    fn a_line_is_split_as_a_shell_would() {
        assert_eq!(
            split(b"workspace exec x -- 'a b' c\\ d").unwrap(),
            words(&["workspace", "exec", "x", "--", "a b", "c d"])
        );
        for line in [&b"a 'b"[..], b"a \\", b"\xff", b"a\0b"] {
            assert_eq!(split(line).unwrap_err().exit_code(), 2, "{line:?}");
        }
    }

    #[test]
    fn the_audit_log_never_sees_a_variable_or_a_command_of_a_workspace() {
        let line = words(&[
            "workspace",
            "create",
            "x",
            "--env",
            "TOKEN=s3cret",
            "--env=KEY=s3cret",
            "--up",
        ]);
        assert_eq!(
            for_audit(&line),
            "workspace create x --env 'TOKEN=…' '--env=KEY=…' --up"
        );
        assert_eq!(
            for_audit(&words(&["workspace", "exec", "x", "--", "s3cret"])),
            "workspace exec x"
        );
    }

    #[test]
    fn the_tree_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
