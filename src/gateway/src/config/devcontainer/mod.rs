//! The dev container config (<https://containers.dev/implementors/json_reference>)
//! of a project that has none of ours: JSON with comments to [`ProjectConfig`],
//! and a list of whatever has no counterpart.
//!
//! A key is taken over, or refused with its position because nothing sensible
//! can come of it, or listed with the reason. None is dropped in silence.

mod commands;
mod keys;
mod mounts;
mod variables;

#[cfg(test)]
mod tests;

use std::ops::Range;

use jsonc_parser::ast::{Array, Object, ObjectProp, Value};
use jsonc_parser::common::Ranged as _;
use jsonc_parser::{CollectOptions, CommentCollectionStrategy, ParseOptions, parse_to_ast};
use vendetta_proto::build::plain;
use vendetta_proto::spec::{Build, DockerConfig, ProjectConfig};

use super::invalid::Invalid;
use super::project;
use super::source::{NotHonoured, Place, Project, Source};
use keys::{HONOURED, NOT_HONOURED};
use mounts::{Mount, volume_name};
use variables::Variables;

/// Where a project keeps it, in the order in which they are looked for.
pub const PATHS: [&str; 2] = [".devcontainer/devcontainer.json", ".devcontainer.json"];

/// Reads a dev container config, which messages call `file`. `folder` is the
/// name of the project's directory.
///
/// # Errors
/// [`Invalid`]: no JSON, a wrong type, a value that depends on the machine it
/// was written on, compose files and nothing else.
pub fn parse(file: &str, bytes: &[u8], folder: &str) -> Result<Project, Invalid> {
    let text = project::text(file, bytes)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let collect = CollectOptions {
        comments: CommentCollectionStrategy::Off,
        tokens: false,
    };
    let parsed = parse_to_ast(text, &collect, &dialect()).map_err(|error| {
        let range = error.range();
        let problem = error.kind().to_string();
        let lower = problem.get(..1).unwrap_or_default().to_lowercase();
        let problem = format!("{lower}{}", problem.get(1..).unwrap_or_default());
        Invalid::new(file, text, Some(range.start..range.end), problem)
    })?;
    let Some(Value::Object(root)) = &parsed.value else {
        let whole = parsed.value.as_ref().map(bytes_of);
        return Err(Invalid::new(
            file,
            text,
            whole,
            "a dev container config is an object".to_owned(),
        ));
    };
    let mut reader = Reader::new(file, text, root, folder);
    reader.read(root)?;
    let source = Source {
        file: file.to_owned(),
        text: text.to_owned(),
        places: Some(reader.places),
    };
    Ok(Project::new(reader.config, reader.not_honoured, source))
}

/// Comments and commas at the end, as editors take them, and nothing else.
fn dialect() -> ParseOptions {
    ParseOptions {
        allow_comments: true,
        allow_trailing_commas: true,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    }
}

fn bytes_of(value: &Value<'_>) -> Range<usize> {
    let range = value.range();
    range.start..range.end
}

/// A config on its way.
struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    config: ProjectConfig,
    not_honoured: Vec<NotHonoured>,
    places: Vec<Place>,
    variables: Variables,
    /// The directory of the file, below the project's.
    base: &'static str,
}

impl<'a> Reader<'a> {
    fn new(file: &'a str, text: &'a str, root: &Object<'_>, folder: &str) -> Self {
        let workspace_folder = root.get_string("workspaceFolder");
        let mut variables = Variables::new(folder);
        if let Some(given) = workspace_folder
            && let Ok(path) = variables.expand(&given.value)
        {
            variables.set_workspace_folder(&path);
        }
        Self {
            file,
            text,
            config: ProjectConfig::default(),
            not_honoured: Vec::new(),
            places: Vec::new(),
            variables,
            base: if file.ends_with(PATHS[1]) && !file.ends_with(PATHS[0]) {
                ""
            } else {
                ".devcontainer"
            },
        }
    }

    fn refuse(&self, range: Range<usize>, problem: impl Into<String>) -> Invalid {
        Invalid::new(self.file, self.text, Some(range), problem.into())
    }

    fn ignore(&mut self, key: impl Into<String>, why: impl Into<String>) {
        self.not_honoured.push(NotHonoured {
            key: key.into(),
            why: why.into(),
        });
    }

    /// Remembers which part of the text a key of ours came from.
    fn place(&mut self, key: &[&str], value: &Value<'_>) {
        let key = key.iter().map(|&part| part.to_owned()).collect();
        self.places.push((key, bytes_of(value)));
    }

    fn read(&mut self, root: &Object<'_>) -> Result<(), Invalid> {
        let mut seen = std::collections::BTreeSet::new();
        for property in &root.properties {
            if !seen.insert(property.name.as_str()) {
                let range = property.range.start..property.range.end;
                return Err(self
                    .refuse(
                        range,
                        format!("`{}` is given twice", property.name.as_str()),
                    )
                    .with_remedy(Some("keep one of the two".to_owned())));
            }
        }
        // Variables of the container are known to what follows, wherever they stand.
        if let Some(property) = root.get("containerEnv") {
            self.env(property, false)?;
        }
        for property in &root.properties {
            self.key(property)?;
        }
        self.users(root)?;
        self.hooks(root)?;
        let docker = self.config.docker.as_ref();
        let made = docker.is_some_and(|docker| docker.image.is_some() || docker.build.is_some());
        if let Some(compose) = root.get("dockerComposeFile") {
            if !made {
                let range = compose.range.start..compose.range.end;
                return Err(self
                    .refuse(range, "a workspace is one container, and this makes it of compose files")
                    .with_remedy(Some(
                        "give image or build instead, and the other containers as services in .vendetta/config.yaml".to_owned(),
                    )));
            }
            self.ignore("dockerComposeFile", "image or build is used instead");
        }
        Ok(())
    }

    fn key(&mut self, property: &ObjectProp<'_>) -> Result<(), Invalid> {
        let (key, value) = (property.name.as_str(), &property.value);
        match key {
            "name" => self.name(value)?,
            "image" => {
                let image = self.string(key, value)?;
                self.place(&["docker", "image"], value);
                self.docker().image = Some(image);
            }
            "build" => {
                let build = self.object(key, value)?;
                // By its name: it goes on over several lines.
                let start = property.range.start;
                let range = start..start + key.len() + 2;
                let ours = ["docker", "build"].map(str::to_owned).to_vec();
                self.places.push((ours, range));
                self.build(build)?;
            }
            // As it was written before there was `build`.
            "dockerFile" | "context" => self.build_path(key, value)?,
            "workspaceFolder" => {
                let folder = self.string(key, value)?;
                self.place(&["workspace_folder"], value);
                self.config.workspace_folder = Some(folder);
            }
            "remoteEnv" => self.env(property, true)?,
            "forwardPorts" => self.ports(self.array(key, value)?)?,
            "mounts" => self.mounts(self.array(key, value)?)?,
            "hostRequirements" => self.resources(self.object(key, value)?)?,
            // The agent is such a first process in any case.
            "init" | "$schema" => {}
            _ if HONOURED.contains(&key) => {}
            _ => match NOT_HONOURED.iter().find(|(name, _)| *name == key) {
                Some((_, why)) => self.ignore(key, *why),
                None => {
                    let known = HONOURED
                        .iter()
                        .chain(NOT_HONOURED.iter().map(|(name, _)| name));
                    let why = match vendetta_proto::nearest(key, known.copied()) {
                        Some(near) => format!("unknown; did you mean {near}?"),
                        None => "unknown".to_owned(),
                    };
                    self.ignore(key, why);
                }
            },
        }
        Ok(())
    }

    fn docker(&mut self) -> &mut DockerConfig {
        self.config.docker.get_or_insert_default()
    }

    fn wrong_type(&self, key: &str, value: &Value<'_>, expected: &str) -> Invalid {
        self.refuse(bytes_of(value), format!("`{key}` is {expected}"))
    }

    fn array<'v>(&self, key: &str, value: &'v Value<'v>) -> Result<&'v Array<'v>, Invalid> {
        value
            .as_array()
            .ok_or_else(|| self.wrong_type(key, value, "a list"))
    }

    fn object<'v>(&self, key: &str, value: &'v Value<'v>) -> Result<&'v Object<'v>, Invalid> {
        value
            .as_object()
            .ok_or_else(|| self.wrong_type(key, value, "an object"))
    }

    /// A text with its variables replaced, which it may not do without.
    fn string(&self, key: &str, value: &Value<'_>) -> Result<String, Invalid> {
        let Value::StringLit(text) = value else {
            return Err(self.wrong_type(key, value, "a string"));
        };
        self.variables.expand(&text.value).map_err(|unknown| {
            self.refuse(bytes_of(value), unknown.to_string())
                .with_remedy(Some("write the value out".to_owned()))
        })
    }

    /// A title for people, of which a name is made where one can be.
    fn name(&mut self, value: &Value<'_>) -> Result<(), Invalid> {
        let title = self.string("name", value)?;
        let name = title
            .to_lowercase()
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .collect::<Vec<_>>()
            .join("-");
        self.place(&["name"], value);
        match name.parse() {
            Ok(name) => self.config.name = Some(name),
            Err(_) => self.ignore("name", "no name of a workspace can be made of it"),
        }
        Ok(())
    }

    fn build(&mut self, build: &Object<'_>) -> Result<(), Invalid> {
        self.docker().build.get_or_insert_default();
        for property in &build.properties {
            let (key, value) = (property.name.as_str(), &property.value);
            match key {
                "dockerfile" | "dockerFile" | "context" => self.build_path(key, value)?,
                "target" => {
                    let target = self.string("build.target", value)?;
                    self.place(&["docker", "build", "target"], value);
                    self.image_build().target = Some(target);
                }
                "args" => {
                    for property in &self.object("build.args", value)?.properties {
                        let (name, value) = (property.name.as_str(), &property.value);
                        let argument = self.string(&format!("build.args.{name}"), value)?;
                        self.place(&["docker", "build", "args", name], value);
                        self.image_build().args.insert(name.to_owned(), argument);
                    }
                }
                "cacheFrom" => self.ignore("build.cacheFrom", "the engine's own cache is used"),
                _ => self.ignore(
                    format!("build.{key}"),
                    "how the engine builds is the gateway's to say",
                ),
            }
        }
        Ok(())
    }

    fn image_build(&mut self) -> &mut Build {
        self.docker().build.get_or_insert_default()
    }

    /// A path, which is below the directory of the file.
    fn build_path(&mut self, key: &str, value: &Value<'_>) -> Result<(), Invalid> {
        let path = self.string(&format!("build.{key}"), value)?;
        let path = if path.starts_with('/') {
            path
        } else {
            plain(&format!("{}/{path}", self.base))
        };
        let ours = if key == "context" {
            "context"
        } else {
            "dockerfile"
        };
        self.place(&["docker", "build", ours], value);
        let base = self.base;
        let build = self.image_build();
        if key == "context" {
            build.context = Some(if path.is_empty() {
                ".".to_owned()
            } else {
                path
            });
        } else {
            build.dockerfile = Some(path);
            build.context.get_or_insert_with(|| base.to_owned());
        }
        Ok(())
    }

    /// Variables; what depends on another machine is listed, one by one.
    fn env(&mut self, property: &ObjectProp<'_>, remote: bool) -> Result<(), Invalid> {
        let key = property.name.as_str();
        for property in &self.object(key, &property.value)?.properties {
            let (name, value) = (property.name.as_str(), &property.value);
            let path = format!("{key}.{name}");
            let text = match value {
                Value::StringLit(text) => text,
                Value::NullKeyword(_) => {
                    self.ignore(path, "a variable can be set, not taken away");
                    continue;
                }
                _ => return Err(self.wrong_type(&path, value, "a string")),
            };
            let expanded = if remote {
                self.variables.expand_remote(&text.value)
            } else {
                self.variables.expand(&text.value)
            };
            match expanded {
                Ok(text) => {
                    self.place(&["env", name], value);
                    if !remote {
                        self.variables.set_container(name, &text);
                    }
                    self.config.env.insert(name.to_owned(), text);
                }
                Err(unknown) => self.ignore(path, unknown.to_string()),
            }
        }
        Ok(())
    }

    fn ports(&mut self, ports: &Array<'_>) -> Result<(), Invalid> {
        for (at, value) in ports.elements.iter().enumerate() {
            let port = match value {
                Value::NumberLit(number) => number.value.parse::<u16>().ok(),
                Value::StringLit(text) => match text.value.rsplit_once(':') {
                    Some(("localhost" | "127.0.0.1", port)) => port.parse().ok(),
                    Some((host, port)) if port.parse::<u16>().is_ok() => {
                        let why = format!("there is no other container {host}");
                        self.ignore(format!("forwardPorts.{at}"), why);
                        continue;
                    }
                    _ => text.value.parse().ok(),
                },
                _ => None,
            };
            let Some(port) = port else {
                return Err(self.wrong_type(
                    &format!("forwardPorts.{at}"),
                    value,
                    "a port, such as 3000",
                ));
            };
            if !self.config.ports.contains(&port) {
                let ours = self.config.ports.len().to_string();
                self.place(&["ports", &ours], value);
                self.config.ports.push(port);
            }
        }
        Ok(())
    }

    /// Volumes; directories of the machine where it was written are not here.
    fn mounts(&mut self, mounts: &Array<'_>) -> Result<(), Invalid> {
        for (at, value) in mounts.elements.iter().enumerate() {
            let key = format!("mounts.{at}");
            let mount = match value {
                Value::StringLit(text) => Mount::from_text(&text.value),
                Value::Object(object) => Mount::from_object(object),
                _ => return Err(self.wrong_type(&key, value, "a string or an object")),
            };
            if mount.kind != "volume" {
                let why = match mount.kind.as_str() {
                    "bind" => "directories of your machine are not on the node".to_owned(),
                    other => format!("mounts of type {other:?} are not made"),
                };
                self.ignore(key, why);
                continue;
            }
            let (source, target) = (
                self.variables.expand(&mount.source),
                self.variables.expand(&mount.target),
            );
            match (source, target) {
                (Ok(source), Ok(target)) => {
                    let source = volume_name(&source);
                    self.place(&["docker", "volumes", &source], value);
                    self.docker().volumes.insert(source, target);
                }
                (Err(unknown), _) | (_, Err(unknown)) => self.ignore(key, unknown.to_string()),
            }
        }
        Ok(())
    }

    fn resources(&mut self, requirements: &Object<'_>) -> Result<(), Invalid> {
        for property in &requirements.properties {
            let (key, value) = (property.name.as_str(), &property.value);
            let path = format!("hostRequirements.{key}");
            match key {
                "cpus" => {
                    let cpus = value.as_number_lit().and_then(|n| n.value.parse().ok());
                    let Some(cpus) = cpus else {
                        return Err(self.wrong_type(&path, value, "a number"));
                    };
                    self.place(&["resources", "cpu"], value);
                    self.config.resources.cpu = Some(cpus);
                }
                "memory" => {
                    let size = match value {
                        Value::NumberLit(number) => number.value.parse().ok(),
                        Value::StringLit(text) => text.value.parse().ok(),
                        _ => None,
                    };
                    let Some(size) = size else {
                        return Err(self.wrong_type(&path, value, "a size, such as \"4gb\""));
                    };
                    self.place(&["resources", "memory"], value);
                    self.config.resources.memory = Some(size);
                }
                "storage" => self.ignore(path, "disks of containers have no limit"),
                "gpu" => self.ignore(path, "a workspace gets no devices of the engine's machine"),
                _ => self.ignore(path, "unknown"),
            }
        }
        Ok(())
    }

    /// Sessions run as `remoteUser`, else as `containerUser`.
    fn users(&mut self, root: &Object<'_>) -> Result<(), Invalid> {
        let mut given = Vec::new();
        for key in ["remoteUser", "containerUser"] {
            if let Some(property) = root.get(key) {
                given.push((self.string(key, &property.value)?, property));
            }
        }
        let Some((user, property)) = given.first() else {
            return Ok(());
        };
        self.place(&["user"], &property.value);
        self.config.user = Some(user.clone());
        if given.get(1).is_some_and(|(other, _)| other != user) {
            self.ignore(
                "containerUser",
                "sessions, services and hooks run as remoteUser",
            );
        }
        Ok(())
    }
}
