//! What a project config may not say although its types can: each check names
//! the key that is wrong, so that whoever has the file can show where it is.

mod provider;
mod repository;
mod service;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use vendetta_proto::spec::{HookCommand, ProjectConfig, ProviderKind, Resources};

use super::{ErrorKind, WorkspaceError};
use provider::{check_folder, check_provider, check_volumes};
use repository::check_repository;
use service::{check_dependencies, check_ports, check_service};

/// Longest user name or number.
const MAX_USER: usize = 256;

/// A part of a project config that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The way to the key, from the top; items of a list by their number.
    pub key: Vec<String>,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it, where it does not go without saying.
    pub remedy: Option<String>,
}

impl Wrong {
    pub(super) fn new(key: &[&str], problem: impl Into<String>) -> Self {
        Self {
            key: key.iter().map(|&part| part.to_owned()).collect(),
            problem: problem.into(),
            remedy: None,
        }
    }

    pub(super) fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The same, further down than `key`.
    fn below(mut self, key: &[&str]) -> Self {
        self.key
            .splice(..0, key.iter().map(|&part| part.to_owned()));
        self
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key.join("."))?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for Wrong {}

impl From<Wrong> for WorkspaceError {
    fn from(wrong: Wrong) -> Self {
        Self {
            remedy: wrong.remedy.clone(),
            ..Self::new(ErrorKind::Usage, "config", wrong.to_string())
        }
    }
}

type Checked = Result<(), Wrong>;

/// Checks what `provider` is to run.
pub(super) fn check(config: &ProjectConfig, provider: ProviderKind) -> Checked {
    check_provider(config, provider)?;
    check_resources(config.resources)?;
    if let Some(user) = &config.user {
        check_user(user).map_err(|problem| Wrong::new(&["user"], problem))?;
    }
    if let Some(folder) = &config.workspace_folder {
        check_folder(folder).map_err(|problem| Wrong::new(&["workspace_folder"], problem))?;
    }
    if let Some(docker) = &config.docker {
        check_volumes(docker, config.workspace_folder.as_deref())?;
    }
    check_env(&config.env)?;
    for (name, service) in &config.services {
        check_service(service).map_err(|wrong| wrong.below(&["services", name.as_str()]))?;
    }
    check_dependencies(config)?;
    check_ports(config)?;
    check_hooks(config)?;
    for (key, url) in [("repo", &config.repo), ("dotfiles", &config.dotfiles)] {
        if let Some(url) = url {
            check_repository(url).map_err(|problem| {
                Wrong::new(&[key], format!("{url:?} {problem}"))
                    .with_remedy("give https://HOST/PATH, ssh://[USER@]HOST/PATH or USER@HOST:PATH")
            })?;
        }
    }
    Ok(())
}

fn check_resources(resources: Resources) -> Checked {
    if let Some(cpu) = resources.cpu
        && !(cpu.is_finite() && (0.01..=4096.0).contains(&cpu))
    {
        return Err(Wrong::new(
            &["resources", "cpu"],
            format!("{cpu} is not a number of processors between 0.01 and 4096"),
        ));
    }
    if let Some(memory) = resources.memory
        && memory.as_bytes() < 6 << 20
    {
        return Err(Wrong::new(
            &["resources", "memory"],
            format!("{memory} is less than 6M, the least an engine takes"),
        ));
    }
    Ok(())
}

fn check_user(user: &str) -> Result<(), String> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    if user.is_empty() || user.len() > MAX_USER || user.contains(odd) {
        return Err(format!("{user:?} is not a user name or number"));
    }
    Ok(())
}

/// Whether it is a name of POSIX.1, Environment Variables, section 8.1.
#[must_use]
pub fn is_variable_name(name: &str) -> bool {
    let letters = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !name.is_empty()
        && name.bytes().all(letters)
        && !name.starts_with(|first: char| first.is_ascii_digit())
}

fn check_variable(name: &str, value: &str) -> Result<(), String> {
    if !is_variable_name(name) {
        return Err(format!(
            "{name:?} is not a variable name; use letters, digits and '_', not a digit first"
        ));
    }
    if value.contains('\0') {
        return Err("the value has a NUL character".to_owned());
    }
    Ok(())
}

fn check_env(env: &BTreeMap<String, String>) -> Checked {
    for (name, value) in env {
        check_variable(name, value).map_err(|problem| Wrong::new(&["env", name], problem))?;
    }
    Ok(())
}

/// What is wrong with a line for a shell.
fn check_line(line: &str) -> Result<(), &'static str> {
    if line.trim().is_empty() {
        return Err("there is no command in it");
    }
    if line.contains('\0') {
        return Err("it has a NUL character");
    }
    Ok(())
}

fn check_hooks(config: &ProjectConfig) -> Checked {
    let hooks = &config.hooks;
    for (key, hook) in [
        ("create", &hooks.create),
        ("up", &hooks.up),
        ("attach", &hooks.attach),
        ("down", &hooks.down),
    ] {
        if let Some(hook) = hook
            && has_nul(hook)
        {
            return Err(Wrong::new(&["hooks", key], "it has a NUL character"));
        }
    }
    Ok(())
}

fn has_nul(command: &HookCommand) -> bool {
    match command {
        HookCommand::Line(line) => line.contains('\0'),
        HookCommand::Program(words) => words.iter().any(|word| word.contains('\0')),
        HookCommand::Sequence(commands) => commands.iter().any(has_nul),
        HookCommand::Parallel(commands) => commands.values().any(has_nul),
    }
}

/// Whether a relative path stays where it begins.
fn is_below(path: &str) -> bool {
    let mut depth = 0_i32;
    !path.starts_with('/')
        && !path.chars().any(char::is_control)
        && path.split('/').all(|part| {
            depth += match part {
                "" | "." => 0,
                ".." => -1,
                _ => 1,
            };
            depth >= 0
        })
}
