//! What can be said on the command line. Everything is text here; [`crate::config`] makes one validated value of it.

use std::path::PathBuf;

/// Flags of the control plane. Each can also be given as the environment variable that its help names, or in the
/// configuration file as the flag's name with "_" for "-". The data folder is not among them: every program has it anyway.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ControlArgs {
    /// Configuration file [env: PODLING_CONFIG] [default: config.toml in the data folder, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on; port 0 takes a free one [env: PODLING_LISTEN] [default: 127.0.0.1:7411]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// What runs workspaces: "local" (processes of this machine) or "kubernetes" (pods) [env: PODLING_BACKEND] [default: local]
    #[arg(long, value_name = "BACKEND")]
    pub backend: Option<String>,
    /// Kubernetes: the namespace of the workspaces [env: PODLING_NAMESPACE] [default: the one this runs in]
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Kubernetes: address to listen on for agents [env: PODLING_AGENTS_LISTEN] [default: 0.0.0.0:7412]
    #[arg(long, value_name = "HOST:PORT")]
    pub agents_listen: Option<String>,
    /// Kubernetes: where agents find that address [env: PODLING_AGENTS_URL] [default: `https://podling-agents:7412`]
    #[arg(long, value_name = "URL")]
    pub agents_url: Option<String>,
    /// Kubernetes: the address at which other replicas reach this one; without one they stand by and pass nobody on
    /// [env: PODLING_ADVERTISE]
    #[arg(long, value_name = "ADDRESS")]
    pub advertise: Option<String>,
    /// Kubernetes: the image of the agent, for images that have none [env: PODLING_AGENT_IMAGE] [default: podling/agent
    /// of this version]
    #[arg(long, value_name = "IMAGE")]
    pub agent_image: Option<String>,
    /// Kubernetes: the service account of the workspaces' pods, which needs no rights [env: PODLING_WORKSPACE_ACCOUNT]
    /// [default: podling-workspace]
    #[arg(long, value_name = "NAME")]
    pub workspace_account: Option<String>,
    /// Certificate chain to serve TLS with, PEM [env: PODLING_TLS_CERT]
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<String>,
    /// Private key of the certificate, PEM [env: PODLING_TLS_KEY]
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<String>,
    /// Listen beyond loopback without TLS: whoever is on the way can read every token, keystroke and file, and use
    /// them. Only behind something that adds TLS [env: PODLING_ALLOW_PLAINTEXT=true]
    #[arg(long)]
    pub allow_plaintext: bool,
    /// Web pages that may call, separated by commas, such as `https://console.example.org` [env: PODLING_CORS_ORIGINS]
    #[arg(long, value_name = "ORIGINS")]
    pub cors_origins: Option<String>,
    /// "text" or "json" [env: PODLING_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Folder with more templates, NAME.toml each, beside templates/ in the data folder [env: PODLING_TEMPLATES]
    #[arg(long, value_name = "DIR")]
    pub templates: Option<String>,
    /// Template of a workspace that names none [env: PODLING_DEFAULT_TEMPLATE] [default: shell]
    #[arg(long, value_name = "NAME")]
    pub default_template: Option<String>,
    /// Where archives of workspaces are kept: `file:///absolute/folder`, or with the feature "cloud" `s3://bucket/prefix`,
    /// `gs://bucket/prefix` or `az://container/prefix` [env: PODLING_BACKUPS] [default: backups/ in the data folder]
    #[arg(long, value_name = "URL")]
    pub backups: Option<String>,
    /// Folder where lists of what archives hold wait while they arrive: up to 2 GiB each [env: PODLING_SCRATCH] [default: scratch/ in
    /// the data folder]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<String>,
    /// Command that starts an agent, words separated by spaces [env: PODLING_AGENT_COMMAND] [default: podling-agent
    /// beside this program]
    #[arg(long, value_name = "COMMAND")]
    pub agent_command: Option<String>,
    /// Workspaces of one owner that may be awake at once; more wait in line [env: PODLING_QUOTA_AWAKE] [default: no bound]
    #[arg(long, value_name = "COUNT")]
    pub quota_awake: Option<String>,
    /// CPU of one owner's awake workspaces together, such as 4 or 500m [env: PODLING_QUOTA_CPU] [default: no bound]
    #[arg(long, value_name = "CORES")]
    pub quota_cpu: Option<String>,
    /// Memory of one owner's awake workspaces together, such as 8GiB [env: PODLING_QUOTA_MEMORY] [default: no bound]
    #[arg(long, value_name = "BYTES")]
    pub quota_memory: Option<String>,
    /// Workspaces that may be awake at once, of all owners [env: PODLING_CAPACITY_AWAKE] [default: no bound]
    #[arg(long, value_name = "COUNT")]
    pub capacity_awake: Option<String>,
    /// CPU of all awake workspaces together [env: PODLING_CAPACITY_CPU] [default: no bound]
    #[arg(long, value_name = "CORES")]
    pub capacity_cpu: Option<String>,
    /// Memory of all awake workspaces together [env: PODLING_CAPACITY_MEMORY] [default: no bound]
    #[arg(long, value_name = "BYTES")]
    pub capacity_memory: Option<String>,
}
