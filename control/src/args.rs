//! Command-line flags of the control plane. Values are not parsed here; [`crate::config`] validates
//! them.

use std::path::PathBuf;

/// Flags of the control plane, and the only list of its settings. The help of each flag names its
/// environment variable. Each flag except `--config` and `--create-missing-secrets` also has a key in
/// the configuration file, spelled with "_" instead of "-". `--data` is not among them, because every
/// program defines it itself.
#[derive(Debug, Clone, Default, clap::Args, serde::Serialize)]
pub struct ControlArgs {
    /// Read settings from this TOML file [env: PODLING_CONFIG] [default: config.toml in the data
    /// directory, if it exists]
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Listen on this address; port 0 selects a free port [env: PODLING_LISTEN] [default:
    /// 127.0.0.1:7411]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// Where workspaces run: "local" (processes on this machine) or "kubernetes" (pods) [env:
    /// PODLING_BACKEND] [default: local]
    #[arg(long, value_name = "BACKEND")]
    pub backend: Option<String>,
    /// Namespace of the workspaces [env: PODLING_NAMESPACE] [default: the namespace of this pod]
    #[arg(long, value_name = "NAME", help_heading = "Kubernetes options")]
    pub namespace: Option<String>,
    /// Listen for agents on this address [env: PODLING_AGENTS_LISTEN] [default: 0.0.0.0:7412]
    #[arg(long, value_name = "IP:PORT", help_heading = "Kubernetes options")]
    pub agents_listen: Option<String>,
    /// URL at which agents reach the --agents-listen address [env: PODLING_AGENTS_URL] [default:
    /// `https://podling-agents:7412`]
    #[arg(long, value_name = "URL", help_heading = "Kubernetes options")]
    pub agents_url: Option<String>,
    /// IP address at which other replicas reach this one while it is the leader; without it they
    /// cannot forward connections to it [env: PODLING_ADVERTISE]
    #[arg(long, value_name = "IP", help_heading = "Kubernetes options")]
    pub advertise: Option<String>,
    /// Listen for liveness and readiness probes on this address [env: PODLING_HEALTH_LISTEN]
    /// [default: 0.0.0.0:7413]
    #[arg(long, value_name = "IP:PORT", help_heading = "Kubernetes options")]
    pub health_listen: Option<String>,
    /// Image that the agent is copied from, for templates with `inject: true` [env:
    /// PODLING_AGENT_IMAGE] [default: podling/agent of this version]
    #[arg(long, value_name = "IMAGE", help_heading = "Kubernetes options")]
    pub agent_image: Option<String>,
    /// Service account of workspace pods; it needs no permissions [env: PODLING_WORKSPACE_ACCOUNT]
    /// [default: podling-workspace]
    #[arg(long, value_name = "NAME", help_heading = "Kubernetes options")]
    pub workspace_account: Option<String>,
    /// Serve TLS with this certificate chain (PEM) [env: PODLING_TLS_CERT]
    #[arg(long, value_name = "FILE", help_heading = "TLS and web options")]
    pub tls_cert: Option<String>,
    /// Private key of the certificate (PEM) [env: PODLING_TLS_KEY]
    #[arg(long, value_name = "FILE", help_heading = "TLS and web options")]
    pub tls_key: Option<String>,
    /// Listen without TLS on addresses other than loopback. Other machines on the network path can
    /// then read and use every token, keystroke and file. Only safe behind a proxy that adds TLS
    /// [env: PODLING_ALLOW_PLAINTEXT=true]
    #[arg(long, help_heading = "TLS and web options")]
    pub allow_plaintext: bool,
    /// Allow calls from web pages of these origins, separated by commas, for example
    /// `https://console.example.org` [env: PODLING_CORS_ORIGINS]
    #[arg(long, value_name = "ORIGINS", help_heading = "TLS and web options")]
    pub cors_origins: Option<String>,
    /// Write logs as "text" or "json" [env: PODLING_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Load templates (NAME.toml) from this directory too; they replace those of templates/ in the
    /// data directory (local backend only) [env: PODLING_TEMPLATES]
    #[arg(long, value_name = "DIR")]
    pub templates: Option<String>,
    /// Template for workspaces created without a template [env: PODLING_DEFAULT_TEMPLATE] [default:
    /// shell]
    #[arg(long, value_name = "NAME")]
    pub default_template: Option<String>,
    /// Backup store for archives of workspaces: `file:///absolute/directory`, or in a build with
    /// the feature "cloud" `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`
    /// [env: PODLING_BACKUPS] [default: backups/ in the data directory; required with --backend
    /// kubernetes]
    #[arg(long, value_name = "URL")]
    pub backups: Option<String>,
    /// Directory for temporary lists of archive entries, up to 2 GiB each [env: PODLING_SCRATCH]
    /// [default: scratch/ in the data directory]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<String>,
    /// Create a missing root token, token keys or CA although workspaces exist. For one start, and only
    /// if there is no backup of them: tokens of a lost key become invalid, and running agents that
    /// trust a lost CA are restarted
    #[arg(long)]
    #[serde(skip)]
    pub create_missing_secrets: bool,
    /// Start agents with this command, words separated by spaces (local backend only) [env:
    /// PODLING_AGENT_COMMAND] [default: `podling agent`; for podling-control, podling-agent beside
    /// it]
    #[arg(long, value_name = "COMMAND")]
    pub agent_command: Option<String>,
    /// Limit the number of awake workspaces of one owner; further ones wait in the admission queue
    /// [env: PODLING_QUOTA_AWAKE] [default: no limit]
    #[arg(long, value_name = "COUNT", help_heading = "Quota options")]
    pub quota_awake: Option<String>,
    /// Limit the CPU of all awake workspaces of one owner, in cores, for example 4 or 500m [env:
    /// PODLING_QUOTA_CPU] [default: no limit]
    #[arg(long, value_name = "CORES", help_heading = "Quota options")]
    pub quota_cpu: Option<String>,
    /// Limit the memory of all awake workspaces of one owner, for example 8GiB [env:
    /// PODLING_QUOTA_MEMORY] [default: no limit]
    #[arg(long, value_name = "BYTES", help_heading = "Quota options")]
    pub quota_memory: Option<String>,
    /// Limit the number of awake workspaces of all owners together [env: PODLING_CAPACITY_AWAKE]
    /// [default: no limit]
    #[arg(long, value_name = "COUNT", help_heading = "Quota options")]
    pub capacity_awake: Option<String>,
    /// Limit the CPU of all awake workspaces together, in cores, for example 16 or 500m [env:
    /// PODLING_CAPACITY_CPU] [default: no limit]
    #[arg(long, value_name = "CORES", help_heading = "Quota options")]
    pub capacity_cpu: Option<String>,
    /// Limit the memory of all awake workspaces together, for example 64GiB [env:
    /// PODLING_CAPACITY_MEMORY] [default: no limit]
    #[arg(long, value_name = "BYTES", help_heading = "Quota options")]
    pub capacity_memory: Option<String>,
}
