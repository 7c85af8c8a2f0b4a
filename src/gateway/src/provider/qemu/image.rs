//! What `qemu.image` may say, and where the images of known names come from. Pure.

use std::fmt;
use std::path::PathBuf;

use crate::node::Arch;

/// The image of a machine's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineImage {
    /// A file of the node.
    Path(PathBuf),
    /// A file that the node can download.
    Url {
        /// Where it is.
        url: String,
        /// What it must be, where the reference says so.
        checksum: Option<Checksum>,
    },
    /// The cloud image that a distribution publishes.
    Known {
        /// Whose.
        distribution: Distribution,
        /// Which release, such as "22.04" or "12".
        release: &'static str,
    },
}

/// A digest of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    /// How it is computed.
    pub algorithm: Algorithm,
    /// In small hexadecimal digits.
    pub hex: String,
}

/// How a digest is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

/// A distribution that publishes cloud images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// `debian`.
    Debian,
    /// `ubuntu`.
    Ubuntu,
}

/// Why an image is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMachineImage {
    /// Neither a path, nor a URL, nor a known name.
    #[error(
        "{0:?} is no image of a machine; give an absolute path or a URL on the node, or a name such as ubuntu:22.04 or debian:12"
    )]
    Unknown(String),
    /// A distribution without this release.
    #[error("{distribution}:{release} is not known; known are {}", known(*distribution))]
    Release {
        /// The distribution.
        distribution: Distribution,
        /// What was asked for.
        release: String,
    },
    /// What follows `#` is no digest.
    #[error("{0:?} is no checksum; write URL#sha256=HEX or URL#sha512=HEX")]
    Checksum(String),
}

/// Where the cloud images of the known names are; a mirror is laid out the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    /// What is at <https://cloud.debian.org/images/cloud>.
    pub debian: String,
    /// What is at <https://cloud-images.ubuntu.com>.
    pub ubuntu: String,
}

impl Default for Mirrors {
    fn default() -> Self {
        Self {
            debian: "https://cloud.debian.org/images/cloud".to_owned(),
            ubuntu: "https://cloud-images.ubuntu.com".to_owned(),
        }
    }
}

/// A published file, and the list of checksums that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Published {
    pub directory: String,
    pub file: String,
    pub checksums: &'static str,
    pub algorithm: Algorithm,
}

/// The releases: as they are named in a config, also by their code name, and in the mirror.
const DEBIAN: [(&str, &str); 3] = [("11", "bullseye"), ("12", "bookworm"), ("13", "trixie")];
const UBUNTU: [(&str, &str); 4] = [
    ("20.04", "focal"),
    ("22.04", "jammy"),
    ("24.04", "noble"),
    ("26.04", "resolute"),
];

impl Distribution {
    fn releases(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Debian => &DEBIAN,
            Self::Ubuntu => &UBUNTU,
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debian => "debian",
            Self::Ubuntu => "ubuntu",
        })
    }
}

fn known(distribution: Distribution) -> String {
    let names: Vec<_> = (distribution.releases().iter())
        .map(|(release, _)| format!("{distribution}:{release}"))
        .collect();
    names.join(", ")
}

impl Algorithm {
    /// The program of coreutils and busybox that computes it.
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256sum",
            Self::Sha512 => "sha512sum",
        }
    }

    fn digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl Checksum {
    fn new(algorithm: Algorithm, hex: &str) -> Option<Self> {
        let good =
            hex.len() == algorithm.digits() && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        good.then(|| Self {
            algorithm,
            hex: hex.to_ascii_lowercase(),
        })
    }
}

impl MachineImage {
    /// Reads what a config says.
    ///
    /// # Errors
    /// [`InvalidMachineImage`].
    pub fn parse(text: &str) -> Result<Self, InvalidMachineImage> {
        let unknown = || InvalidMachineImage::Unknown(text.to_owned());
        if text.chars().any(char::is_control) {
            return Err(unknown());
        }
        if text.starts_with('/') {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return Self::parse_url(text);
        }
        let (distribution, release) = match text.split_once(':') {
            Some(("debian", release)) => (Distribution::Debian, release),
            Some(("ubuntu", release)) => (Distribution::Ubuntu, release),
            _ => return Err(unknown()),
        };
        let mut releases = distribution.releases().iter();
        match releases.find(|(number, code)| [*number, *code].contains(&release)) {
            Some((release, _)) => Ok(Self::Known {
                distribution,
                release,
            }),
            None => Err(InvalidMachineImage::Release {
                distribution,
                release: release.to_owned(),
            }),
        }
    }

    fn parse_url(text: &str) -> Result<Self, InvalidMachineImage> {
        if text.contains(char::is_whitespace) || text.split('/').nth(2).is_none_or(str::is_empty) {
            return Err(InvalidMachineImage::Unknown(text.to_owned()));
        }
        let Some((url, fragment)) = text.split_once('#') else {
            return Ok(Self::Url {
                url: text.to_owned(),
                checksum: None,
            });
        };
        let checksum = match fragment.split_once('=') {
            Some(("sha256", hex)) => Checksum::new(Algorithm::Sha256, hex),
            Some(("sha512", hex)) => Checksum::new(Algorithm::Sha512, hex),
            _ => None,
        };
        match checksum {
            Some(checksum) => Ok(Self::Url {
                url: url.to_owned(),
                checksum: Some(checksum),
            }),
            None => Err(InvalidMachineImage::Checksum(fragment.to_owned())),
        }
    }
}

impl fmt::Display for MachineImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Url { url, .. } => f.write_str(url),
            Self::Known {
                distribution,
                release,
            } => write!(f, "{distribution}:{release}"),
        }
    }
}

/// Where a distribution publishes the image of a release; none: not for this architecture.
pub(super) fn published(
    mirrors: &Mirrors,
    distribution: Distribution,
    release: &str,
    arch: &Arch,
) -> Option<Published> {
    // Debian's names of architectures, which are Ubuntu's too.
    let arch = match arch.as_str() {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        _ => return None,
    };
    Some(match distribution {
        Distribution::Debian => {
            let (_, code) = DEBIAN.iter().find(|(number, _)| *number == release)?;
            let mirror = mirrors.debian.trim_end_matches('/');
            Published {
                directory: format!("{mirror}/{code}/latest"),
                file: format!("debian-{release}-genericcloud-{arch}.qcow2"),
                checksums: "SHA512SUMS",
                algorithm: Algorithm::Sha512,
            }
        }
        Distribution::Ubuntu => {
            let mirror = mirrors.ubuntu.trim_end_matches('/');
            Published {
                directory: format!("{mirror}/releases/{release}/release"),
                file: format!("ubuntu-{release}-server-cloudimg-{arch}.img"),
                checksums: "SHA256SUMS",
                algorithm: Algorithm::Sha256,
            }
        }
    })
}

/// The checksum of `file` in a list as `sha256sum` writes it, with or without `--tag`.
pub(super) fn find_checksum(list: &str, algorithm: Algorithm, file: &str) -> Option<Checksum> {
    list.lines().find_map(|line| {
        let line = line.trim();
        let hex = match line.split_once(") = ") {
            Some((tagged, hex)) => (tagged.split_once(" (")?.1 == file).then_some(hex)?,
            None => {
                let (hex, name) = line.split_once(char::is_whitespace)?;
                // '*' marks a file that was read as binary.
                let name = name.trim_start();
                (name.strip_prefix('*').unwrap_or(name) == file).then_some(hex)?
            }
        };
        Checksum::new(algorithm, hex.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_addresses_and_known_names_are_told_apart() {
        let parse = |text: &str| MachineImage::parse(text);
        assert_eq!(
            parse("/images/a b.qcow2"),
            Ok(MachineImage::Path("/images/a b.qcow2".into()))
        );
        for name in ["debian:12", "debian:bookworm"] {
            assert_eq!(parse(name).unwrap().to_string(), "debian:12");
        }
        assert_eq!(parse("ubuntu:jammy").unwrap().to_string(), "ubuntu:22.04");
        let hex = "Ab".repeat(32);
        let pinned = parse(&format!("https://host/x.img#sha256={hex}")).unwrap();
        let MachineImage::Url { url, checksum } = pinned else {
            panic!("{pinned:?}");
        };
        assert_eq!(url, "https://host/x.img");
        assert_eq!(checksum.unwrap().hex, "ab".repeat(32));
        for bad in [
            "",
            "debian",
            "debian:",
            "debian:9",
            "ubuntu:22.04.1",
            "fedora:40",
            "relative/path",
            "ftp://host/x",
            "file:///etc/shadow",
            "https://",
            "https:///x",
            "https://host/a b",
            "https://host/x#sha256=12",
            "https://host/x#md5=12",
            "/a\nb",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        let said = parse("ubuntu:17.10").unwrap_err().to_string();
        assert!(said.contains("ubuntu:22.04"), "{said}");
    }

    #[test]
    fn known_names_lead_to_what_the_distributions_publish() {
        let mirrors = Mirrors::default();
        let at = |image: &str, arch: &str| {
            let Ok(MachineImage::Known {
                distribution,
                release,
            }) = MachineImage::parse(image)
            else {
                panic!("{image}");
            };
            published(&mirrors, distribution, release, &Arch::new(arch))
        };
        let debian = at("debian:12", "x86_64").unwrap();
        assert_eq!(
            format!("{}/{}", debian.directory, debian.file),
            "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2"
        );
        let ubuntu = at("ubuntu:22.04", "aarch64").unwrap();
        assert_eq!(
            format!("{}/{}", ubuntu.directory, ubuntu.file),
            "https://cloud-images.ubuntu.com/releases/22.04/release/ubuntu-22.04-server-cloudimg-arm64.img"
        );
        assert_eq!(
            (debian.checksums, ubuntu.checksums),
            ("SHA512SUMS", "SHA256SUMS")
        );
        assert_eq!(at("debian:12", "riscv64"), None);
    }

    #[test]
    fn a_checksum_is_found_in_both_forms_of_a_list_by_the_whole_name() {
        let (one, two) = ("1".repeat(64), "2".repeat(64));
        let list = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\n\n{two} *other-x.img\n{two}  x.img.xz\n{one} *x.img\nSHA256 (y.img) = {two}\n"
        );
        let find = |file: &str| find_checksum(&list, Algorithm::Sha256, file).map(|sum| sum.hex);
        assert_eq!(find("x.img").as_ref(), Some(&one));
        assert_eq!(find("y.img").as_ref(), Some(&two));
        assert_eq!(find("img"), None);
        assert_eq!(find_checksum(&list, Algorithm::Sha512, "x.img"), None);
    }

    proptest! {
        #[test]
        fn whatever_a_list_or_a_config_says_nothing_panics(text in "\\PC*", file in "\\PC*") {
            let _ = find_checksum(&text, Algorithm::Sha256, &file);
            if let Ok(image) = MachineImage::parse(&text) {
                // What is shown can be given again, but for the checksum.
                prop_assert!(MachineImage::parse(&image.to_string()).is_ok());
            }
        }
    }
}
