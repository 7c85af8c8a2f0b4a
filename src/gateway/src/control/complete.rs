//! Completion at the prompt: commands, flags, values, and the names that the
//! caller may see. It walks the command tree and looks at nothing else.

use clap::{Arg, Command, CommandFactory as _};

use super::command::CommandLine;

/// Names to complete, which belong to the caller.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    pub(super) workspaces: Vec<String>,
    pub(super) users: Vec<String>,
    pub(super) fingerprints: Vec<String>,
}

/// What may follow `typed`: the byte at which the unfinished word begins, and
/// the words it may become, sorted.
pub(super) fn complete(typed: &str, names: &Names) -> (usize, Vec<String>) {
    let start = typed
        .rfind(char::is_whitespace)
        .map_or(0, |space| space + 1);
    let (before, word) = typed.split_at(start);
    let mut tree = CommandLine::command();
    tree.build();
    let mut words = candidates(&tree, before, word, names);
    words.retain(|candidate| candidate.starts_with(word) && candidate != word);
    words.sort();
    words.dedup();
    (start, words)
}

fn candidates(tree: &Command, before: &str, word: &str, names: &Names) -> Vec<String> {
    let mut command = tree;
    let mut positional = 0;
    let mut expected: Option<&Arg> = None;
    for word in before.split_whitespace() {
        if word == "--" {
            return Vec::new();
        }
        if expected.take().is_some() {
            continue;
        }
        if let Some(flag) = word.strip_prefix("--") {
            let option = command
                .get_arguments()
                .find(|arg| arg.get_long() == Some(flag));
            expected = option.filter(|arg| arg.get_action().takes_values());
        } else if word.starts_with('-') {
        } else if command.has_subcommands() {
            match command.find_subcommand(word) {
                Some(subcommand) => command = subcommand,
                None => return Vec::new(),
            }
        } else {
            positional += 1;
        }
    }
    if let Some(arg) = expected {
        return values(arg, names);
    }
    if word.starts_with('-') {
        let visible = command.get_arguments().filter(|arg| !arg.is_hide_set());
        return visible
            .filter_map(|arg| arg.get_long())
            .map(|long| format!("--{long}"))
            .collect();
    }
    if command.has_subcommands() {
        let visible = command
            .get_subcommands()
            .filter(|command| !command.is_hide_set());
        let mut words: Vec<String> = visible
            .map(|command| command.get_name().to_owned())
            .collect();
        if std::ptr::eq(command, tree) {
            words.push("exit".to_owned());
        }
        return words;
    }
    command
        .get_positionals()
        .nth(positional)
        .map(|arg| values(arg, names))
        .unwrap_or_default()
}

fn values(arg: &Arg, names: &Names) -> Vec<String> {
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        return possible
            .iter()
            .map(|value| value.get_name().to_owned())
            .collect();
    }
    match arg
        .get_value_names()
        .and_then(|names| names.first())
        .map(|name| name.as_str())
    {
        Some("WORKSPACE") => names.workspaces.clone(),
        Some("USER") => names.users.clone(),
        Some("FINGERPRINT") => names.fingerprints.clone(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(typed: &str) -> Vec<String> {
        let names = Names {
            workspaces: vec!["blog".to_owned(), "bot".to_owned()],
            users: vec!["alice".to_owned()],
            fingerprints: vec!["SHA256:abc".to_owned()],
        };
        let (start, words) = complete(typed, &names);
        assert!(start <= typed.len());
        words
    }

    #[test]
    fn commands_flags_values_and_names_are_completed() {
        assert_eq!(words("work"), ["workspace"]);
        assert_eq!(words("workspace reb"), ["rebuild"]);
        assert_eq!(words("help workspace re"), ["rebuild", "restart"]);
        assert_eq!(words("workspace up b"), ["blog", "bot"]);
        assert_eq!(words("workspace up --json bl"), ["blog"]);
        assert_eq!(words("workspace create x --prov"), ["--provider"]);
        assert_eq!(words("workspace create x --provider d"), ["docker"]);
        assert_eq!(words("workspace destroy blog --y"), ["--yes"]);
        assert_eq!(words("key list --user a"), ["alice"]);
        assert_eq!(words("key remove S"), ["SHA256:abc"]);
        assert_eq!(words("ex"), ["exit"]);
    }

    #[test]
    fn where_nothing_is_known_nothing_is_offered() {
        for typed in [
            "workspace up blog ",
            "nonsense x",
            "workspace exec blog -- b",
            "workspace create b",
            "ü ",
        ] {
            assert!(words(typed).is_empty(), "{typed}: {:?}", words(typed));
        }
        assert!(!words("").is_empty());
    }
}
