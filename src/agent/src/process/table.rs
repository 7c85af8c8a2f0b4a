//! The processes of this machine at one moment, and which of them stem from this one.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use nix::unistd::Pid;

/// All processes that live, as /proc shows them. Zombies are not among them:
/// they need no ending.
#[derive(Debug, Default)]
pub struct Table(HashMap<i32, Entry>);

/// What is known of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    parent: i32,
    group: i32,
    started: u64,
}

/// A process that is not mistaken for a later one with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Known {
    /// Its id.
    pub pid: Pid,
    /// When it started, in clock ticks since boot.
    started: u64,
}

impl Table {
    /// The processes of now.
    #[must_use]
    pub fn now() -> Self {
        let Ok(directory) = std::fs::read_dir("/proc") else {
            return Self::default();
        };
        let processes = directory.flatten().filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, read(pid)?))
        });
        Self(processes.collect())
    }

    /// All processes below `root`, whoever started them in between.
    #[must_use]
    pub fn below(&self, root: Pid) -> HashSet<Pid> {
        let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
        for (pid, entry) in &self.0 {
            children.entry(entry.parent).or_default().push(*pid);
        }
        let mut found = HashSet::new();
        let mut frontier = vec![root.as_raw()];
        while let Some(pid) = frontier.pop() {
            for child in children.remove(&pid).unwrap_or_default() {
                if found.insert(Pid::from_raw(child)) {
                    frontier.push(child);
                }
            }
        }
        found
    }

    /// All processes but this one.
    #[must_use]
    pub fn others(&self) -> HashSet<Pid> {
        let all = self.0.keys().map(|pid| Pid::from_raw(*pid));
        all.filter(|pid| *pid != Pid::this()).collect()
    }

    /// The members of the process group that `leader` started.
    pub fn group(&self, leader: Pid) -> impl Iterator<Item = Pid> {
        self.0
            .iter()
            .filter(move |(_, entry)| entry.group == leader.as_raw())
            .map(|(pid, _)| Pid::from_raw(*pid))
    }

    /// The process and those it stems from, up to the first that is not here.
    pub fn line(&self, pid: Pid) -> impl Iterator<Item = Pid> {
        let mut left = self.0.len() + 1;
        let mut next = Some(pid);
        std::iter::from_fn(move || {
            let pid = next.filter(|_| left > 0)?;
            left -= 1;
            let parent = self.0.get(&pid.as_raw()).map(|entry| entry.parent);
            next = parent.map(Pid::from_raw);
            Some(pid)
        })
    }

    /// The process group of `pid`.
    #[must_use]
    pub fn group_of(&self, pid: Pid) -> Option<Pid> {
        let entry = self.0.get(&pid.as_raw())?;
        Some(Pid::from_raw(entry.group))
    }

    /// `pid`, so that it is known again.
    #[must_use]
    pub fn known(&self, pid: Pid) -> Option<Known> {
        let entry = self.0.get(&pid.as_raw())?;
        Some(Known {
            pid,
            started: entry.started,
        })
    }
}

impl Known {
    /// The process with this id, if there is one.
    #[must_use]
    pub fn of(pid: Pid) -> Option<Self> {
        let started = read(pid.as_raw())?.started;
        Some(Self { pid, started })
    }

    /// Whether it still lives.
    #[must_use]
    pub fn lives(&self) -> bool {
        read(self.pid.as_raw()).is_some_and(|entry| entry.started == self.started)
    }
}

/// The id and the time of the start.
impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.started)
    }
}

impl FromStr for Known {
    type Err = ParseIntError;
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let (pid, started) = text.trim().split_once(' ').unwrap_or_default();
        Ok(Self {
            pid: Pid::from_raw(pid.parse()?),
            started: started.parse()?,
        })
    }
}

/// All processes below the agent. Orphans are among them, because the agent is
/// PID 1 or a subreaper and inherits them.
#[must_use]
pub fn descendants() -> HashSet<Pid> {
    Table::now().below(Pid::this())
}

fn read(pid: i32) -> Option<Entry> {
    parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// A line of /proc/PID/stat (proc(5)); none for a zombie. The name, in
/// parentheses, may hold anything.
fn parse(stat: &[u8]) -> Option<Entry> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    // The third field, the state, is the first here.
    let mut fields = text.split_ascii_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    Some(Entry {
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
        started: fields.nth(16)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let rest = "4 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9";
        let line = |name: &str, state: &str| format!("12 ({name}) {state} 7 11 {rest}");
        let entry = Entry {
            parent: 7,
            group: 11,
            started: 4711,
        };
        assert_eq!(parse(line("a) b", "S").as_bytes()), Some(entry));
        assert_eq!(parse(line("gone", "Z").as_bytes()), None);
        assert_eq!(parse(b"nonsense"), None);
    }

    #[test]
    fn this_process_is_in_its_own_line() {
        let table = Table::now();
        let line: Vec<Pid> = table.line(Pid::this()).collect();
        assert_eq!(line.first(), Some(&Pid::this()));
        assert_eq!(line.get(1), Some(&Pid::parent()));
        assert!(table.below(Pid::parent()).contains(&Pid::this()));
        let known = table.known(Pid::this()).unwrap();
        assert!(known.lives());
        assert_eq!(Known::of(Pid::this()), Some(known));
        assert_eq!(known.to_string().parse(), Ok(known));
        assert!("1".parse::<Known>().is_err());
    }
}
