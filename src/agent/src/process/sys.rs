//! The calls that Rust cannot check: between fork and exec, raw credentials of
//! one thread, terminal ioctls, waitpid. Nothing else in the agent is unsafe.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};

use tokio::io::unix::AsyncFd;

use super::launch::Identity;

/// What a child does to itself before exec.
pub(super) struct ChildSetup {
    /// Standard input is a terminal: make it the controlling one.
    pub terminal: bool,
    pub identity: Option<Identity>,
    pub directories: Vec<CString>,
}

/// Signals whose disposition a child could inherit as "ignored".
const RESET: [libc::c_int; 12] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGPIPE,
    libc::SIGALRM,
    libc::SIGCHLD,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

impl ChildSetup {
    fn apply(&self) -> io::Result<()> {
        // SAFETY: all of these are async-signal-safe system calls on plain
        // values; the pointers are to buffers that `self` owns.
        unsafe {
            check(libc::setsid())?;
            if self.terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            for signal in RESET {
                libc::signal(signal, libc::SIG_DFL);
            }
            libc::umask(0o022);
            if let Some(identity) = &self.identity {
                check(libc::setgroups(
                    identity.groups.len(),
                    identity.groups.as_ptr(),
                ))?;
                check(libc::setgid(identity.gid))?;
                check(libc::setuid(identity.uid))?;
            }
            for directory in &self.directories {
                if libc::chdir(directory.as_ptr()) == 0 {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Makes `command`'s child apply `setup`.
pub(super) fn in_child(command: &mut Command, setup: ChildSetup) {
    // SAFETY: `apply` allocates nothing, takes no lock and calls only
    // async-signal-safe functions.
    unsafe {
        command.pre_exec(move || setup.apply());
    }
}

/// Reaps one ended child, whichever it is.
pub(super) fn wait_any() -> Option<(libc::pid_t, ExitStatus)> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result. (nix's waitpid loses
    // the status of a child killed by a real-time signal.)
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then(|| (pid, ExitStatus::from_raw(status)))
}

/// Opens the slave side of the pseudo-terminal `master`, without a path, so
/// that it works whatever is mounted at /dev/pts.
pub fn open_pty_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor, which nobody else owns.
    unsafe {
        let fd = libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags);
        check(fd)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Sets the size of a terminal; its foreground process group gets SIGWINCH.
pub fn set_controlling_size(master: BorrowedFd<'_>, size: &libc::winsize) -> io::Result<()> {
    // SAFETY: TIOCSWINSZ reads one winsize from a valid reference.
    check(unsafe {
        libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCSWINSZ,
            std::ptr::from_ref(size),
        )
    })
}

/// Watches a descriptor for readiness.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd owns one open descriptor as long as it lives, and is not replaced within.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

fn become_identity(identity: &Identity) -> io::Result<()> {
    let check = |result: libc::c_long| {
        if result == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    // SAFETY: plain values and a pointer to a buffer that `identity` owns.
    // The raw system calls change the calling thread only; the C library's
    // wrappers would change every thread.
    unsafe {
        check(libc::syscall(
            libc::SYS_setgroups,
            identity.groups.len() as libc::c_long,
            identity.groups.as_ptr(),
        ))?;
        check(libc::syscall(
            libc::SYS_setresgid,
            identity.gid,
            identity.gid,
            identity.gid,
        ))?;
        check(libc::syscall(
            libc::SYS_setresuid,
            identity.uid,
            identity.uid,
            identity.uid,
        ))
    }
}

/// Runs `work` with the privileges of `identity`, on a thread that has no others
/// and ends with it; on the agent's own when there is nothing to change.
///
/// # Errors
/// When the thread cannot start or take the identity, and those of `work`.
pub async fn run_as<T: Send + 'static>(
    identity: Option<Identity>,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let agent_uid = nix::unistd::geteuid().as_raw();
    let identity = identity.filter(|identity| identity.uid != agent_uid);
    std::thread::Builder::new()
        .name("as-user".to_owned())
        .stack_size(128 * 1024)
        .spawn(move || {
            let result = match identity {
                None => work(),
                Some(identity) => become_identity(&identity).and_then(|()| work()),
            };
            let _ = sender.send(result);
        })?;
    receiver
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the helper thread ended early")))
}
