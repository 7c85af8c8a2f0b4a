//! The disk from which a machine learns what it is: a FAT image with the label
//! that cloud-init's data source NoCloud looks for
//! (<https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html>).
//!
//! | file | what it is |
//! |---|---|
//! | `meta-data`, `user-data` | for cloud-init: the host name, and that boot.sh is to be run early at each boot |
//! | `boot.sh` | mounts the workspace's disk, starts the agent; needs no cloud-init |
//! | `settings` | what differs between machines, for boot.sh |
//! | `agent.json` | the agent's config, with its host key |
//!
//! The agent's executable is a disk of its own, the very file that is kept on the
//! node: it would otherwise be sent to the node with each seed. The seed is made
//! anew at each start.

use std::io::{self, Cursor, Write as _};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use serde_json::json;

/// The label, as FAT pads it.
const LABEL: [u8; 11] = *b"CIDATA     ";

/// Room for what FAT itself needs, and for files to be rounded up to clusters.
const SPARE: usize = 256 * 1024;

/// A sector of a disk.
const SECTOR: usize = 512;

/// What starts the agent in the machine.
const BOOT: &str = include_str!("boot.sh");

/// What cloud-init runs; the image may have it long before anything else is up.
const RUN_BOOT: &str = "d=/run/vendetta/seed; mkdir -p $d && mount -o ro,umask=077 LABEL=CIDATA $d && exec sh $d/boot.sh $d";

/// What a seed tells a machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seed<'a> {
    /// Changes when cloud-init is to do everything anew.
    pub instance: &'a str,
    /// The host name.
    pub name: &'a str,
    /// Where the workspace's disk is.
    pub folder: &'a str,
    /// The user of sessions, who is added when the image does not have them.
    pub user: Option<&'a str>,
    /// agent.json.
    pub agent_config: &'a [u8],
}

/// Makes the image of a seed.
///
/// # Errors
/// When something is in it that FAT or a shell cannot hold.
pub(super) fn image(seed: &Seed<'_>) -> io::Result<Vec<u8>> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    let meta_data = format!(
        "instance-id: {}\nlocal-hostname: {}\n",
        seed.instance, seed.name
    );
    // JSON is YAML.
    let user_data = format!(
        "#cloud-config\n{:#}\n",
        json!({
            "bootcmd": [["sh", "-c", RUN_BOOT]],
            "manage_etc_hosts": "localhost",
        })
    );
    let quote = |value| shlex::try_quote(value).map_err(invalid);
    let settings = format!(
        "workspace_name={}\nworkspace_folder={}\nsession_user={}\n",
        quote(seed.name)?,
        quote(seed.folder)?,
        quote(seed.user.unwrap_or_default())?,
    );
    let files = [
        ("meta-data", meta_data.as_bytes()),
        ("user-data", user_data.as_bytes()),
        ("settings", settings.as_bytes()),
        ("boot.sh", BOOT.as_bytes()),
        ("agent.json", seed.agent_config),
    ];
    let content: usize = files.iter().map(|(_, content)| content.len()).sum();
    let length = (SPARE + content).next_multiple_of(SECTOR);
    let mut disk = Cursor::new(vec![0; length]);
    fatfs::format_volume(&mut disk, FormatVolumeOptions::new().volume_label(LABEL))?;
    let volume = FileSystem::new(&mut disk, FsOptions::new())?;
    for (name, content) in files {
        volume.root_dir().create_file(name)?.write_all(content)?;
    }
    volume.unmount()?;
    Ok(disk.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    fn seed<'a>(user: Option<&'a str>, agent_config: &'a [u8]) -> Seed<'a> {
        Seed {
            instance: "0a1b-2",
            name: "web",
            folder: "/workspace",
            user,
            agent_config,
        }
    }

    fn read(image: &[u8], name: &str) -> String {
        let volume = FileSystem::new(Cursor::new(image.to_vec()), FsOptions::new()).unwrap();
        let mut text = String::new();
        let mut file = volume.root_dir().open_file(name).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn what_is_put_into_a_seed_is_read_back_from_it() {
        for length in [0, 1, 511, 4096, 300_000, 3_000_000] {
            let config = "k".repeat(length);
            let image = image(&seed(Some("dev"), config.as_bytes())).unwrap();
            assert_eq!(read(&image, "agent.json"), config);
            assert_eq!(read(&image, "boot.sh"), BOOT);
            assert_eq!(
                read(&image, "meta-data"),
                "instance-id: 0a1b-2\nlocal-hostname: web\n"
            );
            let volume = FileSystem::new(Cursor::new(image), FsOptions::new()).unwrap();
            let label = volume.read_volume_label_from_root_dir().unwrap();
            assert_eq!(label.as_deref(), Some("CIDATA"));
            assert_eq!(volume.volume_label(), "CIDATA");
        }
    }

    #[test]
    fn user_data_is_a_cloud_config_that_runs_the_script() {
        let image = image(&seed(None, b"{}")).unwrap();
        let text = read(&image, "user-data");
        let yaml = text.strip_prefix("#cloud-config\n").unwrap();
        let config: serde_json::Value = serde_json::from_str(yaml).unwrap();
        assert_eq!(config["bootcmd"][0][0], "sh");
        assert!(
            config["bootcmd"][0][2]
                .as_str()
                .unwrap()
                .contains("boot.sh")
        );
    }

    #[test]
    fn the_script_reads_its_settings_whatever_is_in_them() {
        for user in ["dev", "o'neill $(touch /tmp/evil)", ""] {
            let image = image(&seed(Some(user), b"{}")).unwrap();
            let script = format!("{}\nprintf %s \"$session_user\"", read(&image, "settings"));
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), user);
        }
        assert!(image(&seed(Some("a\0b"), b"{}")).is_err());
    }

    #[test]
    fn the_script_is_one_that_every_shell_parses() {
        for shell in ["sh", "bash"] {
            let mut child = Command::new(shell)
                .arg("-n")
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(BOOT.as_bytes())
                .unwrap();
            assert!(child.wait().unwrap().success(), "{shell}");
        }
    }
}
