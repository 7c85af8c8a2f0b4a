//! How the agent is started by an instance's own init, and again after each restart of
//! the instance, whoever restarts it.
//!
//! Which init it is, the image tells: what `/sbin/init` leads to, and whether there is
//! an inittab. Each is told in its own way to run one script, again when it ends.

use super::engine::Trouble;
use super::files::{Files, Found};
use super::instance::DIR;

/// Most links from `/sbin/init` on.
const MAX_LINKS: usize = 8;

/// An init, by how it is told what to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Init {
    /// A unit, wanted by multi-user.target (systemd.unit(5)).
    Systemd,
    /// A script in /etc/init.d, linked into the default runlevel (openrc-run(8)).
    OpenRc,
    /// A line of /etc/inittab: sysvinit, whatever runs its scripts, and busybox, which
    /// Alpine boots with.
    Inittab,
}

/// Why an image cannot have the agent.
#[derive(Debug, thiserror::Error)]
pub(super) enum InitError {
    /// Nothing tells what its init is.
    #[error(
        "its init ({0}) is none that is known: systemd, sysvinit, OpenRC and busybox init are; use another image"
    )]
    Unknown(String),
    /// The engine did not do its part.
    #[error(transparent)]
    Engine(#[from] Trouble),
}

/// What the init runs. `$name` is the host name that it gives to the instance, whose
/// template would have it called as the engine calls it.
const START: &str = r#"
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
log=/.vendetta/agent.log
[ "$(wc -c <"$log" 2>/dev/null || echo 0)" -lt 10485760 ] || mv -f "$log" "$log.1"
[ -e "$log" ] || (umask 077 && : >"$log")
exec </dev/null >>"$log" 2>&1
if [ "$(cat /proc/sys/kernel/hostname)" != "$name" ]; then
    echo "$name" >/etc/hostname
    hostname "$name" || echo "$name" >/proc/sys/kernel/hostname
fi
grep -qsw "$name" /etc/hosts || printf '127.0.1.1\t%s\n' "$name" >>/etc/hosts
[ -d /.vendetta/run ] || mkdir -m 700 /.vendetta/run
cd / && exec /.vendetta/agent serve --config /.vendetta/agent.json
"#;

const UNIT: &str = "\
[Unit]
Description=Agent of the vendetta workspace
# It is the way in when something else does not start, so it gives up never.
StartLimitIntervalSec=0

[Service]
ExecStart=/.vendetta/start
Restart=always
RestartSec=1
# What runs in sessions is not the agent's fault.
OOMPolicy=continue
TasksMax=infinity

[Install]
WantedBy=multi-user.target
";

const OPENRC: &str = "\
#!/sbin/openrc-run
description='Agent of the vendetta workspace'
supervisor=supervise-daemon
command=/.vendetta/start
respawn_max=0

depend() {
    use localmount
}
";

/// What busybox init does without an inittab (its init/init.c), less its consoles.
const BUSYBOX_DEFAULTS: &str = "\
::sysinit:/etc/init.d/rcS
::ctrlaltdel:/sbin/reboot
::shutdown:/sbin/swapoff -a
::shutdown:/bin/umount -a -r
::restart:/sbin/init
";

const UNIT_FILE: &str = "/etc/systemd/system/vendetta-agent.service";
const WANTS: &str = "/etc/systemd/system/multi-user.target.wants";
const SERVICE: &str = "/etc/init.d/vendetta-agent";
const INITTAB: &str = "/etc/inittab";

/// liblxc asks an init to end by SIGPWR and systemd by its own signal, which it knows;
/// OpenRC's ends by SIGTERM only (its openrc-init.c).
const OPENRC_HALT: &str = "lxc.signal.halt = SIGTERM";

/// Puts all that starts the agent into an instance that does not run yet. Returns what
/// liblxc has to know of its init (lxc.container.conf(5)), if anything.
pub(super) async fn install(
    files: &Files,
    hostname: &str,
) -> Result<Option<&'static str>, InitError> {
    let init = recognize(files).await?;
    files.make_dir(DIR).await?;
    let start = format!(
        "#!/bin/sh\n# Run by the init of this container; written by its gateway.\nname={hostname}{START}"
    );
    files.put(&format!("{DIR}/start"), "0755", start).await?;
    match init {
        Init::Systemd => {
            files.put(UNIT_FILE, "0644", UNIT).await?;
            files.make_dir(WANTS).await?;
            let wanted = format!("{WANTS}/vendetta-agent.service");
            files.link(&wanted, UNIT_FILE).await?;
        }
        Init::OpenRc => {
            files.put(SERVICE, "0755", OPENRC).await?;
            files.make_dir("/etc/runlevels/default").await?;
            files
                .link("/etc/runlevels/default/vendetta-agent", SERVICE)
                .await?;
        }
        Init::Inittab => {
            let table = match files.read(INITTAB).await? {
                Some(Found::File(table)) => String::from_utf8_lossy(&table).into_owned(),
                _ => BUSYBOX_DEFAULTS.to_owned(),
            };
            if let Some(table) = with_agent(&table) {
                files.put(INITTAB, "0644", table).await?;
            }
        }
    }
    Ok((init == Init::OpenRc).then_some(OPENRC_HALT))
}

/// Follows `/sbin/init` to its end.
async fn recognize(files: &Files) -> Result<Init, InitError> {
    let mut path = "/sbin/init".to_owned();
    for _ in 0..MAX_LINKS {
        match files.read(&path).await? {
            Some(Found::Link(target)) => {
                if let Some(init) = init_named(&target) {
                    return Ok(init);
                }
                path = joined(&path, &target);
            }
            Some(Found::File(_)) => {
                return match files.read(INITTAB).await? {
                    Some(Found::File(_)) => Ok(Init::Inittab),
                    _ => Err(InitError::Unknown(path)),
                };
            }
            Some(Found::Directory) => return Err(InitError::Unknown(path)),
            None => return Err(InitError::Unknown(format!("{path}, which is missing"))),
        }
    }
    Err(InitError::Unknown(path))
}

/// The init that a program of this path is, where the name tells.
fn init_named(path: &str) -> Option<Init> {
    match path.rsplit('/').next()? {
        "systemd" => Some(Init::Systemd),
        "openrc-init" => Some(Init::OpenRc),
        "busybox" => Some(Init::Inittab),
        _ => None,
    }
}

/// Where a link at `path` leads.
fn joined(path: &str, target: &str) -> String {
    if target.starts_with('/') {
        return target.to_owned();
    }
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    format!("{parent}/{target}")
}

/// An inittab with a line for the agent; none: it has one.
fn with_agent(table: &str) -> Option<String> {
    let lines = || table.lines().map(str::trim);
    if lines().any(|line| !line.starts_with('#') && line.contains("/.vendetta/start")) {
        return None;
    }
    // A line of busybox's begins with a terminal, mostly none, and has no run levels; in
    // sysvinit's (inittab(5)) both are names.
    let busybox = lines().any(|line| line.starts_with("::")) || lines().next().is_none();
    let line = if busybox {
        "::respawn:/.vendetta/start\n"
    } else {
        "vdta:2345:respawn:/.vendetta/start\n"
    };
    let end = if table.is_empty() || table.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    Some(format!("{table}{end}{line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_is_known_by_what_it_leads_to() {
        assert_eq!(init_named("../lib/systemd/systemd"), Some(Init::Systemd));
        assert_eq!(init_named("/bin/busybox"), Some(Init::Inittab));
        assert_eq!(init_named("openrc-init"), Some(Init::OpenRc));
        assert_eq!(init_named("/sbin/runit-init"), None);
        assert_eq!(joined("/sbin/init", "../lib/x"), "/sbin/../lib/x");
        assert_eq!(joined("/sbin/init", "/lib/x"), "/lib/x");
    }

    #[test]
    fn each_inittab_gets_a_line_in_its_own_way_and_only_once() {
        let sysv = "id:2:initdefault:\n~~:S:wait:/sbin/sulogin";
        let with = with_agent(sysv).unwrap();
        assert!(
            with.ends_with("sulogin\nvdta:2345:respawn:/.vendetta/start\n"),
            "{with}"
        );
        assert_eq!(with_agent(&with), None);
        for busybox in [
            BUSYBOX_DEFAULTS,
            "# Alpine\n::sysinit:/sbin/openrc sysinit\ntty1::respawn:x\n",
            "",
        ] {
            let with = with_agent(busybox).unwrap();
            assert!(with.ends_with("::respawn:/.vendetta/start\n"), "{with}");
            assert_eq!(with_agent(&with), None);
        }
    }
}
