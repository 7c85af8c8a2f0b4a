//! Lifecycle commands of a dev container as hooks
//! (<https://containers.dev/implementors/json_reference/#lifecycle-scripts>).

use std::collections::BTreeMap;

use jsonc_parser::ast::{Object, Value};
use vendetta_proto::spec::HookCommand;

use super::super::invalid::Invalid;
use super::{Reader, bytes_of};

/// Those that run in a new container, in their order.
const CREATE: [&str; 3] = [
    "onCreateCommand",
    "updateContentCommand",
    "postCreateCommand",
];

impl Reader<'_> {
    pub(super) fn hooks(&mut self, root: &Object<'_>) -> Result<(), Invalid> {
        let mut create = Vec::new();
        for key in CREATE {
            if let Some(property) = root.get(key)
                && let Some(command) = self.command(key, &property.value)?
            {
                self.place(&["hooks", "create"], &property.value);
                create.push((key, command));
            }
        }
        self.config.hooks.create = in_order(create);
        if let Some(property) = root.get("postStartCommand") {
            self.config.hooks.up = self.command("postStartCommand", &property.value)?;
            self.place(&["hooks", "up"], &property.value);
        }
        if let Some(property) = root.get("postAttachCommand") {
            self.config.hooks.attach = self.command("postAttachCommand", &property.value)?;
            self.place(&["hooks", "attach"], &property.value);
        }
        Ok(())
    }

    /// A line, a list of words, or a map of such; none when there is nothing to run.
    fn command(&self, key: &str, value: &Value<'_>) -> Result<Option<HookCommand>, Invalid> {
        match value {
            Value::NullKeyword(_) => Ok(None),
            Value::Object(object) => {
                let mut commands = BTreeMap::new();
                for property in &object.properties {
                    let name = property.name.as_str();
                    let key = format!("{key}.{name}");
                    if property.value.as_object().is_some() {
                        return Err(self.wrong_type(&key, &property.value, "a string or a list"));
                    }
                    if let Some(command) = self.command(&key, &property.value)? {
                        commands.insert(name.to_owned(), command);
                    }
                }
                Ok((!commands.is_empty()).then_some(HookCommand::Parallel(commands)))
            }
            Value::Array(array) => {
                let words = array
                    .elements
                    .iter()
                    .enumerate()
                    .map(|(at, word)| self.string(&format!("{key}.{at}"), word))
                    .collect::<Result<Vec<_>, _>>()?;
                match words.first() {
                    None => Ok(None),
                    Some(program) if program.trim().is_empty() => {
                        Err(self.refuse(bytes_of(value), format!("`{key}` names no program")))
                    }
                    Some(_) => Ok(Some(HookCommand::Program(words))),
                }
            }
            Value::StringLit(_) => {
                let line = self.string(key, value)?;
                Ok((!line.trim().is_empty()).then_some(HookCommand::Line(line)))
            }
            _ => Err(self.wrong_type(key, value, "a string, a list or an object")),
        }
    }
}

/// One after the other. Each keeps its name: a list of lines alone would be a
/// program and its arguments.
fn in_order(mut commands: Vec<(&str, HookCommand)>) -> Option<HookCommand> {
    if commands.len() <= 1 {
        return commands.pop().map(|(_, command)| command);
    }
    let named = commands.into_iter().map(|(name, command)| match command {
        line @ HookCommand::Line(_) => {
            HookCommand::Parallel(BTreeMap::from([(name.to_owned(), line)]))
        }
        other => other,
    });
    Some(HookCommand::Sequence(named.collect()))
}
