//! `workspace doctor`: whether editors can work in a workspace, and what to install.

mod needs;

use clap::Args;
use serde_json::json;

use super::command::{Done, Session};
use super::failure::Failure;
use super::text::table;
use super::workspace::{Target, find};
use crate::access::Action;
use crate::workspace::ErrorKind;
pub use needs::Editor;
use needs::{LOOK, Verdict, diagnose};

/// What to look for.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Which workspace.
    #[command(flatten)]
    target: Target,
    /// For this editor only
    #[arg(long = "for", value_name = "EDITOR", value_enum)]
    editor: Option<Editor>,
}

impl Doctor {
    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<Done, Failure> {
        let workspace = find(session, Action::Connect, self.target.name())?;
        let editors: Vec<Editor> = match self.editor {
            Some(editor) => vec![editor],
            None => Editor::ALL.to_vec(),
        };
        let said = session.control.workspaces.output(&workspace, LOOK).await?;
        let found = diagnose(&said, &editors);
        let rows = found.findings.iter().map(|finding| {
            let verdict = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Advised => "advised",
                Verdict::Missing => "MISSING",
            };
            let editor = finding.editor.as_str();
            let cells = [
                editor,
                finding.check,
                verdict,
                &finding.found,
                finding.needed,
            ];
            cells.map(str::to_owned).to_vec()
        });
        let headings = ["EDITOR", "CHECK", "", "FOUND", "NEEDED"];
        let mut text = table(session.console, &headings, rows.collect());
        let name = &workspace.name;
        let install = found.install.as_ref().map(|command| {
            let root = session.control.destination(&format!("{name}+root"));
            format!("ssh {root} \"{command}\"")
        });
        if let Some(install) = &install {
            text.push_str(&format!("\nTo install what is not there: {install}\n"));
        }
        let missing = |editor: &Editor| {
            found
                .findings
                .iter()
                .any(|finding| finding.editor == *editor && finding.verdict == Verdict::Missing)
        };
        let unfit: Vec<&str> = editors
            .iter()
            .filter(|editor| missing(editor))
            .map(|editor| editor.as_str())
            .collect();
        let value = json!({
            "workspace": name,
            "ready": unfit.is_empty(),
            "findings": found.findings,
            "install": found.install,
        });
        let done = session.answer(&text, value).await?;
        if unfit.is_empty() {
            return Ok(done);
        }
        let problem = format!("{} cannot work in it as it is", unfit.join(" and "));
        let failure = Failure::new(ErrorKind::Conflict, format!("workspace {name}"), problem);
        Err(match install {
            Some(install) => failure.remedy(install),
            None => failure.remedy("create it from an image that has what is missing"),
        })
    }
}
