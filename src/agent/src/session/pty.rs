//! A pseudo-terminal: the master side as an asynchronous pair of read and write.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::termios::{SetArg, tcgetattr, tcsendbreak, tcsetattr};
use nix::unistd::{Gid, Uid, fchown};
use russh::Pty as ModeCode;
use tokio::io::unix::AsyncFd;
use vendetta_sshio::control::Size;

use super::modes;
use crate::process::{open_pty_peer, set_controlling_size, watch};
use crate::users::User;

fn winsize(size: Size) -> libc::winsize {
    let short = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    libc::winsize {
        ws_row: short(size.rows),
        ws_col: short(size.columns),
        ws_xpixel: short(size.width),
        ws_ypixel: short(size.height),
    }
}

/// A pseudo-terminal nobody runs on yet.
#[derive(Debug)]
pub struct Opened {
    /// Our side.
    pub master: Master,
    /// The process's side.
    pub slave: OwnedFd,
    /// Path of the slave, for SSH_TTY.
    pub path: PathBuf,
    /// The client's size.
    pub size: Size,
}

/// Opens a pseudo-terminal that belongs to `user`, with the client's modes and size.
///
/// # Errors
/// When the environment has no (more) pseudo-terminals.
pub fn open(
    user: &User,
    tty_group: Option<u32>,
    mode_list: &[(ModeCode, u32)],
    size: Size,
) -> io::Result<Opened> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = PathBuf::from(ptsname_r(&master)?);
    let slave = open_pty_peer(master.as_fd())?;
    if nix::unistd::geteuid().is_root() {
        // As sshd: writable for group tty (write(1), wall(1)), else for the user alone.
        let group = tty_group.unwrap_or(user.gid);
        fchown(
            &slave,
            Some(Uid::from_raw(user.uid)),
            Some(Gid::from_raw(group)),
        )?;
        fchmod(
            &slave,
            Mode::from_bits_truncate(if tty_group.is_some() { 0o620 } else { 0o600 }),
        )?;
    }
    let mut termios = tcgetattr(&slave)?;
    modes::apply(&mut termios, mode_list);
    tcsetattr(&slave, SetArg::TCSANOW, &termios)?;
    let master = Master::new(master)?;
    master.resize(size)?;
    Ok(Opened {
        master,
        slave,
        path,
        size,
    })
}

/// Our side of a pseudo-terminal.
#[derive(Debug)]
pub struct Master(AsyncFd<OwnedFd>);

impl Master {
    fn new(master: PtyMaster) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&master, FcntlArg::F_GETFL)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self(watch(master.into())?))
    }

    /// Tells the terminal its new size.
    ///
    /// # Errors
    /// Those of the ioctl.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        set_controlling_size(self.0.get_ref().as_fd(), &winsize(size))
    }

    /// Sends a break, which a pseudo-terminal hardly notices.
    pub fn send_break(&self) -> bool {
        tcsendbreak(self.0.get_ref(), 0).is_ok()
    }

    /// Reads what the process wrote; 0 when nobody has the other side open any more.
    ///
    /// # Errors
    /// Those of read(2), but for EIO, which is the end.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready
                .try_io(|fd| nix::unistd::read(fd.get_ref(), buffer).map_err(io::Error::from))
            {
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::EIO as i32) => return Ok(0),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Writes some of `data`, and says how much.
    ///
    /// # Errors
    /// Those of write(2), and EIO when nobody has the other side open any more.
    pub async fn write(&self, data: &[u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.writable().await?;
            // It counts as ready from now on, though what is full stays so.
            let hung_up = ready.ready().is_write_closed();
            match ready.try_io(|fd| nix::unistd::write(fd.get_ref(), data).map_err(io::Error::from))
            {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) if hung_up => return Err(Errno::EIO.into()),
                Err(_would_block) => {}
            }
        }
    }

    /// Writes all of `data`.
    ///
    /// # Errors
    /// Those of write(2).
    pub async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let written = self.write(data).await?;
            data = data.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}
