//! Command line of the agent. Each flag can also be set by an environment variable
//! `PODLING_AGENT_…`. Flags take precedence.

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, ValueEnum, parser::ValueSource};

use podling_proto::log::LogFormat;

use crate::{
    child::OrphanPolicy,
    config::{AgentConfig, ControlEndpoint, InvalidValue},
};

/// Serve one workspace: terminals, commands, files and activity over gRPC
///
/// The agent dials the control plane, which assigns a workspace to it. `podling-agent install DIR`
/// copies this program into a directory, for containers whose image has no agent.
#[derive(Debug, Clone, Parser)]
#[command(name = "podling-agent", version)]
pub struct AgentArgs {
    /// Address to listen on: unix:/PATH or IP:PORT (port 0: any free port)
    #[arg(long, env = "PODLING_AGENT_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:7070")]
    listen: String,
    /// Address of the control plane: unix:/PATH or https://HOST:PORT
    #[arg(long, env = "PODLING_AGENT_CONTROL", value_name = "ADDRESS")]
    control: String,
    /// PEM file with the CA of the control plane's certificate
    #[arg(long, env = "PODLING_AGENT_CONTROL_CA", value_name = "FILE")]
    control_ca: PathBuf,
    /// File with this agent's credential, read again for every connection
    #[arg(long, env = "PODLING_AGENT_CREDENTIAL_FILE", value_name = "FILE")]
    credential_file: PathBuf,
    /// Workspace root: HOME of all programs in the workspace
    #[arg(long, env = "PODLING_AGENT_ROOT", value_name = "DIR")]
    root: PathBuf,
    /// The agent's own directory, outside the workspace root
    #[arg(long, env = "PODLING_AGENT_STATE", value_name = "DIR")]
    state: PathBuf,
    /// File for pid, address and fingerprint of this run [default: agent.json in --state]
    #[arg(long, env = "PODLING_AGENT_INFO_FILE", value_name = "FILE")]
    info_file: Option<PathBuf>,
    /// Start a new session, so that the agent outlives the process that started it
    #[arg(long, env = "PODLING_AGENT_OWN_SESSION")]
    own_session: bool,
    /// Socket on which the C library of the workspace's programs looks up users (that of nscd). If
    /// the uid has no entry in /etc/passwd, one is added there or served on this socket
    #[arg(long, env = "PODLING_AGENT_NAME_SERVICE", value_name = "PATH")]
    name_service: Option<PathBuf>,
    /// Log format on stderr
    #[arg(long, env = "PODLING_AGENT_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: AgentLogFormat,
    /// Command to keep running in the workspace, unless the control plane names one
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AgentLogFormat {
    /// One human-readable line per event.
    Text,
    /// One JSON object per line.
    Json,
}

impl AgentArgs {
    /// Parses the command line; the first word is the program's name.
    pub fn parse_words(words: impl IntoIterator<Item = OsString>) -> Result<(Self, ArgMatches), clap::Error> {
        let matches = Self::command().try_get_matches_from(words)?;
        Ok((Self::from_arg_matches(&matches)?, matches))
    }

    pub fn log_format(&self) -> LogFormat {
        match self.log_format {
            AgentLogFormat::Text => LogFormat::Text,
            AgentLogFormat::Json => LogFormat::Json,
        }
    }

    pub fn own_session(&self) -> bool {
        self.own_session
    }

    /// Validates the values. `matches` shows which values came from the environment, for error
    /// messages.
    pub fn config(self, matches: &ArgMatches) -> Result<AgentConfig, InvalidValue> {
        let from = |error: InvalidValue, flag: &str| match matches.value_source(flag) {
            Some(ValueSource::EnvVariable) => {
                error.from_variable(format!("PODLING_AGENT_{}", flag.to_uppercase()))
            }
            _ => error,
        };
        let directory = |what, flag: &str, path: PathBuf| {
            let bad =
                |problem: &str| InvalidValue::new(what, path.display().to_string(), problem, "a directory");
            match path.canonicalize() {
                Ok(path) if path.is_dir() => Ok(path),
                Ok(_) => Err(from(bad("not a directory"), flag)),
                Err(error) => Err(from(bad(&error.to_string()), flag)),
            }
        };
        let root = directory("--root", "root", self.root)?;
        let state = directory("--state", "state", self.state)?;
        if state.starts_with(&root) {
            let problem = format!("lies within the workspace root {}", root.display());
            let bad = InvalidValue::new(
                "--state",
                state.display().to_string(),
                problem,
                "a directory outside --root",
            );
            return Err(from(bad, "state"));
        }
        Ok(AgentConfig {
            listen: self.listen.parse().map_err(|e| from(e, "listen"))?,
            control: ControlEndpoint {
                address: self.control.parse().map_err(|e| from(e, "control"))?,
                ca: self.control_ca,
                credential: self.credential_file,
            },
            info_file: self.info_file.unwrap_or_else(|| state.join("agent.json")),
            root,
            state,
            command: self.command,
            name_service: self.name_service,
            orphans: OrphanPolicy::Reap,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_follows_dashes_and_state_is_outside_root() {
        let dir = tempfile::tempdir().expect("dir");
        let read = |state: &str| {
            std::fs::create_dir_all(dir.path().join("home/inner")).expect("home");
            std::fs::create_dir_all(dir.path().join("state")).expect("state");
            let path = |name: &str| dir.path().join(name).into_os_string();
            let mut words: Vec<OsString> =
                "a --control https://c:1 --control-ca ca --credential-file c --root"
                    .split(' ')
                    .map(OsString::from)
                    .collect();
            words.extend([
                path("home"),
                "--state".into(),
                path(state),
                "--".into(),
                "code".into(),
                "-x".into(),
            ]);
            let (args, matches) = AgentArgs::parse_words(words).expect("args");
            args.config(&matches)
        };
        let config = read("state").expect("config");
        assert_eq!(config.command, ["code", "-x"]);
        assert!(config.info_file.ends_with("state/agent.json"));
        let error = read("home/inner").expect_err("rejected").to_string();
        assert!(error.contains("--state") && error.contains("within the workspace root"), "{error}");
        assert!(read("nowhere").is_err());
    }
}
