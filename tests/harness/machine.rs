//! The disk images of the tests' virtual machines: `tests/fixtures/build-vm-image`.

use std::path::PathBuf;
use std::time::Duration;

use crate::run::fixture;

/// An image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineImage {
    /// What [`crate::TOOLS`] is made of, with nothing at all started but the agent:
    /// boots in some seconds even where the processor is emulated.
    Small,
    /// The distribution with systemd and cloud-init, as its cloud images are.
    Cloud,
}

impl MachineImage {
    /// Its file, built if it is not there yet.
    ///
    /// # Panics
    /// When it cannot be built.
    #[must_use]
    pub fn path(self) -> PathBuf {
        let kind = match self {
            Self::Small => "small",
            Self::Cloud => "cloud",
        };
        let built = fixture("build-vm-image").arg(kind);
        PathBuf::from(built.limit(Duration::from_secs(900)).ok().text())
    }
}

/// How long a machine may take to boot that does so in some seconds on an idle
/// machine; a limit against hanging, not a measure of speed.
pub const BOOT: Duration = Duration::from_secs(300);
