//! What Linux says about a running process (proc(5)).

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process of this machine by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process(pub i32);

impl Process {
    /// All processes that have `text` in an argument.
    #[must_use]
    pub fn with_argument(text: &str) -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                let id = entry.file_name().to_str()?.parse().ok()?;
                let arguments = fs::read(entry.path().join("cmdline")).ok()?;
                String::from_utf8_lossy(&arguments)
                    .contains(text)
                    .then_some(Self(id))
            })
            .collect()
    }

    /// Whether it is there and not a zombie.
    #[must_use]
    pub fn runs(self) -> bool {
        self.status()
            .is_some_and(|status| !status["State"].starts_with('Z'))
    }

    /// Bytes of physical memory that are its own (`RssAnon`): pages of its
    /// binary and of shared files do not count.
    ///
    /// # Panics
    /// When there is no such process.
    #[must_use]
    pub fn memory(self) -> u64 {
        let status = self
            .status()
            .unwrap_or_else(|| panic!("process {} is gone", self.0));
        let field = status["RssAnon"].trim_end_matches("kB").trim();
        field.parse::<u64>().expect("RssAnon is a number of kB") * 1024
    }

    /// Number of open file descriptors.
    ///
    /// # Panics
    /// When there is no such process.
    #[must_use]
    pub fn descriptors(self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0))
            .unwrap_or_else(|_| panic!("process {} is gone", self.0))
            .count()
    }

    /// Sends `signal`; that it is gone already is no error.
    pub fn signal(self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.0), signal);
    }

    fn status(self) -> Option<BTreeMap<String, String>> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Some(
            fields
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect(),
        )
    }
}
