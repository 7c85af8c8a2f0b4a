//! Users and groups of the environment, from /etc/passwd and /etc/group.
//!
//! Read by our own parser: a static binary has no NSS, and an image may have
//! no C library at all. Files are bytes; nothing in them needs to be UTF-8.

use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A user as sessions need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: OsString,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, without the primary one.
    pub groups: Vec<u32>,
    /// Home directory; may not exist.
    pub home: PathBuf,
    /// Login shell; may not exist.
    pub shell: PathBuf,
}

/// The shell of users that name none (passwd(5)).
pub const DEFAULT_SHELL: &str = "/bin/sh";

/// Finds users; files are parsed again only when they changed.
#[derive(Debug)]
pub struct Users {
    passwd: CachedFile,
    group: CachedFile,
}

impl Users {
    /// The users of this environment.
    #[must_use]
    pub fn system() -> Self {
        Self::at(Path::new("/etc/passwd"), Path::new("/etc/group"))
    }

    fn at(passwd: &Path, group: &Path) -> Self {
        Self {
            passwd: CachedFile::new(passwd),
            group: CachedFile::new(group),
        }
    }

    /// The user called `name`.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<User> {
        let passwd = self.passwd.read();
        entries(&passwd)
            .find(|entry| entry.name == name.as_bytes())
            .map(|entry| self.complete(&entry))
    }

    /// The user with `uid`; one that /etc/passwd does not know has no name but
    /// its number, and `/` as its home, as containers without a passwd file have it.
    #[must_use]
    pub fn by_uid(&self, uid: u32, gid: u32) -> User {
        let passwd = self.passwd.read();
        match entries(&passwd).find(|entry| entry.uid == uid) {
            Some(entry) => self.complete(&entry),
            None => User {
                name: uid.to_string().into(),
                uid,
                gid,
                groups: Vec::new(),
                home: PathBuf::from("/"),
                shell: PathBuf::from(DEFAULT_SHELL),
            },
        }
    }

    /// The user that a specification such as `dev`, `1000`, `dev:staff` or
    /// `1000:1000` (the forms of an image's USER) means.
    #[must_use]
    pub fn by_specification(&self, specification: &str) -> Option<User> {
        let (user, group) = match specification.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (specification, None),
        };
        let mut found = match self.by_name(user) {
            Some(found) => found,
            None => self.by_uid(user.parse().ok()?, 0),
        };
        if let Some(group) = group {
            found.gid = match group.parse() {
                Ok(gid) => gid,
                Err(_) => gid_of(&self.group.read(), group.as_bytes())?,
            };
            found.groups.retain(|gid| *gid != found.gid);
        }
        Some(found)
    }

    /// The id of the group `name`.
    #[must_use]
    pub fn group_id(&self, name: &str) -> Option<u32> {
        gid_of(&self.group.read(), name.as_bytes())
    }

    /// The name of the user with `uid`.
    #[must_use]
    pub fn user_name(&self, uid: u32) -> Option<Vec<u8>> {
        entries(&self.passwd.read())
            .find(|entry| entry.uid == uid)
            .map(|entry| entry.name.to_vec())
    }

    /// The name of the group with `gid`.
    #[must_use]
    pub fn group_name(&self, gid: u32) -> Option<Vec<u8>> {
        let group = self.group.read();
        lines(&group).find_map(|line| {
            let mut fields = line.split(|byte| *byte == b':');
            let name = fields.next()?;
            (number(fields.nth(1)) == Some(gid)).then(|| name.to_vec())
        })
    }

    /// Owner and group of a file, by name where they have one.
    #[must_use]
    pub fn owner_names(&self, metadata: &Metadata) -> (String, String) {
        let text = |name: Option<Vec<u8>>, id: u32| {
            name.map_or_else(
                || id.to_string(),
                |name| String::from_utf8_lossy(&name).into_owned(),
            )
        };
        let (uid, gid) = (metadata.uid(), metadata.gid());
        (
            text(self.user_name(uid), uid),
            text(self.group_name(gid), gid),
        )
    }

    fn complete(&self, entry: &Entry<'_>) -> User {
        let path = |bytes: &[u8], default: &str| {
            if bytes.is_empty() {
                PathBuf::from(default)
            } else {
                PathBuf::from(OsStr::from_bytes(bytes))
            }
        };
        User {
            name: OsString::from_vec(entry.name.to_vec()),
            uid: entry.uid,
            gid: entry.gid,
            groups: groups_of(&self.group.read(), entry.name, entry.gid),
            home: path(entry.home, "/"),
            shell: path(entry.shell, DEFAULT_SHELL),
        }
    }
}

/// One line of passwd(5).
struct Entry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
    shell: &'a [u8],
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
}

fn number(field: Option<&[u8]>) -> Option<u32> {
    std::str::from_utf8(field?).ok()?.parse().ok()
}

/// The well-formed lines of a passwd file; others are passed over, as getpwent(3) does.
fn entries(passwd: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    lines(passwd).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let uid = number(fields.next())?;
        let gid = number(fields.next())?;
        let _gecos = fields.next()?;
        let home = fields.next()?;
        let shell = fields.next().unwrap_or_default();
        Some(Entry {
            name,
            uid,
            gid,
            home,
            shell,
        })
    })
}

fn gid_of(group: &[u8], name: &[u8]) -> Option<u32> {
    lines(group).find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        (fields.next()? == name).then(|| number(fields.nth(1)))?
    })
}

fn groups_of(group: &[u8], user: &[u8], primary: u32) -> Vec<u32> {
    let mut found: Vec<u32> = lines(group)
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b':');
            let gid = number(fields.nth(2))?;
            let member = fields
                .next()?
                .split(|byte| *byte == b',')
                .any(|member| member == user);
            (member && gid != primary).then_some(gid)
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// A file's content, read again when the file is another or was written to.
#[derive(Debug)]
struct CachedFile {
    path: PathBuf,
    state: Mutex<(Option<Stamp>, Arc<[u8]>)>,
}

/// What tells two states of a file apart: device, inode, size, mtime (s, ns).
type Stamp = (u64, u64, u64, i64, i64);

impl CachedFile {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            state: Mutex::new((None, Arc::from([]))),
        }
    }

    fn read(&self) -> Arc<[u8]> {
        let stamp = std::fs::metadata(&self.path)
            .map(|meta| {
                (
                    meta.dev(),
                    meta.ino(),
                    meta.size(),
                    meta.mtime(),
                    meta.mtime_nsec(),
                )
            })
            .ok();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 != stamp || stamp.is_none() {
            state.1 = std::fs::read(&self.path).unwrap_or_default().into();
            state.0 = stamp;
        }
        Arc::clone(&state.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# a comment\nbroken line\n\
        dev:x:1000:1000:Dev,,,:/home/dev:/usr/bin/fish\nnoshell:x:7:7::/:\nnohome:x:8:8::\n";
    const GROUP: &str =
        "root:x:0:\nstaff:x:50:dev,other\ndev:x:1000:dev\ndocker:x:999:dev\ntty:x:5:\n";

    fn users() -> (tempfile::TempDir, Users) {
        let dir = tempfile::tempdir().unwrap();
        let (passwd, group) = (dir.path().join("passwd"), dir.path().join("group"));
        std::fs::write(&passwd, PASSWD).unwrap();
        std::fs::write(&group, GROUP).unwrap();
        let users = Users::at(&passwd, &group);
        (dir, users)
    }

    #[test]
    fn a_user_has_shell_home_and_supplementary_groups() {
        let (_dir, users) = users();
        let dev = users.by_name("dev").unwrap();
        assert_eq!((dev.uid, dev.gid), (1000, 1000));
        assert_eq!(dev.groups, [50, 999]);
        assert_eq!(dev.home, Path::new("/home/dev"));
        assert_eq!(dev.shell, Path::new("/usr/bin/fish"));
        assert_eq!(
            users.by_name("noshell").unwrap().shell,
            Path::new("/bin/sh")
        );
        assert_eq!(users.by_name("nohome").unwrap().home, Path::new("/"));
        assert_eq!(users.by_name("broken line"), None);
    }

    #[test]
    fn specifications_are_those_of_an_image() {
        let (_dir, users) = users();
        let id = |text| {
            users
                .by_specification(text)
                .map(|user| (user.uid, user.gid))
        };
        assert_eq!(id("dev"), Some((1000, 1000)));
        assert_eq!(id("1000"), Some((1000, 1000)));
        assert_eq!(id("dev:staff"), Some((1000, 50)));
        assert_eq!(id("4711"), Some((4711, 0)));
        assert_eq!(id("4711:4712"), Some((4711, 4712)));
        assert_eq!(id("nobody-here"), None);
        assert_eq!(id("dev:nothing"), None);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let (dir, users) = users();
        assert!(users.by_name("late").is_none());
        std::fs::write(dir.path().join("passwd"), "late:x:1:1::/:/bin/sh\n").unwrap();
        assert!(users.by_name("late").is_some());
        std::fs::remove_file(dir.path().join("passwd")).unwrap();
        assert!(users.by_name("late").is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(passwd: Vec<u8>, group: Vec<u8>, name: Vec<u8>) {
            let _ = entries(&passwd).count();
            let _ = groups_of(&group, &name, 0);
            let _ = gid_of(&group, &name);
        }

        #[test]
        fn every_well_formed_line_is_found(names in proptest::collection::btree_set("[a-z]{1,8}", 1..20)) {
            let passwd: String = names.iter().enumerate()
                .map(|(uid, name)| format!("{name}:x:{uid}:{uid}::/home/{name}:/bin/sh\n")).collect();
            for (uid, name) in names.iter().enumerate() {
                let entry = entries(passwd.as_bytes()).find(|entry| entry.name == name.as_bytes()).unwrap();
                prop_assert_eq!(entry.uid as usize, uid);
            }
        }
    }
}
