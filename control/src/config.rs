//! The configuration, as one validated value. Flags take precedence over the environment, and the
//! environment over the configuration file.

mod sources;

use std::{
    fmt, fs, io, iter,
    net::{IpAddr, SocketAddr},
    path::{self, Path, PathBuf},
};

use podling_core::quota::{Quota, Quotas};
pub use podling_proto::log::LogFormat;
use url::Url;

use self::sources::{ConfigValue, MergedSettings, SettingFormat};
use crate::{args::ControlArgs, kubernetes::is_dns_label, quantity};

/// Default image of the agent, in this program's version.
const AGENT_IMAGE: &str = concat!("podling/agent:", env!("CARGO_PKG_VERSION"));

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlConfig {
    pub data: PathBuf,
    pub backend: BackendKind,
    /// The public address; port 0 selects a free port.
    pub listen: SocketAddr,
    /// Certificate and key of the public address; `None` for plain text.
    pub tls: Option<TlsFiles>,
    /// Origins of web pages that may call (CORS).
    pub cors_origins: Vec<String>,
    pub log_format: LogFormat,
    /// Directories with templates. Later ones override earlier ones.
    pub templates: Vec<PathBuf>,
    /// Template of workspaces that are created without one.
    pub default_template: String,
    /// URL of the backup store.
    pub backups: String,
    /// Directory for manifests of archives that are being written.
    pub scratch: PathBuf,
    /// The program that starts an agent, and its first arguments.
    pub agent_command: Vec<String>,
    /// Quota of each owner, and capacity of all awake workspaces together.
    pub quotas: Quotas,
    /// Whether a shutdown first puts idle workspaces to sleep.
    pub sleep_idle_on_shutdown: bool,
    /// Whether this start creates long-lived secrets that are missing although workspaces exist.
    pub create_missing_secrets: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendKind {
    /// Workspaces are processes of this machine.
    Local,
    Kubernetes(KubernetesConfig),
}

/// Settings of the Kubernetes backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// Namespace of the workspaces. `None` means the control plane's own namespace.
    pub namespace: Option<String>,
    /// The address of the agents' listener.
    pub agents_listen: SocketAddr,
    /// The URL at which agents reach that listener.
    pub agents_url: String,
    /// Address at which other replicas reach this one while it is the leader.
    pub advertise: Option<IpAddr>,
    /// The address of the listener for liveness and readiness probes.
    pub health_listen: SocketAddr,
    pub agent_image: String,
    /// The service account of the workspaces' pods.
    pub workspace_account: String,
}

/// Paths of PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain, leaf first.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The origin of a value, for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueSource {
    Flag(String),
    Environment(String),
    /// A file and a key in it.
    File(PathBuf, String),
    Default,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{value:?}, from {origin}, is not valid; give {allowed}")]
    Value {
        value: String,
        origin: ValueSource,
        /// Completes "give …" in the message.
        allowed: String,
    },
    #[error("{file}: unknown key {key:?}; the keys are {keys}", file = file.display())]
    UnknownKey { file: PathBuf, key: String, keys: String },
    /// The file is not valid TOML, or a value has an unsupported type.
    #[error("{file}: {problem}", file = file.display())]
    Syntax {
        file: PathBuf,
        /// Position and description of the error.
        problem: String,
    },
    #[error("cannot read the configuration file {file}", file = file.display())]
    Read { file: PathBuf, source: io::Error },
    /// Tokens, keystrokes and files could be read on the network.
    #[error(
        "{listen}, from {origin}, is reachable from other machines without TLS; give --tls-cert and \
         --tls-key, listen on 127.0.0.1, or give --allow-plaintext if a proxy adds TLS"
    )]
    Plaintext { listen: SocketAddr, origin: ValueSource },
    /// Archives in the data directory would be lost with the pod of the control plane.
    #[error(
        "the backend kubernetes needs a backup store, because the data directory of a pod does not last; set \
         PODLING_BACKUPS (--backups) to the URL of a bucket or of a directory on a volume, as the overlays \
         in deploy/overlays do"
    )]
    BackupsMissing,
}

/// Defaults that differ between `podling-control` and `podling up`.
#[derive(Debug, Clone)]
pub struct ProgramDefaults {
    /// The command that starts an agent.
    pub agent_command: Vec<String>,
    /// Whether a shutdown first puts idle workspaces to sleep. `podling up` does, because its user
    /// leaves. A `podling-control` that is replaced by its next version does not.
    pub sleep_idle_on_shutdown: bool,
}

impl ControlConfig {
    /// Merges flags, environment and file. `env` looks a variable up, and `data` is the value of
    /// `--data`. Fails for the first invalid value or unknown key.
    pub fn load(
        data: Option<&Path>,
        args: &ControlArgs,
        env: &dyn Fn(&str) -> Option<String>,
        defaults: ProgramDefaults,
    ) -> Result<Self, ConfigError> {
        // As in a shell script, an empty variable counts as unset.
        let env = &|name: &str| env(name).filter(|text| !text.is_empty());
        // The configuration file may be in the data directory, so it cannot set that directory.
        let data = data_directory(data, env)?;
        let named = args.config.clone().or_else(|| env("PODLING_CONFIG").map(PathBuf::from));
        let file = read(named.as_deref(), &data.join("config.toml"))?;
        let settings = MergedSettings::merge(args, env, file)?;
        let quota = |whose: &str| {
            Ok::<_, ConfigError>(Quota {
                awake: settings.parse(&format!("{whose}_awake"), COUNT)?,
                cpu_millis: settings.parse(&format!("{whose}_cpu"), CORES)?,
                memory_bytes: settings.parse(&format!("{whose}_memory"), BYTES)?,
            })
        };
        let backend = match settings.parse_or("backend", "local", BACKEND)? {
            false => BackendKind::Local,
            true => BackendKind::Kubernetes(KubernetesConfig {
                namespace: settings.parse("namespace", LABEL)?,
                agents_listen: settings.parse_or("agents_listen", "0.0.0.0:7412", ADDRESS)?,
                agents_url: settings.parse_or("agents_url", "https://podling-agents:7412", AGENTS_URL)?,
                advertise: settings.parse("advertise", IP)?,
                health_listen: settings.parse_or("health_listen", "0.0.0.0:7413", ADDRESS)?,
                agent_image: settings.text("agent_image").unwrap_or_else(|| AGENT_IMAGE.to_owned()),
                workspace_account: settings.parse_or("workspace_account", "podling-workspace", LABEL)?,
            }),
        };
        let backups = settings.text("backups");
        if matches!(backend, BackendKind::Kubernetes(_)) && backups.is_none() {
            return Err(ConfigError::BackupsMissing);
        }
        let words = settings.list("agent_command").iter().map(|word| word.text.clone());
        let config = Self {
            backend,
            listen: settings.parse_or("listen", "127.0.0.1:7411", ADDRESS)?,
            tls: tls(settings.value("tls_cert"), settings.value("tls_key"))?,
            cors_origins: settings
                .list("cors_origins")
                .iter()
                .map(|origin| origin.parse(ORIGIN))
                .collect::<Result<_, _>>()?,
            log_format: settings.parse_or("log_format", "text", LOG_FORMAT)?,
            templates: iter::once(data.join("templates"))
                .chain(settings.parse("templates", DIRECTORY)?)
                .collect(),
            default_template: settings.text("default_template").unwrap_or_else(|| "shell".to_owned()),
            backups: backups.unwrap_or_else(|| directory_url(&data.join("backups"))),
            scratch: settings.parse("scratch", DIRECTORY)?.unwrap_or_else(|| data.join("scratch")),
            agent_command: Some(words.collect())
                .filter(|words: &Vec<_>| !words.is_empty())
                .unwrap_or(defaults.agent_command),
            sleep_idle_on_shutdown: defaults.sleep_idle_on_shutdown,
            // Only a flag, because a persistent setting would silently replace the next lost secret.
            create_missing_secrets: args.create_missing_secrets,
            quotas: Quotas { owner: quota("quota")?, total: quota("capacity")? },
            data,
        };
        let plaintext = settings.parse_or("allow_plaintext", "false", SWITCH)?;
        if config.tls.is_none() && !plaintext && !is_loopback(config.listen.ip()) {
            let origin = settings.value("listen").map_or(ValueSource::Default, |value| value.source.clone());
            return Err(ConfigError::Plaintext { listen: config.listen, origin });
        }
        Ok(config)
    }
}

/// Returns the data directory: the value of `--data`, of PODLING_DATA, or the default in the user's
/// home.
pub fn data_directory(
    flag: Option<&Path>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<PathBuf, ConfigError> {
    let flag = flag.map(|path| (path.display().to_string(), ValueSource::Flag("--data".into())));
    let variable = || {
        let text = env("PODLING_DATA").filter(|text| !text.is_empty())?;
        Some((text, ValueSource::Environment("PODLING_DATA".into())))
    };
    match flag.or_else(variable) {
        Some((text, source)) => ConfigValue { text, source }.parse(DIRECTORY),
        None => default_data(env),
    }
}

fn default_data(env: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf, ConfigError> {
    let absolute = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|directory| directory.join("podling"))
        .ok_or_else(|| ConfigError::Value {
            value: String::new(),
            origin: ValueSource::Environment("HOME".into()),
            allowed: "--data DIR, or set HOME to the absolute path of your home directory".into(),
        })
}

/// Reads the configuration file. A file that the user named must exist; the default file may be
/// missing.
fn read(named: Option<&Path>, usual: &Path) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let file = named.unwrap_or(usual);
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some((file.to_owned(), text))),
        Err(e) if e.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(None),
        Err(source) => Err(ConfigError::Read { file: file.to_owned(), source }),
    }
}

fn tls(
    certificate: Option<&ConfigValue>,
    key: Option<&ConfigValue>,
) -> Result<Option<TlsFiles>, ConfigError> {
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => {
            Ok(Some(TlsFiles { certificate: certificate.parse(FILE)?, key: key.parse(FILE)? }))
        }
        (Some(alone), None) => Err(alone.refuse("--tls-key too, because a certificate needs its key")),
        (None, Some(alone)) => Err(alone.refuse("--tls-cert too, because a key needs its certificate")),
    }
}

/// Returns the URL of an absolute directory.
fn directory_url(directory: &Path) -> String {
    Url::from_file_path(directory).map(String::from).unwrap_or_default()
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

impl fmt::Display for ValueSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "the flag {flag}"),
            Self::Environment(variable) => write!(f, "the environment variable {variable}"),
            Self::File(file, key) => write!(f, "the key {key} in {}", file.display()),
            Self::Default => write!(f, "the default"),
        }
    }
}

// Formats of values.

const ADDRESS: SettingFormat<SocketAddr> = SettingFormat(
    |text| {
        let local = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
        local.as_deref().unwrap_or(text).parse().ok()
    },
    "an address with a port, such as 127.0.0.1:7411, [::1]:0 or localhost:7411",
);
/// A directory, which need not exist yet. Made absolute, because child processes have other working
/// directories.
const DIRECTORY: SettingFormat<PathBuf> = SettingFormat(
    |text| {
        let path = path::absolute(text).unwrap_or_default();
        (!text.is_empty() && !path.is_file()).then_some(path)
    },
    "a directory",
);
const FILE: SettingFormat<PathBuf> =
    SettingFormat(|text| path::absolute(text).ok().filter(|path| path.is_file()), "an existing file");
const ORIGIN: SettingFormat<String> = SettingFormat(
    |text| is_origin(text).then(|| text.to_owned()),
    "scheme and host as a browser sends them, in lower case, without a path or the default port, such as \
     https://console.example.org",
);
/// The backend's name. True for Kubernetes.
const BACKEND: SettingFormat<bool> = SettingFormat(
    |text| match text {
        "local" => Some(false),
        "kubernetes" => Some(true),
        _ => None,
    },
    "\"local\" or \"kubernetes\"",
);
const IP: SettingFormat<IpAddr> =
    SettingFormat(|text| text.parse().ok(), "an IP address, such as 10.244.0.7");
/// The name of a Kubernetes object (RFC 1123 label).
const LABEL: SettingFormat<String> = SettingFormat(
    |text| is_dns_label(text).then(|| text.to_owned()),
    "1 to 63 characters of a-z, 0-9 and \"-\", without \"-\" at either end",
);
/// The URL that agents connect to.
const AGENTS_URL: SettingFormat<String> = SettingFormat(
    |text| {
        let host = text.strip_prefix("https://").filter(|host| host.parse::<http::uri::Authority>().is_ok());
        host.map(|_| text.to_owned())
    },
    "an https URL with host and port, such as https://podling-agents:7412",
);
const LOG_FORMAT: SettingFormat<LogFormat> = SettingFormat(
    |text| match text {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    },
    "\"text\" or \"json\"",
);
const COUNT: SettingFormat<u64> =
    SettingFormat(|text| text.parse().ok(), "a number of workspaces, such as \"3\"");
const CORES: SettingFormat<u64> = SettingFormat(quantity::cores, quantity::CORES);
const BYTES: SettingFormat<u64> = SettingFormat(quantity::bytes, quantity::BYTES);
const SWITCH: SettingFormat<bool> = SettingFormat(
    |text| match text {
        "true" | "1" | "yes" => Some(true),
        "false" | "0" | "no" => Some(false),
        _ => None,
    },
    "\"true\" or \"false\"",
);

/// Returns whether the text is the origin of a web page, in the form in which a browser sends it.
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    host.is_some_and(|host| {
        // Browsers send an origin in lower case and without the default port. Any other form would
        // never match.
        let usual = if text.starts_with("https:") { ":443" } else { ":80" };
        let odd = host.contains(['@', '*'])
            || host.chars().any(|c| c.is_ascii_uppercase())
            || host.ends_with(usual);
        !odd && host.parse::<http::uri::Authority>().is_ok_and(|a| !a.host().is_empty())
    })
}

#[cfg(test)]
mod tests;
