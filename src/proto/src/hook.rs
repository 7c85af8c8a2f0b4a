//! Commands run at points of a workspace's life.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The hooks of a project. Each runs in the environment, as the workspace's
/// user, in its directory and with its variables.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
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
        struct CommandVisitor;
        impl<'de> Visitor<'de> for CommandVisitor {
            type Value = HookCommand;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a shell command, a list of a program and its arguments, or a map of commands to run at once")
            }

            fn visit_str<E: serde::de::Error>(self, line: &str) -> Result<HookCommand, E> {
                if line.trim().is_empty() {
                    return Err(E::custom("a hook without a command; leave it out instead"));
                }
                Ok(HookCommand::Line(line.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<HookCommand, A::Error> {
                let mut commands = Vec::new();
                let mut words = Vec::new();
                while let Some(command) = list.next_element::<HookCommand>()? {
                    if let HookCommand::Line(word) = &command {
                        words.push(word.clone());
                    }
                    commands.push(command);
                }
                if commands.is_empty() {
                    return Err(serde::de::Error::custom(
                        "a hook without a command; leave it out instead",
                    ));
                }
                Ok(if words.len() == commands.len() {
                    HookCommand::Program(words)
                } else {
                    HookCommand::Sequence(commands)
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
        deserializer.deserialize_any(CommandVisitor)
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
        for wrong in [r#""""#, "[]", "{}", "1", "true", r#"["a",1]"#] {
            assert!(
                serde_json::from_str::<HookCommand>(wrong).is_err(),
                "{wrong}"
            );
        }
    }
}
