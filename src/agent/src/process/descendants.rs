//! The processes that stem from this one, whoever started them in between.

use std::collections::{HashMap, HashSet};

use nix::unistd::Pid;

/// All processes below the agent, by their parents in /proc. Orphans are among
/// them, because the agent is PID 1 or a subreaper and inherits them.
#[must_use]
pub fn descendants() -> Vec<Pid> {
    let Ok(directory) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in directory.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if let Some(parent) = std::fs::read(entry.path().join("stat"))
            .ok()
            .and_then(|stat| parent(&stat))
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = HashSet::new();
    let mut frontier = vec![std::process::id().cast_signed()];
    while let Some(pid) = frontier.pop() {
        for child in children.remove(&pid).unwrap_or_default() {
            if found.insert(child) {
                frontier.push(child);
            }
        }
    }
    found.into_iter().map(Pid::from_raw).collect()
}

/// The parent in a line of /proc/PID/stat (proc(5)); none for a zombie, which
/// needs no ending. The name, in parentheses, may hold anything.
fn parent(stat: &[u8]) -> Option<i32> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = text.split_ascii_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent(b"12 (a) b) S 7 12 12 0"), Some(7));
        assert_eq!(parent(b"12 (\xff) R 1 12"), Some(1));
        assert_eq!(parent(b"12 (gone) Z 1 12"), None);
        assert_eq!(parent(b"nonsense"), None);
    }
}
