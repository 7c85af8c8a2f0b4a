//! `workspace terminals`: terminals that outlive their clients.

use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use vendetta_proto::TerminalName;

use super::command::{Done, Session};
use super::failure::Failure;
use super::text::{ago, table};
use super::workspace::{Target, find};
use crate::access::Action;

/// What to do with them.
#[derive(Debug, Args)]
pub struct Terminals {
    /// Which workspace.
    #[command(flatten)]
    target: Target,
    /// End the program of this one
    #[arg(long, value_name = "TERMINAL")]
    end: Option<TerminalName>,
    /// Only of this user inside the environment
    #[arg(long, value_name = "NAME", requires = "end")]
    user: Option<String>,
}

impl Terminals {
    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<Done, Failure> {
        match &self.end {
            None => self.list(session).await,
            Some(terminal) => self.end(session, terminal).await,
        }
    }

    async fn list(&self, session: &mut Session<'_>) -> Result<Done, Failure> {
        let workspace = find(session, Action::View, self.target.name())?;
        let terminals = session.control.workspaces.terminals(&workspace).await?;
        if terminals.is_empty() {
            let start = session
                .control
                .destination(&format!("{}++main", workspace.name));
            let note =
                format!("It has no terminals that are kept; start one with: ssh -t {start}\n");
            session.note(&note).await?;
        }
        let now = Timestamp::now();
        let rows = terminals.iter().map(|terminal| {
            let since = i64::try_from(terminal.since).unwrap_or(i64::MAX);
            let since = Timestamp::from_millisecond(since).unwrap_or(now);
            let login = format!("{}+{}+{}", workspace.name, terminal.user, terminal.name);
            vec![
                terminal.name.to_string(),
                terminal.user.clone(),
                ago(since, now),
                terminal.attached.to_string(),
                format!("ssh -t {}", session.control.destination(&login)),
            ]
        });
        let headings = ["TERMINAL", "USER", "SINCE", "ATTACHED", "ATTACH"];
        let text = if terminals.is_empty() {
            String::new()
        } else {
            table(session.console, &headings, rows.collect())
        };
        session.list(&text, "terminals", &terminals).await
    }

    async fn end(
        &self,
        session: &mut Session<'_>,
        terminal: &TerminalName,
    ) -> Result<Done, Failure> {
        let workspace = find(session, Action::Connect, self.target.name())?;
        let workspaces = &session.control.workspaces;
        workspaces
            .end_terminal(&workspace, terminal, self.user.clone())
            .await?;
        let text = format!("Terminal {terminal} ends.\n");
        session.answer(&text, json!({ "ended": terminal })).await
    }
}
