//! The images that are kept on a node, each under its SHA-256, and the ways by which
//! they come there. One that is kept is used without asking anybody; it is never
//! changed, since the disks of machines are on top of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use super::image::{Algorithm, Checksum, MachineImage, find_checksum, published};
use super::{Qemu, failed, machines, scripts};
use crate::node::Command;
use crate::provider::{Context, ProviderError};
use crate::workspace::Step;

/// How long a file of several gigabytes may take to be copied and read.
const COPY_LIMIT: Duration = Duration::from_secs(3600);

/// How long a download may take.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(6 * 3600);

/// How long a list of checksums may take.
const LIST_LIMIT: Duration = Duration::from_secs(120);

/// How long a small script may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How often a download is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The end of the first sector of a disk that can be booted by BIOS, and of every
/// one with a GUID partition table (UEFI 5.2).
const BOOT_SIGNATURE: &str = "55 aa";

/// An image that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base {
    pub path: PathBuf,
    pub format: Format,
    /// Bytes of the disk that it is.
    pub size: u64,
}

/// How an image is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    Qcow2,
    Raw,
}

impl Format {
    /// QEMU's word for it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// What is to be downloaded.
struct Download {
    url: String,
    checksum: Option<Checksum>,
}

impl Qemu {
    /// Sees that an image is kept on the node.
    pub(super) async fn keep(
        &self,
        image: &MachineImage,
        context: &Context,
    ) -> Result<Base, ProviderError> {
        let digest = match image {
            MachineImage::Path(path) => {
                let step = context.progress.step(format!("image {image}"));
                let kept = context
                    .cancel
                    .run_until_cancelled(self.keep_path(image, path));
                step.end(kept.await.unwrap_or(Err(ProviderError::Cancelled)))?
            }
            _ => self.keep_published(image, context).await?,
        };
        let path = self.images().join(digest);
        match self.examine(image, &path.display().to_string()).await {
            Ok((format, size)) => Ok(Base { path, format, size }),
            Err(error) => {
                if matches!(error, ProviderError::Refused { .. }) {
                    self.machines.node.remove_tree(&path).await?;
                }
                Err(error)
            }
        }
    }

    fn images(&self) -> PathBuf {
        self.machines.node.state_dir().join("base")
    }

    async fn keep_path(&self, image: &MachineImage, path: &Path) -> Result<String, ProviderError> {
        let node = self.machines.node.as_ref();
        let path = self.find(path).await?;
        // Before it is copied: it may be anything, of any length.
        self.examine(image, &path).await?;
        let arguments = [self.images().display().to_string(), path];
        let kept = machines::run(node, scripts::KEEP_PATH, arguments, COPY_LIMIT).await?;
        match kept.status {
            Some(0) => digest(&kept.stdout)
                .ok_or_else(|| failed(node, "keep image", "it has no SHA-256".to_owned())),
            _ => Err(failed(node, "keep image", said(&kept.stderr))),
        }
    }

    /// Where a file really is, when it may be an image.
    async fn find(&self, path: &Path) -> Result<String, ProviderError> {
        let node = self.machines.node.as_ref();
        let allowed = self.settings.image_dirs.iter().map(PathBuf::as_path);
        let arguments = [node.state_dir(), path].into_iter().chain(allowed);
        let arguments = arguments.map(|path| path.display().to_string());
        let found = machines::run(node, scripts::FIND_PATH, arguments, LIMIT).await?;
        match found.status {
            Some(0) => Ok(String::from_utf8_lossy(&found.stdout).into_owned()),
            Some(scripts::NO_FILE) => Err(ProviderError::NoImage {
                image: path.display().to_string(),
                problem: format!(
                    "there is no such file that can be read on node {}",
                    node.name()
                ),
                remedy:
                    "give the path of a disk image on the node, a URL, or a name such as debian:12"
                        .to_owned(),
            }),
            Some(scripts::NOT_ALLOWED) => Err(self.not_allowed(path)),
            _ => Err(failed(node, "find image", said(&found.stderr))),
        }
    }

    fn not_allowed(&self, path: &Path) -> ProviderError {
        let dirs = self.settings.image_dirs.iter();
        let dirs: Vec<_> = dirs.map(|dir| dir.display().to_string()).collect();
        let change = "the gateway's operator adds its folder to image_dirs in section [qemu] of vendetta.toml";
        ProviderError::NoImage {
            image: path.display().to_string(),
            problem: "it is not in a folder whose files may be images".to_owned(),
            remedy: match dirs.join(" or ") {
                dirs if dirs.is_empty() => change.to_owned(),
                dirs => format!(
                    "put it into {dirs} on node {}, or {change}",
                    self.machines.node.name()
                ),
            },
        }
    }

    async fn keep_published(
        &self,
        image: &MachineImage,
        context: &Context,
    ) -> Result<String, ProviderError> {
        let node = self.machines.node.as_ref();
        let key = self.key(image).await?;
        // One at a time: whoever waited finds it kept.
        let turn = context.cancel.run_until_cancelled(self.downloading.lock());
        let _turn = turn.await.ok_or(ProviderError::Cancelled)?;
        if let Some(digest) = self.kept(&key).await? {
            return Ok(digest);
        }
        let step = context.progress.step(format!("download image {image}"));
        let downloaded = async {
            let images = self.images().display().to_string();
            let tool = machines::run(node, scripts::PREPARE, [images.clone()], LIMIT).await?;
            let tool = said(&tool.stdout);
            let download = self.resolve(&tool, image).await?;
            let part = self.images().join(format!(".part-{}", self.scratch));
            self.download(&tool, &download.url, &part, &step).await?;
            let checksum = download.checksum.as_ref();
            let (program, hex) = match checksum {
                Some(checksum) => (checksum.algorithm.program(), checksum.hex.as_str()),
                None => (Algorithm::Sha256.program(), ""),
            };
            let part = part.display().to_string();
            let arguments = [&images, &key, &part, program, hex].map(str::to_owned);
            let kept = machines::run(node, scripts::KEEP_DOWNLOAD, arguments, COPY_LIMIT).await?;
            match kept.status {
                Some(0) => digest(&kept.stdout)
                    .ok_or_else(|| failed(node, "keep image", "it has no SHA-256".to_owned())),
                Some(scripts::OTHER_CHECKSUM) => Err(self.not_had(
                    &download.url,
                    said(&kept.stderr),
                    "it was changed on its way, or is being replaced by a newer one; try again",
                )),
                _ => Err(failed(node, "keep image", said(&kept.stderr))),
            }
        };
        let downloaded = context.cancel.run_until_cancelled(downloaded).await;
        for left in [
            format!(".part-{}", self.scratch),
            format!(".part-{}.head", self.scratch),
        ] {
            node.remove_tree(&self.images().join(left)).await?;
        }
        step.end(downloaded.unwrap_or(Err(ProviderError::Cancelled)))
    }

    /// What an image is remembered by; another architecture or mirror has another one.
    async fn key(&self, image: &MachineImage) -> Result<String, ProviderError> {
        let what = match image {
            MachineImage::Url { url, checksum } => {
                let hex = checksum.as_ref().map_or("", |checksum| &checksum.hex);
                format!("{url} {hex}")
            }
            MachineImage::Known {
                distribution,
                release,
            } => {
                let arch = self.machines.node.arch().await?;
                format!(
                    "{distribution}:{release} {arch} {:?}",
                    self.settings.mirrors
                )
            }
            MachineImage::Path(path) => path.display().to_string(),
        };
        Ok(hex::encode(Sha256::digest(what)))
    }

    /// The digest of the image that `key` stands for, when that is kept.
    async fn kept(&self, key: &str) -> Result<Option<String>, ProviderError> {
        let node = self.machines.node.as_ref();
        let index = self.images().join("index").join(key);
        let Some(digest) = node.read(&index).await?.as_deref().and_then(digest) else {
            return Ok(None);
        };
        let there = node.exists(&self.images().join(&digest)).await?;
        Ok(there.then_some(digest))
    }

    /// Where an image is to be downloaded, and what it has to be.
    async fn resolve(&self, tool: &str, image: &MachineImage) -> Result<Download, ProviderError> {
        let (distribution, release) = match image {
            MachineImage::Known {
                distribution,
                release,
            } => (*distribution, *release),
            MachineImage::Url { url, checksum } => {
                return Ok(Download {
                    url: url.clone(),
                    checksum: checksum.clone(),
                });
            }
            MachineImage::Path(path) => {
                let url = path.display().to_string();
                return Ok(Download {
                    url,
                    checksum: None,
                });
            }
        };
        let arch = self.machines.node.arch().await?;
        let mirrors = &self.settings.mirrors;
        let Some(published) = published(mirrors, distribution, release, &arch) else {
            return Err(ProviderError::Refused {
                operation: "read qemu.image",
                problem: format!("{image} is not published for {arch}"),
            });
        };
        let list = format!("{}/{}", published.directory, published.checksums);
        let said_list = match tool {
            "curl" => self.fetch(&curl(&list), &list).await?,
            _ => self.fetch(&wget(tool, &list), &list).await?,
        };
        let text = String::from_utf8_lossy(&said_list);
        let url = format!("{}/{}", published.directory, published.file);
        match find_checksum(&text, published.algorithm, &published.file) {
            Some(checksum) => Ok(Download {
                url,
                checksum: Some(checksum),
            }),
            None => Err(self.not_had(
                &url,
                format!("{list} has no checksum of it"),
                "give the image by its path or URL",
            )),
        }
    }

    /// What a program that downloads to its output says.
    async fn fetch(&self, argv: &[String], url: &str) -> Result<Vec<u8>, ProviderError> {
        let mut command = Command::new(argv.iter().cloned());
        command.time_limit = LIST_LIMIT;
        let output = self.machines.node.exec(&command).await?;
        if output.status == Some(0) {
            return Ok(output.stdout);
        }
        Err(self.not_had(url, said(&output.stderr), REACH))
    }

    async fn download(
        &self,
        tool: &str,
        url: &str,
        part: &Path,
        step: &Step,
    ) -> Result<(), ProviderError> {
        let node = self.machines.node.as_ref();
        let part = part.display().to_string();
        let mut argv = match tool {
            "curl" => curl(url),
            _ => wget(tool, url),
        };
        match tool {
            "curl" => argv.extend(["-D".to_owned(), format!("{part}.head"), "-o".to_owned()]),
            "wget" => argv.push("-O".to_owned()),
            _ => {
                return Err(ProviderError::Unavailable {
                    provider: vendetta_proto::spec::ProviderKind::Qemu,
                    node: node.name(),
                    problem: "neither curl nor wget is installed, to download the image".to_owned(),
                    remedy: Some("on the node: apt install curl".to_owned()),
                });
            }
        }
        argv.push(part.clone());
        let mut command = Command::new(argv);
        command.time_limit = DOWNLOAD_LIMIT;
        let watching = async {
            loop {
                sleep(LOOK).await;
                let looked = machines::run(node, scripts::PROGRESS, [part.clone()], LIMIT).await;
                let Ok(looked) = looked else { continue };
                let said = said(&looked.stdout);
                let mut numbers = said.lines().map(|line| line.trim().parse().ok());
                if let Some(Some(done)) = numbers.next() {
                    step.transfer(done, numbers.next().flatten());
                }
            }
        };
        let output = tokio::select! {
            output = node.exec(&command) => output?,
            () = watching => return Ok(()),
        };
        if output.status == Some(0) {
            return Ok(());
        }
        Err(self.not_had(url, said(&output.stderr), REACH))
    }

    /// Looks what a file of the node is. What names other files of the node, or is no disk
    /// at all, would show them to whoever is in the machine.
    async fn examine(
        &self,
        image: &MachineImage,
        path: &str,
    ) -> Result<(Format, u64), ProviderError> {
        let node = self.machines.node.as_ref();
        let output = machines::run(node, scripts::EXAMINE, [path.to_owned()], LIMIT).await?;
        let judged = match output.status {
            Some(0) => judge(&String::from_utf8_lossy(&output.stdout)),
            Some(scripts::OTHER_FILE) => Err(INCOMPLETE.to_owned()),
            _ => return Err(failed(node, "examine image", said(&output.stderr))),
        };
        judged.map_err(|problem| ProviderError::Refused {
            operation: "read qemu.image",
            problem: format!("{image}: {problem}"),
        })
    }

    fn not_had(&self, url: &str, problem: String, remedy: &str) -> ProviderError {
        ProviderError::Engine {
            provider: vendetta_proto::spec::ProviderKind::Qemu,
            node: self.machines.node.name(),
            operation: "download image",
            problem: format!("{url}: {problem}"),
            remedy: Some(remedy.to_owned()),
        }
    }
}

/// What to do when the node does not get at an image.
const REACH: &str = "check that the node reaches it, or give the image by a path on the node";

/// curl, which follows redirections to nothing but HTTP, and gives up when nothing comes.
fn curl(url: &str) -> Vec<String> {
    let options = "curl -fsSL --proto =http,https --proto-redir =http,https --connect-timeout 30 \
                   --speed-limit 1 --speed-time 60 --retry 3 --max-filesize 68719476736";
    let mut argv: Vec<_> = options.split_whitespace().map(str::to_owned).collect();
    argv.extend(["--url".to_owned(), url.to_owned()]);
    argv
}

/// wget of GNU or busybox, to its output unless told otherwise later on.
fn wget(tool: &str, url: &str) -> Vec<String> {
    let output = if tool.is_empty() {
        "wget -q -T 60 -O -"
    } else {
        "wget -q -T 60"
    };
    let mut argv: Vec<_> = output.split_whitespace().map(str::to_owned).collect();
    argv.push(url.to_owned());
    argv
}

/// What is said of an image that has a backing file or an external data file.
const INCOMPLETE: &str = "it is incomplete: it names another file that holds a part of it; \
                          flatten it with qemu-img convert -O qcow2";

/// What `qemu-img info --output=json` says, as far as it matters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    format: String,
    virtual_size: u64,
    backing_filename: Option<String>,
    format_specific: Option<Specific>,
}

#[derive(Debug, Deserialize)]
struct Specific {
    #[serde(default)]
    data: serde_json::Value,
}

/// The format and size of a disk, from what [`scripts::EXAMINE`] says; or what is wrong with it.
fn judge(said: &str) -> Result<(Format, u64), String> {
    let (signature, json) = said.split_once('\n').unwrap_or((said, ""));
    let info: Info = serde_json::from_str(json)
        .map_err(|error| format!("qemu-img does not say what it is: {error}"))?;
    let data = info.format_specific.map(|specific| specific.data);
    let other_file = data.is_some_and(|data| data.get("data-file").is_some());
    if info.backing_filename.is_some() || other_file {
        return Err(INCOMPLETE.to_owned());
    }
    match info.format.as_str() {
        "qcow2" => Ok((Format::Qcow2, info.virtual_size)),
        "raw" if signature.trim() == BOOT_SIGNATURE => Ok((Format::Raw, info.virtual_size)),
        _ => Err(
            "it is neither qcow2 nor a raw disk that a machine could boot from; what is of another \
             format is converted with qemu-img convert -O qcow2"
                .to_owned(),
        ),
    }
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// A SHA-256 as a script prints it.
fn digest(said: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(said).ok()?.trim();
    let good = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    good.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_taken_and_what_could_show_other_files_is_not() {
        let qcow2 = r#"{"virtual-size": 3221225472, "filename": "x", "format": "qcow2", "format-specific": {"type": "qcow2", "data": {"compat": "1.1"}}}"#;
        assert_eq!(
            judge(&format!(" 00 00\n{qcow2}\n")),
            Ok((Format::Qcow2, 3 << 30))
        );
        let raw = r#"{"virtual-size": 512, "format": "raw"}"#;
        assert_eq!(judge(&format!(" 55 aa\n{raw}\n")), Ok((Format::Raw, 512)));
        for (json, signature, word) in [
            (raw, "00 00", "could boot"),
            (r#"{"virtual-size": 1, "format": "vmdk"}"#, "", "convert"),
            (
                r#"{"virtual-size": 1, "format": "qcow2", "backing-filename": "/etc/shadow"}"#,
                "",
                "another file",
            ),
            (
                r#"{"virtual-size": 1, "format": "qcow2", "format-specific": {"data": {"data-file": "/etc/shadow"}}}"#,
                "",
                "another file",
            ),
            ("", "", "does not say"),
            ("[]", "55 aa", "does not say"),
        ] {
            let problem = judge(&format!(" {signature}\n{json}\n")).unwrap_err();
            assert!(problem.contains(word), "{json}: {problem}");
        }
    }

    #[test]
    fn a_digest_is_64_hexadecimal_digits() {
        let good = "0a".repeat(32);
        assert_eq!(digest(format!("{good}\n").as_bytes()), Some(good.clone()));
        for bad in ["", "../../etc/shadow", &good[1..]] {
            assert_eq!(digest(bad.as_bytes()), None);
        }
    }
}
