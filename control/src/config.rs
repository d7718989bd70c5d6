//! The configuration: flags before environment before file, made into one validated value. Tests build it directly.

use std::{
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use podling_core::quota::{Quota, Quotas};
use url::Url;

use crate::args::ControlArgs;

mod sources;
mod values;

use sources::Sources;

/// The agent of this version.
const AGENT_IMAGE: &str = concat!("podling/agent:", env!("CARGO_PKG_VERSION"));

/// Everything the control plane is told at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The data folder.
    pub data: PathBuf,
    /// What runs workspaces.
    pub engine: Engine,
    /// The public address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Certificate and key of the public address; `None`: plain text.
    pub tls: Option<TlsFiles>,
    /// Origins of web pages that may call (CORS).
    pub cors_origins: Vec<String>,
    /// How logs are written.
    pub log_format: LogFormat,
    /// Folders with templates; the later wins.
    pub templates: Vec<PathBuf>,
    /// Template of a workspace that names none.
    pub default_template: String,
    /// URL of the backup store.
    pub backups: String,
    /// Where manifests of archives wait while they arrive.
    pub scratch: PathBuf,
    /// Program and first arguments that start an agent.
    pub agent_command: Vec<String>,
    /// How many workspaces may be awake at once.
    pub quotas: Quotas,
    /// When it is told to stop, what is idle is put to sleep first.
    pub leaves_idle_asleep: bool,
}

/// What runs workspaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// Processes of this machine.
    Local,
    /// Pods.
    Kubernetes(Cluster),
}

/// Where in a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The namespace of the workspaces; `None`: the one this runs in.
    pub namespace: Option<String>,
    /// The address for agents.
    pub agents_listen: SocketAddr,
    /// Where they find it.
    pub agents_url: String,
    /// The address at which other replicas reach this one.
    pub advertise: Option<IpAddr>,
    /// The agent's image.
    pub agent_image: String,
    /// The service account of the workspaces' pods.
    pub workspace_account: String,
}

/// PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A flag.
    Flag(String),
    /// An environment variable.
    Environment(String),
    /// A key in a file.
    File(PathBuf, String),
    /// Nobody said anything.
    Default,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value is not allowed.
    #[error("{value:?}, from {origin}, is not allowed: {allowed}")]
    Value {
        /// The value as it was given.
        value: String,
        /// Where it came from.
        origin: Source,
        /// What is allowed.
        allowed: String,
    },
    /// The file has a key that does not exist.
    #[error("{file}: there is no key {key:?}; the keys are {keys}", file = file.display())]
    UnknownKey {
        /// Which file.
        file: PathBuf,
        /// The key.
        key: String,
        /// Those there are.
        keys: String,
    },
    /// The file is no TOML.
    #[error("{file}: {problem}", file = file.display())]
    Syntax {
        /// Which file.
        file: PathBuf,
        /// Where and what.
        problem: String,
    },
    /// The file cannot be read.
    #[error("reading the configuration file {file}", file = file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Everybody on the way could read along.
    #[error(
        "{listen}, from {origin}, is reachable from other machines, and there is no certificate: give --tls-cert and \
         --tls-key, listen on 127.0.0.1, or say --allow-plaintext if something in front adds TLS"
    )]
    Plaintext {
        /// The address.
        listen: SocketAddr,
        /// Where it came from.
        origin: Source,
    },
}

/// What differs between the programs the control plane is part of.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// How an agent is started unless somebody says otherwise.
    pub agent_command: Vec<String>,
    /// Whether what is idle is put to sleep when it is told to stop: for a control plane of one person, who goes home. One that is
    /// replaced by its next version leaves them as they are.
    pub leaves_idle_asleep: bool,
}

impl Config {
    /// Makes the configuration of flags, environment (`env` looks a variable up) and file. `data` is what `--data` said.
    pub fn load(
        data: Option<&Path>,
        args: &ControlArgs,
        env: &dyn Fn(&str) -> Option<String>,
        defaults: Defaults,
    ) -> Result<Self, ConfigError> {
        // An empty variable is one that nobody has set, as in a shell script.
        let env = &|name: &str| env(name).filter(|text| !text.is_empty());
        let mut sources = Sources::new(args, env);
        // The data folder comes first, for the file may be in it; so the file cannot say where it is.
        let data = data_folder(data, env)?;
        let named = args.config.clone().or_else(|| env("PODLING_CONFIG").map(PathBuf::from));
        if let Some(text) = read(named.as_deref(), &data.join("config.toml"))? {
            sources.file(&text.0, &text.1)?;
        }
        let text = |key: &str| sources.text(key);
        let quota = |whose: &str| {
            let bound = |what, parse| {
                text(&format!("{whose}_{what}")).map(|v: sources::Value| v.parse(parse)).transpose()
            };
            Ok::<_, ConfigError>(Quota {
                awake: bound("awake", values::count)?,
                cpu_millis: bound("cpu", values::cores)?,
                memory_bytes: bound("memory", values::bytes)?,
            })
        };
        let usual = |key: &str, usual: &str| text(key).unwrap_or_else(|| sources::Value::default(usual));
        let engine = match usual("backend", "local").parse(values::is_kubernetes)? {
            false => Engine::Local,
            true => Engine::Kubernetes(Cluster {
                namespace: text("namespace").map(|v| v.parse(values::label)).transpose()?,
                agents_listen: usual("agents_listen", "0.0.0.0:7412").parse(values::address)?,
                agents_url: usual("agents_url", "https://podling-agents:7412").parse(values::agents_url)?,
                advertise: text("advertise").map(|v| v.parse(values::ip)).transpose()?,
                agent_image: usual("agent_image", AGENT_IMAGE).text,
                workspace_account: usual("workspace_account", "podling-workspace").parse(values::label)?,
            }),
        };
        let listen = text("listen").unwrap_or_else(|| sources::Value::default("127.0.0.1:7411"));
        let config = Self {
            engine,
            listen: listen.parse(values::address)?,
            tls: tls(text("tls_cert"), text("tls_key"))?,
            cors_origins: sources.list("cors_origins", ',').parse_each(values::origin)?,
            log_format: text("log_format").map_or(Ok(LogFormat::Text), |v| v.parse(values::log_format))?,
            templates: [
                Some(data.join("templates")),
                text("templates").map(|v| v.parse(values::folder)).transpose()?,
            ]
            .into_iter()
            .flatten()
            .collect(),
            default_template: text("default_template").map_or_else(|| "shell".to_owned(), |v| v.text),
            backups: text("backups").map_or_else(|| folder_url(&data.join("backups")), |v| v.text),
            scratch: text("scratch").map_or_else(|| Ok(data.join("scratch")), |v| v.parse(values::folder))?,
            agent_command: Some(sources.list("agent_command", ' ').texts())
                .filter(|words| !words.is_empty())
                .unwrap_or(defaults.agent_command),
            leaves_idle_asleep: defaults.leaves_idle_asleep,
            quotas: Quotas { owner: quota("quota")?, total: quota("capacity")? },
            data,
        };
        let plaintext = text("allow_plaintext").map_or(Ok(false), |v| v.parse(values::yes_or_no))?;
        if config.tls.is_none() && !plaintext && !is_loopback(config.listen.ip()) {
            return Err(ConfigError::Plaintext { listen: config.listen, origin: listen.source });
        }
        Ok(config)
    }

    /// Where running commands find this control plane: `<data>/run`.
    pub fn run_folder(&self) -> PathBuf {
        self.data.join("run")
    }
}

/// The data folder: what `--data` said, else PODLING_DATA, else the place for it in the user's home.
pub fn data_folder(
    flag: Option<&Path>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<PathBuf, ConfigError> {
    let flag = flag.map(|path| (path.display().to_string(), Source::Flag("--data".into())));
    let variable = || {
        let text = env("PODLING_DATA").filter(|text| !text.is_empty())?;
        Some((text, Source::Environment("PODLING_DATA".into())))
    };
    match flag.or_else(variable) {
        Some((text, source)) => sources::Value { text, source }.parse(values::folder),
        None => default_data(env),
    }
}

fn default_data(env: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf, ConfigError> {
    let absolute = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|folder| folder.join("podling"))
        .ok_or_else(|| ConfigError::Value {
            value: String::new(),
            origin: Source::Environment("HOME".into()),
            allowed: "without a home there is no default data folder; give --data DIR".into(),
        })
}

/// A file that was named must be there; the one in the data folder may be.
fn read(named: Option<&Path>, usual: &Path) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let file = named.unwrap_or(usual);
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some((file.to_owned(), text))),
        Err(e) if e.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(None),
        Err(source) => Err(ConfigError::Read { file: file.to_owned(), source }),
    }
}

fn tls(
    certificate: Option<sources::Value>,
    key: Option<sources::Value>,
) -> Result<Option<TlsFiles>, ConfigError> {
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles {
            certificate: certificate.parse(values::file)?,
            key: key.parse(values::file)?,
        })),
        (Some(alone), None) => Err(alone.refuse("a certificate needs its key: give --tls-key too")),
        (None, Some(alone)) => Err(alone.refuse("a key needs its certificate: give --tls-cert too")),
    }
}

/// The URL of an absolute folder.
fn folder_url(folder: &Path) -> String {
    Url::from_file_path(folder).map(String::from).unwrap_or_default()
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "the flag {flag}"),
            Self::Environment(variable) => write!(f, "the environment variable {variable}"),
            Self::File(file, key) => write!(f, "the key {key} in {}", file.display()),
            Self::Default => write!(f, "the default"),
        }
    }
}

#[cfg(test)]
mod tests;
