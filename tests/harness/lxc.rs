//! Incus and LXD of the tests: `tests/fixtures/engine --incus` and `--lxd`.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::Run;
use crate::run::fixture;

/// An engine of system containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lxc {
    /// Incus.
    Incus,
    /// LXD.
    Lxd,
}

impl Lxc {
    /// What fixtures call it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Incus => "incus",
            Self::Lxd => "lxd",
        }
    }

    /// Its client.
    #[must_use]
    pub fn client(self) -> &'static str {
        match self {
            Self::Incus => "incus",
            Self::Lxd => "lxc",
        }
    }

    /// The variable that tells its client and its daemon where its files are.
    fn variable(self) -> &'static str {
        match self {
            Self::Incus => "INCUS_DIR",
            Self::Lxd => "LXD_DIR",
        }
    }
}

impl fmt::Display for Lxc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Incus => "Incus",
            Self::Lxd => "LXD",
        })
    }
}

/// A running engine with the images busybox, systemd, sysvinit and openrc, named after
/// the init that each has. As long as one of these lives, in whatever process, the engine
/// does; some seconds after the last it stops and removes what it made.
#[derive(Debug)]
pub struct LxcEngine {
    kind: Lxc,
    dir: PathBuf,
    _user: Flock<File>,
}

impl LxcEngine {
    /// The engine, started if it does not run.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn shared(kind: Lxc) -> Arc<Self> {
        static SHARED: Mutex<[Weak<LxcEngine>; 2]> = Mutex::new([Weak::new(), Weak::new()]);
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let [incus, lxd] = &mut *shared;
        let slot = match kind {
            Lxc::Incus => incus,
            Lxc::Lxd => lxd,
        };
        if let Some(engine) = slot.upgrade() {
            return engine;
        }
        let engine = Arc::new(Self::join(kind));
        *slot = Arc::downgrade(&engine);
        engine
    }

    fn join(kind: Lxc) -> Self {
        // The engine may be about to stop for want of users when we ask for it;
        // once our lock is on the file that is still in place, it will not.
        for _ in 0..10 {
            let up = fixture("engine").arg(format!("--{}", kind.word()));
            let up = up.arg("up").limit(Duration::from_secs(900)).ok();
            let dir = PathBuf::from(up.text());
            let Ok(file) = File::open(dir.join("users")) else {
                continue;
            };
            let Ok(user) = Flock::lock(file, FlockArg::LockShared) else {
                continue;
            };
            let engine = Self {
                kind,
                dir,
                _user: user,
            };
            if engine.client(&["query", "/1.0"]).finish().status.success() {
                return engine;
            }
        }
        panic!("{kind} of the tests stops whenever it has been started");
    }

    /// Path of its API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("var/unix.socket")
    }

    /// `incus ARGS…` or `lxc ARGS…` at this engine.
    #[must_use]
    pub fn client(&self, args: &[&str]) -> Run {
        let variable = self.kind.variable();
        Run::new(self.kind.client())
            .env(variable, self.dir.join("var"))
            .env(&variable.replace("DIR", "CONF"), self.dir.join("client"))
            .args(args)
    }

    /// Names of the instances and volumes with a label, sorted.
    #[must_use]
    pub fn labelled(&self, key: &str, value: &str) -> Vec<String> {
        labelled(|args| self.client(args), key, value)
    }

    /// Removes all instances and volumes with a label.
    pub fn remove_labelled(&self, key: &str, value: &str) {
        for name in self.labelled(key, value) {
            let removed = match name.split_once(' ') {
                Some(("instance", name)) => self.client(&["delete", "--force", name]),
                Some((_, name)) => self.client(&["storage", "volume", "delete", "default", name]),
                None => continue,
            };
            let _ = removed.finish();
        }
    }
}

/// Names of the instances and volumes with a label at the engine that `client` asks,
/// instances first.
pub(crate) fn labelled(client: impl Fn(&[&str]) -> Run, key: &str, value: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (kind, path) in [
        ("instance", "/1.0/instances?recursion=1"),
        (
            "volume",
            "/1.0/storage-pools/default/volumes/custom?recursion=1",
        ),
    ] {
        let all = client(&["query", path]).ok();
        for thing in all.json().as_array().expect("a list") {
            if thing["config"][key] == value {
                let name = thing["name"].as_str().expect("a name");
                names.push(format!("{kind} {name}"));
            }
        }
    }
    names
}
