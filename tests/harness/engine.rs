//! The Docker engine that the tests share: `tests/fixtures/engine`.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::Run;
use crate::run::fixture;

/// Image of the tests with bash, dash, fish, coreutils, git, rsync, python3,
/// socat, xauth, scp and sftp-server; users root, dev, fish and dash, each with
/// the shell that the name tells.
pub const TOOLS: &str = "vendetta-test/tools";

/// Image of the tests with busybox alone: no bash, no sftp-server, no glibc.
pub const BUSYBOX: &str = "vendetta-test/busybox";

/// A running engine. As long as one of these lives, in whatever process, the
/// engine does; some seconds after the last it stops and removes what it made.
#[derive(Debug)]
pub struct Engine {
    dir: PathBuf,
    _user: Flock<File>,
}

impl Engine {
    /// The engine, started if it does not run.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Engine>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = shared.upgrade() {
            return engine;
        }
        let engine = Arc::new(Self::join());
        *shared = Arc::downgrade(&engine);
        engine
    }

    fn join() -> Self {
        // The engine may be about to stop for want of users when we ask for it;
        // once our lock is on the file that is still in place, it will not.
        for _ in 0..10 {
            let dir = PathBuf::from(
                fixture("engine")
                    .arg("up")
                    .limit(Duration::from_secs(300))
                    .ok()
                    .text(),
            );
            let Ok(file) = File::open(dir.join("users")) else {
                continue;
            };
            let Ok(user) = Flock::lock(file, FlockArg::LockShared) else {
                continue;
            };
            let engine = Self { dir, _user: user };
            if engine.answers() {
                return engine;
            }
        }
        panic!("the Docker engine of the tests stops whenever it has been started");
    }

    fn answers(&self) -> bool {
        self.docker(&["version"]).finish().status.success()
    }

    /// Path of its API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("docker.sock")
    }

    /// `docker ARGS…` at this engine.
    #[must_use]
    pub fn docker(&self, args: &[&str]) -> Run {
        Run::new("docker")
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .args(args)
    }

    /// Runs a program in the engine's namespaces, where containers have their addresses.
    #[must_use]
    pub fn inside(&self, args: &[&str]) -> Run {
        fixture("engine").arg("sh").args(args)
    }

    /// Names of the containers, volumes and images that carry `label` (`key` or `key=value`), sorted.
    #[must_use]
    pub fn labelled(&self, label: &str) -> Vec<String> {
        labelled(|args| self.docker(args), label)
    }

    /// Removes all containers, volumes and images that carry `label`.
    pub fn remove_labelled(&self, label: &str) {
        let names = self.labelled(label);
        for (kind, command) in [
            ("container ", ["rm", "--force"]),
            ("volume ", ["volume", "rm"]),
            ("image ", ["rmi", "--force"]),
        ] {
            for name in names.iter().filter_map(|name| name.strip_prefix(kind)) {
                let _ = self.docker(&command).arg(name).finish();
            }
        }
    }
}

/// Names of the containers, volumes and images that carry `label` at the engine that `docker` asks.
pub(crate) fn labelled(docker: impl Fn(&[&str]) -> Run, label: &str) -> Vec<String> {
    let filter = format!("label={label}");
    let list = |args: &[&str], format| {
        let list = docker(args).args(["--filter", &filter, "--format", format]);
        list.ok().text()
    };
    let containers = list(&["ps", "--all"], "container {{.Names}}");
    let volumes = list(&["volume", "ls"], "volume {{.Name}}");
    let images = list(&["images"], "image {{.Repository}}:{{.Tag}}");
    let names = containers.lines().chain(volumes.lines());
    let names = names.chain(images.lines());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names
}
