//! The command line of the control plane. All values are text here; [`crate::config`] validates
//! them.

use std::path::PathBuf;

/// Flags of the control plane. Each can also be given as the environment variable that its help
/// names, or in the configuration file as the flag's name with "_" for "-". The data directory is
/// not among them: every program has its own flag for it.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ControlArgs {
    /// Configuration file [env: PODLING_CONFIG] [default: config.toml in the data directory, if it
    /// exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on; port 0 selects a free port [env: PODLING_LISTEN] [default:
    /// 127.0.0.1:7411]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Backend that runs workspaces: "local" (processes of this machine) or "kubernetes" (pods)
    /// [env: PODLING_BACKEND] [default: local]
    #[arg(long, value_name = "BACKEND")]
    pub backend: Option<String>,
    /// Kubernetes: namespace of the workspaces [env: PODLING_NAMESPACE] [default: the control
    /// plane's own namespace]
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Listen for agents on this address [env: PODLING_AGENTS_LISTEN] [default: 0.0.0.0:7412]
    #[arg(long, value_name = "HOST:PORT", help_heading = "Kubernetes options")]
    pub agents_listen: Option<String>,
    /// Kubernetes: URL at which agents reach that address [env: PODLING_AGENTS_URL] [default:
    /// `https://podling-agents:7412`]
    #[arg(long, value_name = "URL")]
    pub agents_url: Option<String>,
    /// Kubernetes: IP address at which other replicas reach this one; without it they do not
    /// forward connections to it [env: PODLING_ADVERTISE]
    #[arg(long, value_name = "ADDRESS")]
    pub advertise: Option<String>,
    /// Kubernetes: image of the agent, for workspace images that have none [env:
    /// PODLING_AGENT_IMAGE] [default: podling/agent of this version]
    #[arg(long, value_name = "IMAGE")]
    pub agent_image: Option<String>,
    /// Kubernetes: service account of the workspaces' pods, which needs no rights [env:
    /// PODLING_WORKSPACE_ACCOUNT] [default: podling-workspace]
    #[arg(long, value_name = "NAME")]
    pub workspace_account: Option<String>,
    /// TLS certificate chain, PEM [env: PODLING_TLS_CERT]
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<String>,
    /// Private key of the certificate (PEM) [env: PODLING_TLS_KEY]
    #[arg(long, value_name = "FILE", help_heading = "TLS and web options")]
    pub tls_key: Option<String>,
    /// Listen beyond loopback without TLS. Anyone on the network path can then read and use every
    /// token, keystroke and file; only for use behind a proxy that adds TLS [env:
    /// PODLING_ALLOW_PLAINTEXT=true]
    #[arg(long)]
    pub allow_plaintext: bool,
    /// Origins of web pages that may call (CORS), separated by commas, such as
    /// `https://console.example.org` [env: PODLING_CORS_ORIGINS]
    #[arg(long, value_name = "ORIGINS")]
    pub cors_origins: Option<String>,
    /// Log format: "text" or "json" [env: PODLING_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Directory with more templates, NAME.toml each, besides templates/ in the data directory
    /// [env: PODLING_TEMPLATES]
    #[arg(long, value_name = "DIR")]
    pub templates: Option<String>,
    /// Template of workspaces that name none [env: PODLING_DEFAULT_TEMPLATE] [default: shell]
    #[arg(long, value_name = "NAME")]
    pub default_template: Option<String>,
    /// Backup store for archives of workspaces: `file:///absolute/directory`, or with the feature
    /// "cloud" `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix` [env:
    /// PODLING_BACKUPS] [default: backups/ in the data directory]
    #[arg(long, value_name = "URL")]
    pub backups: Option<String>,
    /// Directory for manifests of archives while they arrive, up to 2 GiB each [env:
    /// PODLING_SCRATCH] [default: scratch/ in the data directory]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<String>,
    /// Command that starts an agent, words separated by spaces [env: PODLING_AGENT_COMMAND]
    /// [default: podling-agent beside this program]
    #[arg(long, value_name = "COMMAND")]
    pub agent_command: Option<String>,
    /// Workspaces of one owner that may be awake at the same time; further ones are queued [env:
    /// PODLING_QUOTA_AWAKE] [default: no limit]
    #[arg(long, value_name = "COUNT")]
    pub quota_awake: Option<String>,
    /// CPU of one owner's awake workspaces together, such as 4 or 500m [env: PODLING_QUOTA_CPU]
    /// [default: no limit]
    #[arg(long, value_name = "CORES")]
    pub quota_cpu: Option<String>,
    /// Memory of one owner's awake workspaces together, such as 8GiB [env: PODLING_QUOTA_MEMORY]
    /// [default: no limit]
    #[arg(long, value_name = "BYTES")]
    pub quota_memory: Option<String>,
    /// Workspaces of all owners that may be awake at the same time [env: PODLING_CAPACITY_AWAKE]
    /// [default: no limit]
    #[arg(long, value_name = "COUNT")]
    pub capacity_awake: Option<String>,
    /// CPU of all awake workspaces together [env: PODLING_CAPACITY_CPU] [default: no limit]
    #[arg(long, value_name = "CORES")]
    pub capacity_cpu: Option<String>,
    /// Memory of all awake workspaces together [env: PODLING_CAPACITY_MEMORY] [default: no limit]
    #[arg(long, value_name = "BYTES")]
    pub capacity_memory: Option<String>,
}
