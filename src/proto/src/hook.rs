//! Commands run at points of a workspace's life.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The hooks of a project. Each runs in the environment, as the workspace's
/// user, in its directory and with its variables.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// Once in a new environment, so after the first start and after a
    /// rebuild, before any service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create: Option<HookCommand>,
    /// After every start, once the services are healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up: Option<HookCommand>,
    /// When a client connects; its output goes to the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach: Option<HookCommand>,
    /// Before every stop, while the services still run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down: Option<HookCommand>,
}

impl Hooks {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a hook runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum HookCommand {
    /// A line for the user's shell.
    Line(String),
    /// A program and its arguments, without a shell: a list of strings.
    Program(Vec<String>),
    /// Several, one after the other, until one fails: a list with a list or a
    /// map in it.
    Sequence(Vec<HookCommand>),
    /// Several at once, each with a name: a map.
    Parallel(BTreeMap<String, HookCommand>),
}

impl<'de> Deserialize<'de> for HookCommand {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CommandVisitor { word: false })
    }
}

/// Reads one command.
struct CommandVisitor {
    /// It may be a word of a list, which may be empty.
    word: bool,
}

impl<'de> Visitor<'de> for CommandVisitor {
    type Value = HookCommand;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a shell command, a list of a program and its arguments, or a map of commands to run at once")
    }

    fn visit_str<E: serde::de::Error>(self, line: &str) -> Result<HookCommand, E> {
        if line.trim().is_empty() && !self.word {
            return Err(E::custom("a hook without a command; leave it out instead"));
        }
        Ok(HookCommand::Line(line.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<HookCommand, A::Error> {
        let mut commands = Vec::new();
        while let Some(Element(command)) = list.next_element()? {
            commands.push(command);
        }
        in_order(commands).ok_or_else(|| {
            serde::de::Error::custom("a hook without a command; leave it out instead")
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HookCommand, A::Error> {
        let mut commands = BTreeMap::new();
        while let Some((name, command)) = map.next_entry()? {
            commands.insert(name, command);
        }
        if commands.is_empty() {
            return Err(serde::de::Error::custom(
                "a hook without a command; leave it out instead",
            ));
        }
        Ok(HookCommand::Parallel(commands))
    }
}

/// What a list says: words are a program and its arguments, anything else a
/// sequence. None when it says nothing to run.
fn in_order(commands: Vec<HookCommand>) -> Option<HookCommand> {
    let says_nothing = |command: &HookCommand| matches!(command, HookCommand::Line(line) if line.trim().is_empty());
    let words: Option<Vec<String>> = commands
        .iter()
        .map(|command| match command {
            HookCommand::Line(word) => Some(word.clone()),
            _ => None,
        })
        .collect();
    match words {
        Some(words) if commands.first().is_some_and(|first| !says_nothing(first)) => {
            Some(HookCommand::Program(words))
        }
        None if !commands.iter().any(says_nothing) => Some(HookCommand::Sequence(commands)),
        _ => None,
    }
}

/// What stands in a list: a command, or a word, which may be empty.
struct Element(HookCommand);

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(CommandVisitor { word: true })
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_kept_over_a_round_trip() {
        let line = |text: &str| HookCommand::Line(text.to_owned());
        let program =
            |words: &[&str]| HookCommand::Program(words.iter().map(|&w| w.to_owned()).collect());
        for (json, command) in [
            (r#""make setup""#, line("make setup")),
            (r#"["npm","ci"]"#, program(&["npm", "ci"])),
            (r#"["x",""," "]"#, program(&["x", "", " "])),
            (
                r#"[["npm","ci"],["npm","run","build"]]"#,
                HookCommand::Sequence(vec![
                    program(&["npm", "ci"]),
                    program(&["npm", "run", "build"]),
                ]),
            ),
            (
                r#"{"a":"make a","b":["make","b"]}"#,
                HookCommand::Parallel(BTreeMap::from([
                    ("a".to_owned(), line("make a")),
                    ("b".to_owned(), program(&["make", "b"])),
                ])),
            ),
        ] {
            assert_eq!(serde_json::from_str::<HookCommand>(json).unwrap(), command);
            assert_eq!(serde_json::to_string(&command).unwrap(), json);
        }
        for wrong in [
            r#""""#,
            "[]",
            "{}",
            "1",
            "true",
            r#"["a",1]"#,
            r#"["","x"]"#,
            r#"[["a"],""]"#,
            r#"{"a":""}"#,
        ] {
            assert!(
                serde_json::from_str::<HookCommand>(wrong).is_err(),
                "{wrong}"
            );
        }
    }
}
