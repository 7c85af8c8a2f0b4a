//! The local command's parsing, and the page that is generated from it.

use clap::error::ErrorKind;
use proptest::prelude::*;

use super::*;

fn parse(line: &str) -> Result<LocalCommandLine, clap::Error> {
    LocalCommandLine::try_parse_from(
        std::iter::once("vendetta".to_owned()).chain(shlex::split(line).unwrap()),
    )
}

#[test]
fn the_tree_is_consistent() {
    LocalCommandLine::command().debug_assert();
}

#[test]
fn serve_takes_its_four_flags() {
    let line = parse("serve --config c.toml --listen 127.0.0.1:0 --state-dir s --admin-key k.pub")
        .unwrap();
    let LocalCommand::Serve(serve) = line.command else {
        panic!()
    };
    assert_eq!(serve.config, Some("c.toml".into()));
    assert_eq!(serve.listen, Some("127.0.0.1:0".parse().unwrap()));
    assert_eq!(
        (serve.state_dir, serve.admin_key),
        (Some("s".into()), Some("k.pub".into()))
    );
    assert_eq!(parse("serve --listen nowhere").unwrap_err().exit_code(), 2);
}

#[test]
fn the_gateways_commands_are_known_and_wrong_ones_are_refused_at_home() {
    let line = parse("--gateway dev:2222 workspace up x --json").unwrap();
    assert_eq!(line.gateway.as_deref(), Some("dev:2222"));
    assert!(line.json && matches!(line.command, LocalCommand::Remote(Command::Workspace(_))));
    let error = parse("workspace lst").unwrap_err();
    assert_eq!(
        (error.kind(), error.exit_code()),
        (ErrorKind::InvalidSubcommand, 2)
    );
    assert!(error.to_string().contains("'list'"), "{error}");
}

proptest! {
    #[test]
    fn the_gateway_splits_a_line_into_the_words_that_were_typed(words in prop::collection::vec("[^\\x00]{0,12}", 1..6)) {
        let line = front::line(&words).unwrap();
        prop_assert_eq!(shlex::split(&line).unwrap(), words);
    }
}

/// docs/commands.md as the tree says it.
fn commands_page() -> String {
    let mut page = String::from(
        "# Commands\n\n\
         Generated from the command tree; do not edit.\n\
         `VENDETTA_REGENERATE=1 cargo test -p vendetta commands_page` writes it anew.\n\n\
         `ssh vendetta WORDS`, `ssh -s vendetta \"WORDS\"` (a subsystem), a line at the prompt of\n\
         `ssh -t vendetta`, a line of a script on the stdin of `ssh vendetta`, and `vendetta WORDS`\n\
         all take the same words. `serve` and `--gateway` are the local command's own.\n\n\
         With `--json` a result is one JSON object on stdout (`workspace list` gives\n\
         `{\"workspaces\":[…]}`, `workspace status` `{\"workspace\":{…}}`, and so on). Commands that\n\
         take their time write one object a line: `{\"event\":\"started\"|\"message\"|\"transfer\"|\n\
         \"finished\"|\"failed\",\"step\":…}`, and at the end `{\"event\":\"result\",…}`. An error is\n\
         `{\"error\":{\"context\",\"problem\",\"remedy\",\"exit_code\"}}` on stderr, with `file`, `line`\n\
         and `column` for a project config.\n\n\
         A script has one command a line; empty lines and lines that begin with `#` are skipped;\n\
         it stops at the first command that fails, with that command's exit status. `exit` ends it.\n\
         `workspace connect` and `workspace exec` hand the session over: what follows on stdin is theirs.\n",
    );
    let mut tree = LocalCommandLine::command().term_width(100);
    tree.build();
    section(&mut page, &mut tree, 2);
    page
}

fn section(page: &mut String, command: &mut clap::Command, depth: usize) {
    let name = command
        .get_bin_name()
        .unwrap_or(command.get_name())
        .to_owned();
    let help = command.render_long_help().to_string();
    let lines: String = help
        .trim()
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    page.push_str(&format!(
        "\n{} {name}\n\n```text\n{lines}```\n",
        "#".repeat(depth)
    ));
    for subcommand in command.get_subcommands_mut() {
        if subcommand.get_name() != "help" && !subcommand.is_hide_set() {
            section(page, subcommand, depth + 1);
        }
    }
}

#[test]
fn commands_page_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/commands.md");
    let page = commands_page();
    if std::env::var_os("VENDETTA_REGENERATE").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == page,
        "docs/commands.md is not current; it says itself how to write it anew"
    );
}

#[test]
fn every_command_has_help_with_examples() {
    fn check(command: &clap::Command) {
        let help = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        assert!(
            help.contains("Examples:"),
            "{:?} has no examples",
            command.get_bin_name()
        );
        for subcommand in command.get_subcommands() {
            if subcommand.get_name() != "help" && !subcommand.is_hide_set() {
                check(subcommand);
            }
        }
    }
    let mut tree = LocalCommandLine::command();
    tree.build();
    check(&tree);
}

#[test]
fn help_reads_as_it_should() {
    // As wide as here, whatever terminal the tests run in.
    let help = |line: &str| {
        let words = std::iter::once("vendetta").chain(line.split(' '));
        let tree = LocalCommandLine::command().term_width(100);
        tree.try_get_matches_from(words).unwrap_err().to_string()
    };
    insta::assert_snapshot!("help", help("--help"));
    insta::assert_snapshot!("help_workspace_create", help("workspace create --help"));
}
