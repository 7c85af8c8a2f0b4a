//! Status codes, and how the kernel's errors become them.

use std::io;

use nix::errno::Errno;

use super::wire::Truncated;

/// Why a request failed, as SSH_FXP_STATUS says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Status code.
    pub code: u32,
    /// Text for the user.
    pub text: String,
}

/// SSH_FX_OK.
pub const OK: u32 = 0;
/// SSH_FX_EOF.
pub const EOF: u32 = 1;
const NO_SUCH_FILE: u32 = 2;
const PERMISSION_DENIED: u32 = 3;
const FAILURE: u32 = 4;
const BAD_MESSAGE: u32 = 5;
const OP_UNSUPPORTED: u32 = 8;

impl Failure {
    /// The end of a file or directory.
    pub fn end_of_file() -> Self {
        Self {
            code: EOF,
            text: "End of file".to_owned(),
        }
    }

    /// A request that is not understood.
    pub fn bad_message(text: &str) -> Self {
        Self {
            code: BAD_MESSAGE,
            text: text.to_owned(),
        }
    }

    /// A request that this server does not know.
    pub fn unsupported() -> Self {
        Self {
            code: OP_UNSUPPORTED,
            text: "Operation unsupported".to_owned(),
        }
    }
}

impl From<Truncated> for Failure {
    fn from(_: Truncated) -> Self {
        Self::bad_message("the request is shorter than its fields")
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        // As OpenSSH's errno_to_portable, whose clients these codes are for.
        let code = match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::EBADF | Errno::ELOOP => NO_SUCH_FILE,
            Errno::EPERM | Errno::EACCES | Errno::EFAULT => PERMISSION_DENIED,
            Errno::ENAMETOOLONG | Errno::EINVAL => BAD_MESSAGE,
            Errno::ENOSYS | Errno::EOPNOTSUPP => OP_UNSUPPORTED,
            _ => FAILURE,
        };
        Self {
            code,
            text: errno.desc().to_owned(),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Errno::from_raw(number).into(),
            None if error.kind() == io::ErrorKind::InvalidInput => {
                Self::bad_message(&error.to_string())
            }
            None => Self {
                code: FAILURE,
                text: error.to_string(),
            },
        }
    }
}
