//! Whether an environment has what an editor's remote half needs. It is looked
//! at once, by a script; what follows from that is pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::super::text::size;

/// What is looked at, as lines `KEY VALUE`. One line, and without quotes and
/// backslashes, so that any login shell passes it on.
pub(super) const LOOK: &str = "exec sh -c '\
PATH=$PATH:/usr/sbin:/sbin; \
echo arch $(uname -m); echo kernel $(uname -r); echo user $(id -un); \
echo glibc $(getconf GNU_LIBC_VERSION 2>/dev/null); \
for f in /lib/ld-musl-*; do [ -e $f ] && echo musl $f; done; \
for d in /lib /lib64 /usr/lib /usr/lib64 /lib/*-linux-gnu* /usr/lib/*-linux-gnu*; do \
for f in $d/libstdc++.so.6 $d/libfreetype.so.6 $d/libXext.so.6 $d/libXrender.so.1 $d/libXtst.so.6 $d/libXi.so.6; do \
[ -e $f ] && echo library $f; done; \
[ -e $d/libstdc++.so.6 ] && grep -q GLIBCXX_3.4.25 $d/libstdc++.so.6 && echo symbols GLIBCXX_3.4.25; done; \
for p in bash tar gzip curl wget ps git apt-get apk dnf zypper pacman; do command -v $p >/dev/null 2>&1 && echo program $p; done; \
for f in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do [ -r $f ] && echo limit $(cat $f); done; \
echo memory $(grep MemTotal /proc/meminfo); echo processors $(nproc 2>/dev/null || grep -c ^processor /proc/cpuinfo); \
cd; echo home $PWD; [ -w . ] && echo writable yes; echo disk $(df -Pk . | tail -n 1)'";

/// An editor whose remote half runs in the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Editor {
    /// VS Code with Remote-SSH, and its kin.
    Vscode,
    /// JetBrains Gateway and the IDEs it brings.
    Jetbrains,
}

impl Editor {
    pub(super) const ALL: [Self; 2] = [Self::Vscode, Self::Jetbrains];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Vscode => "VS Code",
            Self::Jetbrains => "JetBrains Gateway",
        }
    }
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// The editor works without, not as well.
    Advised,
    /// The editor does not work.
    Missing,
}

/// One thing that an editor needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// Who needs it.
    pub editor: Editor,
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What there is.
    pub found: String,
    /// What is needed.
    pub needed: &'static str,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Diagnosis {
    /// All that was looked at.
    pub findings: Vec<Finding>,
    /// The command, of root inside, that installs what is not there; none when
    /// nothing can be installed, or nobody knows how.
    pub install: Option<String>,
}

/// Oldest GNU C library that VS Code's server runs on
/// (code.visualstudio.com/docs/remote/linux), and JetBrains' runtimes.
const GLIBC: [((u32, u32), &str); 2] = [
    ((2, 28), "glibc 2.28, or musl"),
    ((2, 17), "glibc 2.17; not musl"),
];

const GIB: u64 = 1 << 30;

/// What the script said.
#[derive(Debug, Default)]
struct Facts<'a> {
    values: BTreeMap<&'a str, &'a str>,
    programs: BTreeSet<&'a str>,
    libraries: BTreeSet<&'a str>,
    /// Bytes of memory that may be used.
    memory: Option<u64>,
    /// Bytes free where the home is.
    disk: Option<u64>,
}

impl<'a> Facts<'a> {
    fn read(said: &'a str) -> Self {
        let mut facts = Self::default();
        let lines = said.lines().filter_map(|line| line.trim().split_once(' '));
        for (key, value) in lines {
            match key {
                "program" => {
                    facts.programs.insert(value);
                }
                "library" => {
                    let file = value.rsplit('/').next().unwrap_or(value);
                    facts.libraries.insert(file);
                }
                // "max" is no limit; the smallest of what is one counts.
                "limit" => facts.limit(value.parse().ok()),
                // MemTotal: 16384 kB
                "memory" => facts.limit(number(value, 1).map(kib)),
                // Filesystem 1024-blocks Used Available Capacity Mounted
                "disk" => facts.disk = number(value, 3).map(kib),
                _ => {
                    facts.values.insert(key, value);
                }
            }
        }
        facts
    }

    fn limit(&mut self, bytes: Option<u64>) {
        if let Some(bytes) = bytes {
            self.memory = Some(self.memory.map_or(bytes, |known| known.min(bytes)));
        }
    }

    fn value(&self, key: &str) -> &'a str {
        self.values.get(key).copied().unwrap_or_default()
    }

    /// Version of the GNU C library.
    fn glibc(&self) -> Option<(u32, u32)> {
        let (_, version) = self.value("glibc").split_once(' ')?;
        let mut parts = version.split('.').map(str::parse);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    }
}

fn number(value: &str, at: usize) -> Option<u64> {
    value.split_ascii_whitespace().nth(at)?.parse().ok()
}

fn kib(count: u64) -> u64 {
    count.saturating_mul(1024)
}

/// What `said`, the script's output, means for these editors.
pub(super) fn diagnose(said: &str, editors: &[Editor]) -> Diagnosis {
    let facts = Facts::read(said);
    let findings: Vec<Finding> = editors
        .iter()
        .flat_map(|editor| examine(&facts, *editor))
        .collect();
    let install = install(&facts, &findings);
    Diagnosis { findings, install }
}

fn examine(facts: &Facts<'_>, editor: Editor) -> Vec<Finding> {
    use Verdict::{Advised, Missing};
    let vscode = editor == Editor::Vscode;
    let mut findings = Vec::new();
    let mut check = |check, well: bool, otherwise, found: String, needed| {
        let verdict = if well { Verdict::Ok } else { otherwise };
        let found = if found.is_empty() {
            "none".to_owned()
        } else {
            found
        };
        findings.push(Finding {
            editor,
            check,
            verdict,
            found,
            needed,
        });
    };
    let has = |program: &str| facts.programs.contains(program);
    let first = |programs: &[&'static str]| {
        let there = programs.iter().find(|program| has(program));
        there
            .map(|program| (*program).to_owned())
            .unwrap_or_default()
    };

    let arch = facts.value("arch");
    let (arches, needed): (&[&str], _) = if vscode {
        (
            &["x86_64", "aarch64", "armv7l"],
            "x86_64, aarch64 or armv7l",
        )
    } else {
        (&["x86_64", "aarch64"], "x86_64 or aarch64")
    };
    let known = arches.contains(&arch);
    check("architecture", known, Missing, arch.to_owned(), needed);

    let [for_vscode, for_jetbrains] = GLIBC;
    let (oldest, needed) = if vscode { for_vscode } else { for_jetbrains };
    let musl = facts.values.contains_key("musl");
    let (good, found) = match facts.glibc() {
        Some((major, minor)) => ((major, minor) >= oldest, format!("glibc {major}.{minor}")),
        None if musl => (vscode, "musl".to_owned()),
        None => (false, String::new()),
    };
    check("C library", good, Missing, found, needed);

    if vscode {
        let there = facts.libraries.contains("libstdc++.so.6");
        let symbols = facts.values.contains_key("symbols");
        let found = match (there, symbols) {
            (true, true) => "libstdc++.so.6",
            (true, false) => "libstdc++.so.6, too old",
            (false, _) => "",
        };
        let needed = "libstdc++.so.6 with GLIBCXX_3.4.25";
        check(
            "C++ library",
            there && symbols,
            Missing,
            found.to_owned(),
            needed,
        );
        check("bash", has("bash"), Missing, first(&["bash"]), "bash");
    } else {
        let wanted = LIBRARIES.map(|(file, ..)| file);
        let lacking: Vec<&str> = wanted
            .into_iter()
            .filter(|file| !facts.libraries.contains(file))
            .collect();
        let found = match lacking.as_slice() {
            [] => "all".to_owned(),
            lacking => format!("without {}", lacking.join(", ")),
        };
        let needed = "libfreetype and libXext, libXrender, libXtst, libXi";
        check("libraries", lacking.is_empty(), Advised, found, needed);
        check("ps", has("ps"), Advised, first(&["ps"]), "ps");
    }
    let both = has("tar") && has("gzip");
    check("tar, gzip", both, Missing, first(&["tar"]), "tar and gzip");
    let loader = first(&["curl", "wget"]);
    let needed = "curl or wget; without, the editor sends its server itself if it is set to";
    check("curl or wget", !loader.is_empty(), Advised, loader, needed);
    let home = facts.value("home").to_owned();
    let writable = facts.values.contains_key("writable");
    check(
        "home",
        writable,
        Missing,
        home,
        "a home that can be written to",
    );

    let (memory, disk) = (facts.memory.unwrap_or(0), facts.disk.unwrap_or(0));
    let (least, needed) = if vscode {
        (GIB, "1 GiB")
    } else {
        (4 * GIB, "4 GiB")
    };
    // A machine says a little less than it has.
    check(
        "memory",
        memory >= least / 10 * 9,
        Advised,
        size(memory),
        needed,
    );
    let (least, needed) = if vscode {
        (GIB, "1 GiB free where the home is")
    } else {
        (5 * GIB, "5 GiB free where the home is")
    };
    check("disk", disk >= least, Advised, size(disk), needed);
    if !vscode {
        let processors = facts.value("processors").to_owned();
        let enough = processors.parse().is_ok_and(|count: u32| count >= 2);
        check("processors", enough, Advised, processors, "2");
    }
    findings
}

/// Files that JetBrains' runtime loads, with their packages of apt-get, apk,
/// dnf, zypper and pacman.
const LIBRARIES: [(&str, [&str; 5]); 5] = [
    (
        "libfreetype.so.6",
        [
            "libfreetype6",
            "freetype",
            "freetype",
            "libfreetype6",
            "freetype2",
        ],
    ),
    (
        "libXext.so.6",
        ["libxext6", "libxext", "libXext", "libXext6", "libxext"],
    ),
    (
        "libXrender.so.1",
        [
            "libxrender1",
            "libxrender",
            "libXrender",
            "libXrender1",
            "libxrender",
        ],
    ),
    (
        "libXtst.so.6",
        ["libxtst6", "libxtst", "libXtst", "libXtst6", "libxtst"],
    ),
    (
        "libXi.so.6",
        ["libxi6", "libxi", "libXi", "libXi6", "libxi"],
    ),
];

const LIBSTDCXX: [&str; 5] = [
    "libstdc++6",
    "libstdc++",
    "libstdc++",
    "libstdc++6",
    "gcc-libs",
];
const PROCPS: [&str; 5] = ["procps", "procps", "procps-ng", "procps", "procps-ng"];

/// Package managers, and how each is told to install without asking.
const MANAGERS: [(&str, &str); 5] = [
    (
        "apt-get",
        "apt-get update && apt-get install -y --no-install-recommends",
    ),
    ("apk", "apk add"),
    ("dnf", "dnf install -y"),
    ("zypper", "zypper --non-interactive install"),
    ("pacman", "pacman -Sy --noconfirm"),
];

/// The command that installs what is not there.
fn install(facts: &Facts<'_>, findings: &[Finding]) -> Option<String> {
    let managers = MANAGERS.iter().enumerate();
    let (at, (_, command)) = managers
        .into_iter()
        .find(|(_, (manager, _))| facts.programs.contains(manager))?;
    let mut packages: BTreeSet<&str> = BTreeSet::new();
    let mut add = |of: [&'static str; 5]| packages.extend(of.get(at));
    for finding in findings
        .iter()
        .filter(|finding| finding.verdict != Verdict::Ok)
    {
        match finding.check {
            "C++ library" => add(LIBSTDCXX),
            "ps" => add(PROCPS),
            "bash" => add(["bash"; 5]),
            "curl or wget" => add(["curl"; 5]),
            "tar, gzip" => {
                add(["tar"; 5]);
                add(["gzip"; 5]);
            }
            "libraries" => {
                let lacking = LIBRARIES.iter();
                lacking
                    .filter(|(file, _)| !facts.libraries.contains(file))
                    .for_each(|(_, packages)| add(*packages));
            }
            _ => {}
        }
    }
    let packages: Vec<&str> = packages.into_iter().collect();
    (!packages.is_empty()).then(|| format!("{command} {}", packages.join(" ")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEBIAN: &str = "arch x86_64\nkernel 6.1\nuser dev\nglibc glibc 2.36\n\
        library /lib/x86_64-linux-gnu/libstdc++.so.6\nsymbols GLIBCXX_3.4.25\n\
        program bash\nprogram tar\nprogram gzip\nprogram curl\nprogram apt-get\n\
        limit max\nlimit 4294967296\nmemory MemTotal: 16000000 kB\nprocessors 4\n\
        home /home/dev\nwritable yes\ndisk overlay 100 50 9000000 50% /\n";

    fn verdicts(said: &str, editor: Editor) -> BTreeMap<&'static str, Verdict> {
        let found = diagnose(said, &[editor]).findings.into_iter();
        found
            .map(|finding| (finding.check, finding.verdict))
            .collect()
    }

    #[test]
    fn what_an_editor_needs_is_told_from_what_it_would_like() {
        let found = diagnose(DEBIAN, &[Editor::Vscode]);
        assert!(
            found.findings.iter().all(|one| one.verdict == Verdict::Ok),
            "{found:#?}"
        );
        assert_eq!(found.install, None);
        let found = verdicts(DEBIAN, Editor::Jetbrains);
        assert_eq!(found["C library"], Verdict::Ok);
        assert_eq!(found["memory"], Verdict::Ok);
        assert_eq!(found["libraries"], Verdict::Advised);
    }

    #[test]
    fn what_is_missing_is_installed_by_the_manager_that_is_there() {
        let bare = DEBIAN
            .replace("program bash\n", "")
            .replace("program curl\n", "");
        let bare = bare.replace("symbols GLIBCXX_3.4.25\n", "");
        let found = diagnose(&bare, &[Editor::Vscode]);
        let command =
            "apt-get update && apt-get install -y --no-install-recommends bash curl libstdc++6";
        assert_eq!(found.install.as_deref(), Some(command));
        let found = verdicts(&bare, Editor::Vscode);
        assert_eq!(found["bash"], Verdict::Missing);
        assert_eq!(found["curl or wget"], Verdict::Advised);
        let alpine = bare.replace("apt-get", "apk").replace(
            "glibc glibc 2.36\n",
            "glibc\nmusl /lib/ld-musl-x86_64.so.1\n",
        );
        let found = diagnose(&alpine, &[Editor::Jetbrains, Editor::Vscode]);
        assert!(found.install.unwrap().starts_with("apk add bash curl"));
        assert_eq!(verdicts(&alpine, Editor::Vscode)["C library"], Verdict::Ok);
        assert_eq!(
            verdicts(&alpine, Editor::Jetbrains)["C library"],
            Verdict::Missing
        );
    }

    #[test]
    fn an_old_library_and_an_odd_machine_are_seen() {
        let old = DEBIAN
            .replace("2.36", "2.17")
            .replace("x86_64\nkernel", "riscv64\nkernel");
        let found = verdicts(&old, Editor::Vscode);
        assert_eq!(found["C library"], Verdict::Missing);
        assert_eq!(found["architecture"], Verdict::Missing);
        assert_eq!(verdicts(&old, Editor::Jetbrains)["C library"], Verdict::Ok);
    }

    proptest! {
        #[test]
        fn whatever_the_environment_says_there_is_an_answer(said in "([a-z]{0,8}( [ -~]{0,20})?\n){0,20}") {
            let found = diagnose(&said, &Editor::ALL);
            prop_assert!(!found.findings.is_empty());
        }
    }
}
