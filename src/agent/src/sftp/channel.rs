//! Serving SFTP on a channel without a process of its own.
//!
//! A request for a small file is answered by the thread that serves the
//! connection, so that it costs no change of threads; what may take longer
//! (bulk data, copies, flushes to disk) goes to a thread for blocking work.
//! That is for file systems of the machine only ([`is_local`]): one whose
//! server is elsewhere could hold up other connections, and so is served by a
//! process.

use std::path::PathBuf;

use bytes::{Bytes, BytesMut};

use super::server::{Server, SftpError, Stopped};
use super::wire::{Fields, kind};

/// File data up to here is read and written at once.
const SMALL: u64 = 256 * 1024;

/// File systems whose data are on this machine, and those that have none (Linux).
const LOCAL: [&str; 42] = [
    "aufs",
    "bcachefs",
    "binfmt_misc",
    "bpf",
    "btrfs",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "fusectl",
    "hugetlbfs",
    "iso9660",
    "jfs",
    "mqueue",
    "nsfs",
    "ntfs3",
    "overlay",
    "proc",
    "pstore",
    "ramfs",
    "reiserfs",
    "resctrl",
    "rootfs",
    "securityfs",
    "selinuxfs",
    "squashfs",
    "sysfs",
    "tmpfs",
    "tracefs",
    "udf",
    "vfat",
    "xfs",
    "zfs",
];

/// Whether every file system that the agent sees is local.
#[must_use]
pub fn is_local() -> bool {
    // Without a list there is nothing to rely on.
    std::fs::read("/proc/self/mounts").is_ok_and(|mounts| all_local(&mounts))
}

/// `mounts` is as fstab(5): device, place, type, options.
fn all_local(mounts: &[u8]) -> bool {
    mounts
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .all(|line| {
            let kind = line.split(|byte| *byte == b' ').nth(2);
            kind.is_some_and(|kind| LOCAL.iter().any(|local| local.as_bytes() == kind))
        })
}

/// A client's session on a channel.
#[derive(Debug)]
pub struct ChannelServer {
    /// None only while it is lent to another thread, or was lost with it.
    server: Option<Server>,
    arrived: BytesMut,
}

impl ChannelServer {
    /// A session that begins in `directory`.
    #[must_use]
    pub fn new(directory: PathBuf, home: PathBuf) -> Self {
        Self {
            server: Some(Server::new(directory, Some(home))),
            arrived: BytesMut::new(),
        }
    }

    /// Takes what the client sent.
    pub fn push(&mut self, data: &[u8]) {
        self.arrived.extend_from_slice(data);
    }

    /// Answers requests that have arrived, as many as make one write; empty
    /// when none is whole.
    ///
    /// # Errors
    /// When the client sends what is no packet.
    pub async fn answer(&mut self) -> Result<Bytes, SftpError> {
        loop {
            let Some(server) = &mut self.server else {
                return Err(SftpError::Protocol("the server was lost"));
            };
            let stopped = Self::work(server, &mut self.arrived, is_quick)?;
            if stopped == Stopped::Empty || !server.answers.bytes().is_empty() {
                return Ok(server.answers.take().into());
            }
            let Some(mut lent) = self.server.take() else {
                continue;
            };
            // With all that has arrived, so that bulk data is not handed over piece by piece.
            let mut arrived = self.arrived.split();
            let work = move || {
                let worked = Self::work(&mut lent, &mut arrived, |_| true);
                (lent, arrived, worked)
            };
            let Ok((server, rest, worked)) = tokio::task::spawn_blocking(work).await else {
                return Err(SftpError::Protocol("the server was lost"));
            };
            self.server = Some(server);
            self.arrived = rest;
            worked?;
        }
    }

    fn work(
        server: &mut Server,
        arrived: &mut BytesMut,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Stopped, SftpError> {
        let (used, stopped) = server.work(arrived, wanted)?;
        let _ = arrived.split_to(used);
        Ok(stopped)
    }
}

/// Whether a request takes no time worth speaking of on a local file system.
fn is_quick(packet: &[u8]) -> bool {
    let mut fields = Fields(packet);
    let (Ok(kind), Ok(_id)) = (fields.u8(), fields.u32()) else {
        return true;
    };
    match kind {
        kind::READ | kind::WRITE => {
            let (Ok(_handle), Ok(offset)) = (fields.string(), fields.u64()) else {
                return true;
            };
            offset < SMALL
        }
        kind::EXTENDED => !matches!(
            fields.string(),
            Ok(b"copy-data" | b"fsync@openssh.com" | b"statvfs@openssh.com")
        ),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sftp::server::split_packet;

    #[test]
    fn one_file_system_elsewhere_is_enough() {
        let local =
            b"overlay / overlay rw 0 0\nproc /proc proc rw 0 0\n/dev/vda /workspace ext4 rw 0 0\n";
        assert!(all_local(local));
        for other in [
            "nfs4",
            "fuse.sshfs",
            "cifs",
            "9p",
            "autofs",
            "virtiofs",
            "whatever",
        ] {
            let mounts = [&local[..], format!("x /x {other} rw 0 0\n").as_bytes()].concat();
            assert!(!all_local(&mounts), "{other}");
        }
    }

    fn packet(kind: u8, id: u32, fields: &[&[u8]]) -> Vec<u8> {
        let mut body = vec![kind];
        body.extend(id.to_be_bytes());
        fields.iter().for_each(|field| body.extend(*field));
        let mut packet = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        packet.extend(body);
        packet
    }

    fn string(text: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend(text);
        bytes
    }

    #[tokio::test]
    async fn small_and_bulk_requests_are_answered_in_order_however_they_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let mut server = ChannelServer::new(dir.path().to_owned(), dir.path().to_owned());
        // Create, write at the start, write far behind, read both back, close.
        let far = (3 * SMALL).to_be_bytes();
        let near = 0u64.to_be_bytes();
        let handle = string(&0u32.to_be_bytes());
        let length = 4u32.to_be_bytes();
        let requests = [
            packet(kind::INIT, 3, &[]),
            packet(
                kind::OPEN,
                1,
                &[&string(b"file"), &(1u32 | 2 | 8).to_be_bytes(), &[0; 4]],
            ),
            packet(kind::WRITE, 2, &[&handle, &near, &string(b"near")]),
            packet(kind::WRITE, 3, &[&handle, &far, &string(b"afar")]),
            packet(kind::READ, 4, &[&handle, &far, &length]),
            packet(kind::READ, 5, &[&handle, &near, &length]),
            packet(kind::CLOSE, 6, &[&handle]),
        ]
        .concat();
        let mut answers = Vec::new();
        for piece in requests.chunks(13) {
            server.push(piece);
            loop {
                let some = server.answer().await.unwrap();
                if some.is_empty() {
                    break;
                }
                answers.extend(some);
            }
        }
        let mut rest = &answers[..];
        let mut seen = Vec::new();
        while let Some((packet, after)) = split_packet(rest).unwrap() {
            seen.push((
                packet[0],
                u32::from_be_bytes(packet[1..5].try_into().unwrap()),
            ));
            if packet[0] == kind::DATA {
                let data: &[u8] = if seen.len() == 5 { b"afar" } else { b"near" };
                assert_eq!(&packet[9..], data);
            }
            rest = after;
        }
        let expected = [
            (kind::VERSION, 3),
            (kind::HANDLE, 1),
            (kind::STATUS, 2),
            (kind::STATUS, 3),
            (kind::DATA, 4),
            (kind::DATA, 5),
            (kind::STATUS, 6),
        ];
        assert_eq!(seen, expected);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(dir.path().join("file"))
                .unwrap()
                .permissions(),
        );
        assert_eq!(mode & 0o777, 0o644);
    }

    #[tokio::test]
    async fn what_is_no_packet_ends_the_session() {
        let mut server = ChannelServer::new(PathBuf::new(), PathBuf::new());
        server.push(&[0xff; 16]);
        assert!(server.answer().await.is_err());
    }
}
