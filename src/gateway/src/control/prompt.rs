//! Lines until the client leaves: a prompt when it has a terminal, else a
//! script on stdin.
//!
//! A script has one command a line; empty lines and those that begin with `#`
//! are skipped; it stops at the first command that fails, with that command's
//! exit status. `exit` ends either. `workspace connect` and `workspace exec`
//! hand the session over: what follows on stdin is theirs.

use std::sync::Arc;

use super::complete::{Names, complete};
use super::editor::{Assistant, Line, read_line};
use super::failure::Failure;
use super::history::History;
use super::io::{Console, Io};
use super::{Caller, Control, Outcome};

/// Longest line of a script, in bytes.
const MAX_LINE: usize = 64 << 10;

/// What follows a line.
pub(super) enum Next {
    /// Another line; this was the exit status.
    Line(u8),
    /// Nothing: the session became one of a workspace.
    Attach(super::command::Done),
}

pub(super) async fn run(control: &Control, caller: &Caller, io: Io) -> Outcome {
    let mut console = Console::new(io, &caller.session_env);
    let ended = if console.is_terminal() {
        interactive(control, caller, &mut console).await
    } else {
        script(control, caller, &mut console).await
    };
    match ended {
        Next::Line(code) => Outcome::Exit(code),
        Next::Attach(done) => match done.attach(console.into_io()) {
            Some(attach) => Outcome::Attach(attach),
            None => Outcome::Exit(0),
        },
    }
}

async fn interactive(control: &Control, caller: &Caller, console: &mut Console) -> Next {
    let user = &caller.principal.user;
    let (state_dir, name) = (control.config.state_dir.clone(), user.clone());
    let history = tokio::task::spawn_blocking(move || History::load(&state_dir, &name)).await;
    let names = Arc::new(std::sync::Mutex::new(Names::default()));
    let known = Arc::clone(&names);
    let completion = move |typed: &str| {
        let names = known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        complete(typed, &names)
    };
    let mut assistant = Assistant::new(
        history.unwrap_or_else(|_| History::none()),
        console.color,
        Box::new(completion),
    );
    let greeting = format!(
        "vendetta {}. \"help\" lists the commands, Tab completes, Ctrl-D leaves.\n",
        env!("CARGO_PKG_VERSION")
    );
    if console.out(&greeting).await.is_err() {
        return Next::Line(0);
    }
    let mut code = 0;
    loop {
        *names
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = visible_names(control, caller);
        let Ok((line, back)) = read_line(console, "vendetta> ", assistant).await else {
            return Next::Line(code);
        };
        assistant = back;
        let line = match line {
            Line::Text(line) => line,
            Line::Interrupted => continue,
            Line::End => return Next::Line(code),
        };
        match line.trim() {
            "" => continue,
            "exit" | "quit" | "logout" => return Next::Line(code),
            _ => {}
        }
        // The file is small and local; the line is kept before it runs.
        let kept = line.clone();
        let keep = tokio::task::spawn_blocking(move || {
            assistant.history.keep(&kept);
            assistant
        });
        assistant = match keep.await {
            Ok(assistant) => assistant,
            Err(_) => return Next::Line(70),
        };
        match control
            .run_line(caller, line.as_bytes(), console, false)
            .await
        {
            Next::Line(status) => code = status,
            attach @ Next::Attach(_) => return attach,
        }
    }
}

fn visible_names(control: &Control, caller: &Caller) -> Names {
    let principal = &caller.principal;
    let admin = crate::access::authorize(
        principal,
        crate::access::Action::Administer,
        crate::access::Gateway,
    )
    .is_ok();
    let users = if admin {
        control
            .store
            .users()
            .into_iter()
            .map(|user| user.name.to_string())
            .collect()
    } else {
        vec![principal.user.to_string()]
    };
    let keys = control.store.keys(&principal.user);
    Names {
        workspaces: control
            .workspaces
            .names(principal)
            .iter()
            .map(ToString::to_string)
            .collect(),
        users,
        fingerprints: keys.into_iter().map(|key| key.fingerprint).collect(),
    }
}

async fn script(control: &Control, caller: &Caller, console: &mut Console) -> Next {
    loop {
        let line = match console.read_line(MAX_LINE).await {
            Ok(Some(line)) => line,
            Ok(None) => return Next::Line(0),
            Err(_) => {
                let failure = Failure::usage(
                    "script",
                    format!("a line is longer than {} KiB", MAX_LINE >> 10),
                );
                failure.tell(console, false).await;
                return Next::Line(failure.exit_code());
            }
        };
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if line == b"exit" {
            return Next::Line(0);
        }
        match control.run_line(caller, line, console, true).await {
            Next::Line(0) => {}
            ended => return ended,
        }
    }
}
