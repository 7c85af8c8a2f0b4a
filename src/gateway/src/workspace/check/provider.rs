//! What is particular to a provider: images, how they are built, disks, sizes of machines.

use std::collections::BTreeMap;

use vendetta_proto::spec::{Build, DockerConfig, ProjectConfig, ProviderKind};
use vendetta_proto::value::ByteSize;

use super::super::WORKSPACE_DIR;
use super::{Checked, Wrong, check_variable, is_below};
use crate::provider::{ImageReference, LxcImage, MachineImage};

/// Directories of an environment that are not a workspace's to place.
const RESERVED: [&str; 4] = ["/.vendetta", "/dev", "/proc", "/sys"];

pub(super) fn check_provider(config: &ProjectConfig, provider: ProviderKind) -> Checked {
    match provider {
        ProviderKind::Docker => match &config.docker {
            Some(DockerConfig {
                image: Some(_),
                build: Some(_),
                ..
            }) => Err(Wrong::new(
                &["docker", "build"],
                "image and build are two answers to one question",
            )
            .with_remedy("keep one of the two")),
            Some(DockerConfig {
                image: Some(image), ..
            }) => ImageReference::parse(image)
                .map(drop)
                .map_err(|error| Wrong::new(&["docker", "image"], error.to_string())),
            Some(DockerConfig {
                build: Some(build), ..
            }) => check_build(build).map_err(|wrong| wrong.below(&["docker", "build"])),
            _ => Err(
                Wrong::new(&[], "provider docker needs an image").with_remedy(
                    "add --image IMAGE, or docker: {image: IMAGE} or docker: {build: {}} to the config",
                ),
            ),
        },
        ProviderKind::Lxc => match &config.lxc {
            Some(lxc) => LxcImage::parse(&lxc.image)
                .map(drop)
                .map_err(|error| Wrong::new(&["lxc", "image"], error.to_string())),
            None => Err(Wrong::new(&[], "provider lxc needs an image")
                .with_remedy("add --image IMAGE, or lxc: {image: IMAGE} to the config")),
        },
        ProviderKind::Qemu => check_machine(config),
        ProviderKind::Host => Ok(()),
    }
}

fn check_machine(config: &ProjectConfig) -> Checked {
    let Some(qemu) = &config.qemu else {
        return Err(Wrong::new(&[], "provider qemu needs an image")
            .with_remedy("add --image IMAGE, or qemu: {image: IMAGE} to the config"));
    };
    MachineImage::parse(&qemu.image)
        .map_err(|error| Wrong::new(&["qemu", "image"], error.to_string()))?;
    if let Some(cpu) = qemu.cpu
        && !(1..=512).contains(&cpu)
    {
        return Err(Wrong::new(
            &["qemu", "cpu"],
            format!("{cpu} is not a number of processors between 1 and 512"),
        ));
    }
    // The provider's own key wins over that of all.
    let memory = match (qemu.memory, config.resources.memory) {
        (Some(own), _) => (["qemu", "memory"], Some(own)),
        (None, all) => (["resources", "memory"], all),
    };
    for ((key, size), least, most) in [
        (memory, 128 << 20, 16 << 40),
        ((["qemu", "disk"], qemu.disk), 1 << 30, 64 << 40),
    ] {
        let Some(size) = size else { continue };
        if !(least..=most).contains(&size.as_bytes()) {
            let [least, most] = [least, most].map(ByteSize::from_bytes);
            return Err(Wrong::new(
                &key,
                format!("a machine has between {least} and {most}, not {size}"),
            ));
        }
    }
    Ok(())
}

fn check_build(build: &Build) -> Checked {
    for (key, path) in [
        ("dockerfile", &build.dockerfile),
        ("context", &build.context),
    ] {
        if let Some(path) = path
            && !is_below(path)
        {
            return Err(Wrong::new(
                &[key],
                format!("{path:?} is not a path below the project's directory"),
            ));
        }
    }
    for (name, value) in &build.args {
        check_variable(name, value).map_err(|problem| Wrong::new(&["args", name], problem))?;
    }
    let odd = |c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c));
    match &build.target {
        Some(target) if target.is_empty() || target.contains(odd) => Err(Wrong::new(
            &["target"],
            format!("{target:?} is not the name of a stage"),
        )),
        _ => Ok(()),
    }
}

/// A directory of an environment that may be a disk of a workspace.
pub(super) fn check_folder(path: &str) -> Result<(), String> {
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    let whole = path
        .strip_prefix('/')
        .is_some_and(|rest| rest.split('/').all(plain));
    if !whole || path.chars().any(char::is_control) {
        return Err(format!(
            "{path:?} is not an absolute path without '.' and '..', such as /workspace"
        ));
    }
    match RESERVED.iter().find(|reserved| is_in(path, reserved)) {
        Some(reserved) => Err(format!(
            "{path:?} is in {reserved}, which is not the workspace's"
        )),
        None => Ok(()),
    }
}

/// Whether `path` is `dir` or below it.
fn is_in(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(super) fn check_volumes(docker: &DockerConfig, folder: Option<&str>) -> Checked {
    let mut taken: BTreeMap<&str, &str> =
        BTreeMap::from([(folder.unwrap_or(WORKSPACE_DIR), "the workspace's disk")]);
    for (name, path) in &docker.volumes {
        let wrong = |problem: String| Err(Wrong::new(&["docker", "volumes", name], problem));
        let letters = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins || name.len() > 63 || !name.bytes().all(letters) {
            return wrong(format!(
                "{name:?} is not the name of a volume; use letters, digits, '_', '.' and '-'"
            ));
        }
        if let Err(problem) = check_folder(path) {
            return wrong(problem);
        }
        if let Some(other) = taken.insert(path, name) {
            return wrong(format!("{path} is where {other} is already"));
        }
    }
    Ok(())
}
