//! The gateway's own configuration. `config/vendetta.toml` shows every key with
//! its default; docs/configuration.md says which key serves what.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vendetta_sshio::keys::PublicKey;

use super::invalid::{Invalid, suggestion};

/// Longest configuration file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Everything that can be set. Each key has a default; unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// `HOST` or `HOST:PORT` by which users reach the gateway; shown in messages.
    pub advertise: Option<String>,
    /// Where keys and state live, mode 0700.
    pub state_dir: PathBuf,
    /// Where the agent binaries are; none: beside the gateway's own.
    pub agent_dir: Option<PathBuf>,
    /// Seconds that sessions may take to end after SIGTERM.
    pub drain_seconds: u64,
    /// What is logged, and how.
    pub log: Log,
    /// Who is let in.
    pub users: Users,
    /// What a client may use up.
    pub limits: Limits,
    /// The SSH transport.
    pub ssh: Ssh,
    /// The Docker engine of the gateway's own machine.
    pub docker: Docker,
    /// The Incus or LXD of the gateway's own machine.
    pub lxc: Lxc,
    /// Machines of QEMU, on all nodes.
    pub qemu: Qemu,
    /// The gateway's own machine as a node.
    pub local: Local,
    /// Ports of the gateway's own machine that lead into workspaces.
    pub ports: Ports,
    /// Metrics for Prometheus.
    pub metrics: Metrics,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 2222)),
            advertise: None,
            state_dir: default_state_dir(),
            agent_dir: None,
            drain_seconds: 30,
            log: Log::default(),
            users: Users::default(),
            limits: Limits::default(),
            ssh: Ssh::default(),
            docker: Docker::default(),
            lxc: Lxc::default(),
            qemu: Qemu::default(),
            local: Local::default(),
            ports: Ports::default(),
            metrics: Metrics::default(),
        }
    }
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Least severity that is logged.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
}

/// Severity of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Something failed that should not.
    Error,
    /// Something looks wrong.
    Warn,
    /// What an operator wants to see.
    #[default]
    Info,
    /// What a developer wants to see.
    Debug,
    /// Every step.
    Trace,
}

impl LogLevel {
    /// The word in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Who is let in besides the keys added with `user add` and `key add`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Users {
    /// Certificate authorities whose OpenSSH user certificates are accepted:
    /// each entry is a public key line, or the absolute path of a file of such lines.
    pub trusted_user_ca_keys: Vec<String>,
}

impl Users {
    /// The keys that [`Users::trusted_user_ca_keys`] names.
    ///
    /// # Errors
    /// A file that cannot be read, or a line that is no public key.
    pub fn certificate_authorities(&self) -> Result<Vec<PublicKey>, Invalid> {
        let mut keys = Vec::new();
        for entry in &self.trusted_user_ca_keys {
            if !entry.starts_with('/') {
                keys.push(authority("users.trusted_user_ca_keys", entry)?);
                continue;
            }
            let text = read(Path::new(entry))?;
            for (number, line) in text.lines().enumerate() {
                let line = line.trim();
                if !line.is_empty() && !line.starts_with('#') {
                    keys.push(authority(&format!("{entry}:{}", number + 1), line)?);
                }
            }
        }
        Ok(keys)
    }
}

fn authority(place: &str, line: &str) -> Result<PublicKey, Invalid> {
    line.parse::<PublicKey>().map_err(|error| {
        Invalid::whole(
            place,
            format!("{line:?} is not a public key: {error}"),
            "give a line such as \"ssh-ed25519 AAAA…\", or the absolute path of a file of such lines",
        )
    })
}

/// What clients may use up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once that have not logged in yet.
    pub unauthenticated: usize,
    /// Seconds within which a connection must log in.
    pub login_grace_seconds: u64,
    /// Keys that a connection may try.
    pub auth_attempts: usize,
    /// Channels that a connection may have open at once.
    pub channels_per_connection: usize,
    /// Bytes of a project that may be sent with its config, to build an image from.
    pub upload_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2048,
            unauthenticated: 256,
            login_grace_seconds: 60,
            auth_attempts: 10,
            channels_per_connection: 256,
            upload_bytes: 64 << 20,
        }
    }
}

/// The SSH transport towards clients. Lists are in order of preference and use
/// the names of RFC 4253 and OpenSSH.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ssh {
    /// Ciphers.
    pub ciphers: Vec<String>,
    /// Key exchange methods.
    pub kex_algorithms: Vec<String>,
    /// Message authentication codes, for ciphers that need one.
    pub macs: Vec<String>,
    /// Bytes after which new keys are exchanged, 1 MiB to 1 GiB (RFC 4253 section 9).
    pub rekey_bytes: u64,
    /// Seconds after which new keys are exchanged.
    pub rekey_seconds: u64,
    /// Seconds of silence after which a client is asked whether it is there; 0: never.
    pub client_alive_interval_seconds: u64,
    /// Unanswered questions after which a client is gone.
    pub client_alive_count_max: usize,
}

impl Default for Ssh {
    fn default() -> Self {
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Self {
            ciphers: list(&[
                "chacha20-poly1305@openssh.com",
                "aes256-gcm@openssh.com",
                "aes128-gcm@openssh.com",
                "aes256-ctr",
                "aes192-ctr",
                "aes128-ctr",
            ]),
            kex_algorithms: list(&[
                "mlkem768x25519-sha256",
                "curve25519-sha256",
                "curve25519-sha256@libssh.org",
                "ecdh-sha2-nistp256",
                "ecdh-sha2-nistp384",
                "ecdh-sha2-nistp521",
                "diffie-hellman-group16-sha512",
                "diffie-hellman-group18-sha512",
                "diffie-hellman-group14-sha256",
            ]),
            macs: list(&[
                "hmac-sha2-256-etm@openssh.com",
                "hmac-sha2-512-etm@openssh.com",
                "hmac-sha2-256",
                "hmac-sha2-512",
            ]),
            rekey_bytes: 1 << 30,
            rekey_seconds: 3600,
            client_alive_interval_seconds: 60,
            client_alive_count_max: 3,
        }
    }
}

/// The Docker engine of the gateway's own machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Docker {
    /// Path of the engine's socket.
    pub socket: PathBuf,
}

impl Default for Docker {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/var/run/docker.sock"),
        }
    }
}

/// The Incus or LXD of the gateway's own machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lxc {
    /// Path of the engine's socket; none: looked for where both usually listen.
    pub socket: Option<PathBuf>,
}

/// Machines of QEMU, on all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Qemu {
    /// Where Debian publishes its cloud images, or a mirror of it.
    pub debian_images: String,
    /// Where Ubuntu publishes its cloud images, or a mirror of it.
    pub ubuntu_images: String,
    /// Directories of a node whose files may be given as an image by their path.
    pub image_dirs: Vec<PathBuf>,
    /// What machines reach.
    pub network: MachineNetwork,
}

/// What a machine reaches by its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineNetwork {
    /// All that a program of the gateway's user on the node reaches, the node's
    /// loopback included.
    #[default]
    User,
    /// Nothing.
    None,
}

impl Default for Qemu {
    fn default() -> Self {
        Self {
            debian_images: "https://cloud.debian.org/images/cloud".to_owned(),
            ubuntu_images: "https://cloud-images.ubuntu.com".to_owned(),
            image_dirs: vec![PathBuf::from("/var/lib/vendetta/images")],
            network: MachineNetwork::default(),
        }
    }
}

/// The gateway's own machine as the node `local`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Local {
    /// Whether workspaces of the provider `host` may run here. They are not
    /// isolated: whoever may create one has the rights of the gateway's user.
    pub allow_host: bool,
}

/// Ports of the gateway's own machine that lead into workspaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ports {
    /// Those that are given to services and ports without a wish.
    pub range: PortRange,
    /// The address that they are on.
    pub bind: IpAddr,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            range: PortRange(20000..=29999),
            bind: Ipv4Addr::LOCALHOST.into(),
        }
    }
}

/// Ports from one to another, both included, written `"FIRST-LAST"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange(pub RangeInclusive<u16>);

impl TryFrom<String> for PortRange {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let ports = text.split_once('-').and_then(|(first, last)| {
            let port = |text: &str| text.trim().parse::<u16>().ok();
            Some(port(first)?..=port(last)?)
        });
        match ports {
            Some(ports) if !ports.is_empty() && *ports.start() >= 1024 => Ok(Self(ports)),
            _ => Err(format!(
                "{text:?} is not a range of ports from 1024 to 65535, such as \"20000-29999\""
            )),
        }
    }
}

impl From<PortRange> for String {
    fn from(PortRange(ports): PortRange) -> Self {
        format!("{}-{}", ports.start(), ports.end())
    }
}

/// Metrics for Prometheus.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Loopback address of `GET /metrics`; none: not served.
    pub listen: Option<SocketAddr>,
}

impl Config {
    /// Reads `path`; without one every key has its default.
    ///
    /// # Errors
    /// [`Invalid`], with the position where there is one.
    pub fn load(path: Option<&Path>) -> Result<Self, Invalid> {
        match path {
            Some(path) => Self::parse(&path.display().to_string(), &read(path)?),
            None => Ok(Self::default()),
        }
    }

    /// Reads `text`, which messages call `file`.
    ///
    /// # Errors
    /// [`Invalid`], with the position where there is one.
    pub fn parse(file: &str, text: &str) -> Result<Self, Invalid> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let (problem, remedy) = explain(error.message());
            Invalid::new(file, text, error.span(), problem).with_remedy(remedy)
        })?;
        config.check(file)?;
        Ok(config)
    }

    fn check(&self, file: &str) -> Result<(), Invalid> {
        let limits = [
            ("limits.connections", self.limits.connections),
            (
                "limits.login_grace_seconds",
                usize::try_from(self.limits.login_grace_seconds).unwrap_or(usize::MAX),
            ),
            ("limits.unauthenticated", self.limits.unauthenticated),
            ("limits.auth_attempts", self.limits.auth_attempts),
            (
                "limits.channels_per_connection",
                self.limits.channels_per_connection,
            ),
            ("ssh.ciphers", self.ssh.ciphers.len()),
            ("ssh.kex_algorithms", self.ssh.kex_algorithms.len()),
            ("ssh.macs", self.ssh.macs.len()),
        ];
        for (key, value) in limits {
            if value == 0 {
                return Err(Invalid::whole(
                    file,
                    format!("{key} leaves nothing: nobody could use the gateway"),
                    "give at least one, or leave the key out for its default",
                ));
            }
        }
        let range = (1 << 20)..=(1 << 30);
        if !range.contains(&self.ssh.rekey_bytes) {
            return Err(Invalid::whole(
                file,
                format!(
                    "ssh.rekey_bytes is {}: keys wear out after 1 GiB, and renewing them costs time",
                    self.ssh.rekey_bytes
                ),
                "give a number from 1048576 (1 MiB) to 1073741824 (1 GiB)",
            ));
        }
        for (key, url) in [
            ("qemu.debian_images", &self.qemu.debian_images),
            ("qemu.ubuntu_images", &self.qemu.ubuntu_images),
        ] {
            if !url.starts_with("http://") && !url.starts_with("https://") {
                return Err(Invalid::whole(
                    file,
                    format!("{key} is {url:?}, which is not an address of the web"),
                    "give a URL that starts with https://, or http:// within your own network",
                ));
            }
        }
        let image_dirs = self.qemu.image_dirs.iter();
        for (key, path) in [
            ("state_dir", Some(&self.state_dir)),
            ("docker.socket", Some(&self.docker.socket)),
            ("lxc.socket", self.lxc.socket.as_ref()),
        ]
        .into_iter()
        .filter_map(|(key, path)| Some((key, path?)))
        .chain(image_dirs.map(|path| ("qemu.image_dirs", path)))
        {
            if !path.is_absolute() {
                return Err(Invalid::whole(
                    file,
                    format!("{key} is {path:?}, which is not an absolute path"),
                    "give a path that starts with /",
                ));
            }
        }
        if let Some(listen) = self.metrics.listen
            && !listen.ip().is_loopback()
        {
            return Err(Invalid::whole(
                file,
                format!(
                    "metrics.listen is {listen}: metrics name workspaces and nodes, to whoever asks"
                ),
                "listen on loopback, such as \"127.0.0.1:9464\", and put a proxy that knows its users in front",
            ));
        }
        self.users.certificate_authorities().map(drop)
    }

    /// The address to show to users: what is advertised, else where the
    /// gateway listens (`bound`).
    #[must_use]
    pub fn address(&self, bound: SocketAddr) -> (String, u16) {
        let Some(advertise) = &self.advertise else {
            return (bound.ip().to_string(), bound.port());
        };
        match advertise
            .rsplit_once(':')
            .map(|(host, port)| (host, port.parse()))
        {
            Some((host, Ok(port))) if !host.contains(':') || host.starts_with('[') => {
                (host.trim_matches(['[', ']']).to_owned(), port)
            }
            _ => (advertise.clone(), 22),
        }
    }
}

/// What serde says, in the words of somebody who edits a file, and the remedy.
fn explain(message: &str) -> (String, Option<String>) {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let Some((&given, expected)) = quoted.split_first() else {
        return (message.to_owned(), None);
    };
    if message.starts_with("unknown field") {
        (
            format!("unknown key `{given}`"),
            suggestion(given, expected),
        )
    } else if message.starts_with("unknown variant") {
        (
            format!("unknown value `{given}`"),
            suggestion(given, expected),
        )
    } else {
        (message.to_owned(), None)
    }
}

fn read(path: &Path) -> Result<String, Invalid> {
    let file = path.display().to_string();
    let refuse = |problem: String, remedy| Err(Invalid::whole(&file, problem, remedy));
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_FILE => {
            return refuse(
                "is larger than 1 MiB".to_owned(),
                "check that this is the file you mean",
            );
        }
        Ok(_) => {}
        Err(error) => {
            return refuse(
                format!("cannot be read: {error}"),
                "check the path and its permissions",
            );
        }
    }
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) => refuse(
            format!("cannot be read: {error}"),
            "check the path and its permissions",
        ),
    }
}

/// `/var/lib/vendetta` for root; for anybody else `$XDG_STATE_HOME/vendetta`
/// (XDG Base Directory Specification).
fn default_state_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/vendetta");
    }
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("vendetta")
}
