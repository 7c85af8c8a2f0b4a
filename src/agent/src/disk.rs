//! A fresh disk belongs to root; it is handed to whom it is for.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::users::User;

/// Gives `directory` to `user`, when it is root's, empty and we may. One that
/// anybody has used, or that the image gave to somebody, is left as it is.
///
/// # Errors
/// When the directory cannot be read or given away.
pub(crate) fn hand_over(directory: &Path, user: &User) -> io::Result<()> {
    let metadata = std::fs::symlink_metadata(directory)?;
    let fresh = metadata.is_dir()
        && (metadata.uid(), metadata.gid()) == (0, 0)
        && std::fs::read_dir(directory)?.next().is_none();
    if fresh && user.uid != 0 && nix::unistd::geteuid().is_root() {
        std::os::unix::fs::lchown(directory, Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}
