//! Variables of a dev container config (<https://containers.dev/implementors/json_reference/#variables-in-devcontainerjson>).

use std::collections::BTreeMap;

/// What is known of the container when its config is read.
#[derive(Debug, Clone)]
pub(super) struct Variables {
    /// Name of the project's directory.
    folder: String,
    workspace_folder: String,
    container: BTreeMap<String, String>,
}

/// A variable that has no value here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("${{{variable}}} {why}")]
pub(super) struct Unknown {
    variable: String,
    why: &'static str,
}

impl Variables {
    pub(super) fn new(folder: &str) -> Self {
        Self {
            folder: folder.to_owned(),
            workspace_folder: vendetta_proto::spec::WORKSPACE_FOLDER.to_owned(),
            container: BTreeMap::new(),
        }
    }

    pub(super) fn set_workspace_folder(&mut self, path: &str) {
        path.clone_into(&mut self.workspace_folder);
    }

    pub(super) fn set_container(&mut self, name: &str, value: &str) {
        self.container.insert(name.to_owned(), value.to_owned());
    }

    /// `text` with every variable replaced. What is none, such as a shell's, stays.
    pub(super) fn expand(&self, text: &str) -> Result<String, Unknown> {
        self.replace(text, false)
    }

    /// The same where the container's own variables may be used. Those that only
    /// the image can know stay, for the provider.
    pub(super) fn expand_remote(&self, text: &str) -> Result<String, Unknown> {
        self.replace(text, true)
    }

    fn replace(&self, text: &str, remote: bool) -> Result<String, Unknown> {
        let mut replaced = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            replaced.push_str(before);
            let Some((variable, behind)) = after.split_once('}') else {
                rest = rest.get(before.len()..).unwrap_or_default();
                break;
            };
            match self.value(variable, remote)? {
                Some(value) => replaced.push_str(&value),
                None => replaced.push_str(&format!("${{{variable}}}")),
            }
            rest = behind;
        }
        replaced.push_str(rest);
        Ok(replaced)
    }

    /// What a variable stands for; none for itself.
    fn value(&self, variable: &str, remote: bool) -> Result<Option<String>, Unknown> {
        let unknown = |why| {
            Err(Unknown {
                variable: variable.to_owned(),
                why,
            })
        };
        let mut parts = variable.splitn(3, ':');
        let (kind, name) = (parts.next().unwrap_or_default(), parts.next());
        let default = parts.next();
        let basename = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        match (kind, name) {
            ("localEnv" | "env", Some(_)) => match default {
                Some(default) => Ok(Some(default.to_owned())),
                None => {
                    unknown("is a variable of your own machine, which the gateway does not see")
                }
            },
            ("containerEnv", Some(name)) => match (self.container.get(name), default) {
                (Some(value), _) => Ok(Some(value.clone())),
                (None, Some(default)) => Ok(Some(default.to_owned())),
                (None, None) if remote => Ok(None),
                (None, None) => unknown("is a variable of the container, which remoteEnv may use"),
            },
            ("localWorkspaceFolder", None) => {
                unknown("is a directory of your own machine, which is not on the node")
            }
            ("localWorkspaceFolderBasename", None) => Ok(Some(self.folder.clone())),
            ("containerWorkspaceFolder", None) => Ok(Some(self.workspace_folder.clone())),
            ("containerWorkspaceFolderBasename", None) => {
                Ok(Some(basename(&self.workspace_folder)))
            }
            ("devcontainerId", None) => unknown("is given by no one here"),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn variables() -> Variables {
        let mut variables = Variables::new("app");
        variables.set_workspace_folder("/workspaces/app-1");
        variables.set_container("A", "${B}");
        variables
    }

    #[test]
    fn what_is_known_is_replaced_and_what_is_no_variable_stays() {
        for (text, expanded) in [
            ("", ""),
            ("plain $HOME ${HOME} $(x) ${", "plain $HOME ${HOME} $(x) ${"),
            ("${localWorkspaceFolderBasename}-x", "app-x"),
            ("${containerWorkspaceFolder}/a", "/workspaces/app-1/a"),
            ("${containerWorkspaceFolderBasename}", "app-1"),
            ("${localEnv:HOME:/root}", "/root"),
            ("${localEnv:HOME:}", ""),
            ("${localEnv:X:a:b}", "a:b"),
            ("${containerEnv:A}${containerEnv:C:d}", "${B}d"),
        ] {
            assert_eq!(variables().expand(text).as_deref(), Ok(expanded), "{text}");
        }
        for text in [
            "${localEnv:HOME}",
            "x${env:HOME}",
            "${containerEnv:PATH}",
            "${localWorkspaceFolder}",
            "${devcontainerId}",
        ] {
            let unknown = variables().expand(text).unwrap_err().to_string();
            assert!(unknown.starts_with("${"), "{unknown}");
        }
        assert_eq!(
            variables()
                .expand_remote("${containerEnv:PATH}:/x")
                .as_deref(),
            Ok("${containerEnv:PATH}:/x")
        );
    }

    proptest! {
        #[test]
        fn text_without_variables_is_unchanged(text in "[^$]*") {
            prop_assert_eq!(variables().expand(&text), Ok(text));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = variables().expand_remote(&format!("${{{text}}}${{{text}"));
        }
    }
}
