//! Dependencies run downward only, as docs/architecture.md draws them: between
//! crates, and between the modules of the gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What each module of the gateway may import of the others. `app` and `main`
/// put the parts together and may import all.
const MODULES: &[(&str, &[&str])] = &[
    ("access", &[]),
    ("cannot_start", &[]),
    ("config", &[]),
    ("events", &[]),
    ("memory", &[]),
    ("ports", &["agent", "store", "workspace"]),
    ("metrics", &["inventory", "workspace"]),
    ("node", &[]),
    ("store", &["access", "workspace"]),
    (
        "inventory",
        &[
            "access",
            "config",
            "events",
            "node",
            "provider",
            "store",
            "workspace",
        ],
    ),
    ("first_admin", &["access", "cannot_start", "store"]),
    ("provider", &["node", "workspace"]),
    ("agent", &["node", "workspace"]),
    (
        "workspace",
        &[
            "access",
            "agent",
            "events",
            "inventory",
            "node",
            "ports",
            "provider",
            "store",
        ],
    ),
    (
        "control",
        &[
            "access",
            "config",
            "events",
            "inventory",
            "store",
            "workspace",
        ],
    ),
    (
        "ssh",
        &["access", "agent", "config", "control", "store", "workspace"],
    ),
    ("cli", &["app", "cannot_start", "config", "control"]),
];

/// The modules of the gateway that may name a library; no other may.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("russh", &["agent", "node", "ssh"]),
    ("bollard", &["provider"]),
    ("fatfs", &["provider"]),
    ("hyper", &["metrics", "provider"]),
    ("tokio_tungstenite", &["provider"]),
    ("procfs", &["ports"]),
    ("prometheus_client", &["metrics"]),
    ("qapi", &["provider"]),
    ("rusqlite", &["store"]),
    ("termwiz", &["control"]),
    ("clap", &["access", "cli", "control", "main"]),
    ("serde_saphyr", &["config"]),
    ("jsonc_parser", &["config"]),
    ("globset", &["config"]),
    ("flate2", &["config"]),
];

/// What each crate may depend on of this workspace, in programs and libraries.
const CRATES: &[(&str, &[&str])] = &[
    ("vendetta-proto", &[]),
    ("vendetta-sshio", &[]),
    ("vendetta-agent", &["vendetta-proto", "vendetta-sshio"]),
    ("vendetta", &["vendetta-proto", "vendetta-sshio"]),
];

/// Libraries with which a crate could do I/O; `vendetta-proto` has none of them.
const IO: &[&str] = &[
    "tokio", "russh", "nix", "libc", "socket2", "hyper", "bollard", "rusqlite",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The normal (not development or build) dependencies of each crate of the workspace.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args = [
        "metadata",
        "--no-deps",
        "--offline",
        "--format-version",
        "1",
    ];
    let output = Command::new(cargo)
        .args(args)
        .current_dir(root())
        .output()
        .expect("running cargo");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo's JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a name").to_owned();
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let all = package["dependencies"].as_array().expect("dependencies");
            let normal = all.iter().filter(|dependency| dependency["kind"].is_null());
            (
                text(&package["name"]),
                normal.map(|dependency| text(&dependency["name"])).collect(),
            )
        })
        .collect()
}

#[test]
fn crates_depend_downward_only() {
    let dependencies = dependencies();
    for (name, allowed) in CRATES {
        let ours: Vec<&String> = dependencies[*name]
            .iter()
            .filter(|dependency| dependencies.contains_key(*dependency))
            .filter(|dependency| !allowed.contains(&dependency.as_str()))
            .collect();
        assert!(ours.is_empty(), "{name} must not depend on {ours:?}");
    }
    let io: Vec<&&str> = IO
        .iter()
        .filter(|library| dependencies["vendetta-proto"].contains(**library))
        .collect();
    assert!(
        io.is_empty(),
        "vendetta-proto does no I/O, so it needs no {io:?}"
    );
}

/// `text` without comments and the contents of string literals.
fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(raw) = rest.strip_prefix("r#\"") {
            raw.find("\"#").map_or(rest.len(), |end| end + 5)
        } else if rest.starts_with("'\"'") || rest.starts_with("b'\"'") {
            3
        } else if c == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |end| end + 2)
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        code.push(' ');
        rest = &rest[skipped..];
    }
    code
}

/// The paths in `code` that start with `head::`, each by the names that follow it directly.
fn following(code: &str, head: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let head = format!("{head}::");
    for (at, _) in code.match_indices(&head) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = code[at + head.len()..].trim_start();
        let name = |text: &str| {
            text.trim_start()
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .next()
                .map(str::to_owned)
        };
        match rest.strip_prefix('{') {
            None => found.extend(name(rest)),
            Some(group) => {
                let mut depth = 0;
                let mut start = 0;
                for (at, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth > 0 => depth -= 1,
                        '}' => {
                            found.extend(name(&group[start..at]));
                            break;
                        }
                        ',' if depth == 0 => {
                            found.extend(name(&group[start..at]));
                            start = at + 1;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found.remove("");
    found
}

/// The source files below `dir`, with the path of the module each is.
fn sources(dir: &Path, module: &[String]) -> Vec<(Vec<String>, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        let stem = path
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let mut inner = module.to_vec();
        if path.is_dir() {
            inner.push(stem);
            found.extend(sources(&path, &inner));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            if stem != "mod" && stem != "lib" {
                inner.push(stem);
            }
            found.push((inner, path));
        }
    }
    found
}

/// The modules of the gateway: what each imports of the others, and its code.
fn modules() -> BTreeMap<String, (BTreeSet<String>, String)> {
    let mut modules: BTreeMap<String, (BTreeSet<String>, String)> = BTreeMap::new();
    for (path, file) in sources(&root().join("src/gateway/src"), &[]) {
        let Some(module) = path.first() else { continue };
        let code = code(&fs::read_to_string(&file).expect("a source file"));
        // As many `super` as the file is deep lead to the crate's root.
        let up = vec!["super"; path.len()].join("::");
        let (imports, all) = modules.entry(module.clone()).or_default();
        imports.extend(following(&code, "crate"));
        imports.extend(following(&code, "vendetta"));
        imports.extend(following(&code, &up));
        all.push_str(&code);
    }
    modules
}

#[test]
fn modules_of_the_gateway_import_downward_only() {
    let modules = modules();
    for (module, (imports, _)) in &modules {
        if ["app", "main"].contains(&module.as_str()) {
            continue;
        }
        let Some((_, allowed)) = MODULES.iter().find(|(name, _)| name == module) else {
            panic!("module {module} is new: say in tests/architecture.rs what it may import");
        };
        let forbidden: Vec<&String> = imports
            .iter()
            .filter(|import| modules.contains_key(*import) && *import != module)
            .filter(|import| !allowed.contains(&import.as_str()))
            .collect();
        assert!(
            forbidden.is_empty(),
            "{module} must not import {forbidden:?}"
        );
    }
}

#[test]
fn a_library_is_named_only_where_it_is_wrapped() {
    for (module, (_, code)) in modules() {
        for (library, allowed) in LIBRARIES {
            let used = !following(&code, library).is_empty() && !["app"].contains(&module.as_str());
            assert!(
                !used || allowed.contains(&module.as_str()),
                "{module} must not name {library}"
            );
        }
    }
}

#[test]
fn paths_are_found_in_every_form_and_not_in_text() {
    let source = "use crate::{access, store::{Store, x}, node};\nuse crate::ssh::y; // crate::comment\n\
                  let s = \"crate::text \\\" crate::more\"; not_crate::z(); crate :: a;";
    let found = following(&code(source), "crate");
    let expected = ["access", "node", "ssh", "store"].map(str::to_owned);
    assert_eq!(found, BTreeSet::from(expected));
    assert_eq!(
        following("super::super::Error", "super::super"),
        BTreeSet::from(["Error".to_owned()])
    );
    assert!(following("super::super::Error", "super").contains("super"));
}
