//! Why a command failed, and how that is told.

use serde_json::json;

use super::io::Console;
use super::text::printable;
use crate::config::{Invalid, Project};
use crate::inventory::InventoryError;
use crate::store::StoreError;
use crate::workspace::{ErrorKind, Explain, WorkspaceError, Wrong};

/// A command that failed: context, problem, remedy, and the exit code of its kind.
#[derive(Debug)]
pub(super) struct Failure {
    kind: ErrorKind,
    context: String,
    problem: String,
    remedy: Option<String>,
    /// The file that is wrong, and where.
    invalid: Option<Box<Invalid>>,
    /// Somebody pressed Ctrl-C, or left.
    interrupted: bool,
}

impl Failure {
    pub(super) fn new(
        kind: ErrorKind,
        context: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            context: context.into(),
            problem: problem.into(),
            remedy: None,
            invalid: None,
            interrupted: false,
        }
    }

    pub(super) fn usage(context: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, context, problem)
    }

    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// What should not happen; `error` is for the log.
    pub(super) fn internal(context: &str, error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%context, %error, "internal");
        Self::new(ErrorKind::Internal, context, "the gateway could not do it")
            .remedy("the gateway's log says more")
    }

    /// Watching `context` was given up.
    pub(super) fn interrupted(context: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            interrupted: true,
            ..Self::new(ErrorKind::Internal, context, problem)
        }
    }

    /// What the inventory says, about `context`.
    pub(super) fn inventory(context: impl Into<String>, error: InventoryError) -> Self {
        error.explain(&context.into()).into()
    }

    fn shown_by(mut self, invalid: Invalid) -> Self {
        self.invalid = Some(Box::new(invalid));
        self
    }

    /// The exit status: that of its kind, or 130 (128 + SIGINT) after Ctrl-C.
    pub(super) fn exit_code(&self) -> u8 {
        if self.interrupted {
            130
        } else {
            self.kind.exit_code()
        }
    }

    /// Tells it on stderr. A client that is not there to read it needs nothing.
    pub(super) async fn tell(&self, console: &mut Console, json: bool) {
        let text = if json {
            self.as_json()
        } else {
            self.as_text(console)
        };
        let _ = console.err(&text).await;
    }

    fn as_text(&self, console: &Console) -> String {
        let mark = if console.color {
            "\x1b[1;31mvendetta:\x1b[0m"
        } else {
            "vendetta:"
        };
        let context = printable(&self.context);
        if let Some(invalid) = &self.invalid {
            let shown = invalid.render(console.width(), console.unicode, console.color);
            return format!("{mark} {context}:\n{shown}");
        }
        let mut text = format!("{mark} {context}: {}\n", printable(&self.problem));
        if let Some(remedy) = &self.remedy {
            text.push_str(&format!("  hint: {}\n", printable(remedy)));
        }
        text
    }

    fn as_json(&self) -> String {
        let mut error = json!({
            "context": self.context,
            "problem": self.problem,
            "remedy": self.remedy,
            "exit_code": self.exit_code(),
        });
        if let (Some(invalid), Some(error)) = (&self.invalid, error.as_object_mut()) {
            error.insert("file".to_owned(), json!(invalid.file));
            error.insert("line".to_owned(), json!(invalid.at.map(|at| at.0)));
            error.insert("column".to_owned(), json!(invalid.at.map(|at| at.1)));
        }
        format!("{}\n", json!({ "error": error }))
    }
}

impl From<WorkspaceError> for Failure {
    fn from(error: WorkspaceError) -> Self {
        Self {
            remedy: error.remedy,
            ..Self::new(error.kind, error.context, error.problem)
        }
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        let context = "the project config cannot be used";
        Self {
            remedy: invalid.remedy.clone(),
            ..Self::usage(context, invalid.problem.clone())
        }
        .shown_by(invalid)
    }
}

impl Failure {
    /// What is wrong with a project config that `command` was given, shown where the
    /// config says it. `flag`: a flag of the command line says it instead.
    pub(super) fn wrong(project: &Project, wrong: Wrong, flag: bool, command: &str) -> Self {
        let shown = if flag {
            None
        } else {
            project.refuse(&wrong.key, wrong.to_string(), wrong.remedy.clone())
        };
        match shown {
            Some(invalid) => invalid.into(),
            None => {
                let mut failure = Self::from(WorkspaceError::from(wrong));
                let help = || format!("ssh vendetta {} --help", verb(command));
                failure.remedy.get_or_insert_with(help);
                failure
            }
        }
    }
}

/// The first two words of a command.
fn verb(command: &str) -> String {
    command.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// The client's streams failed: it is gone.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::interrupted("the client's connection", error.to_string())
    }
}

/// What the store says, about `context`.
pub(super) fn store(context: impl Into<String>) -> impl FnOnce(StoreError) -> Failure {
    let context = context.into();
    move |error| error.explain(&context).into()
}
