//! The command line. Each flag is also a variable `PODLING_AGENT_…`; a flag wins.

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, ValueEnum, parser::ValueSource};

use crate::{
    child::OrphanPolicy,
    config::{AgentConfig, ControlEndpoint, InvalidValue},
};

/// Serves one workspace: terminals, commands, files and activity over gRPC.
///
/// It starts unclaimed, dials the control plane, and learns from it which workspace it serves. `podling-agent install DIR` copies it into
/// a folder instead, for containers whose image has none.
#[derive(Debug, Clone, Parser)]
#[command(name = "podling-agent", version)]
pub struct AgentArgs {
    /// Where to listen: unix:/PATH or IP:PORT (port 0: any free one)
    #[arg(long, env = "PODLING_AGENT_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:7070")]
    listen: String,
    /// The control plane: unix:/PATH or https://HOST:PORT
    #[arg(long, env = "PODLING_AGENT_CONTROL", value_name = "ADDRESS")]
    control: String,
    /// PEM file with the CA of the control plane's certificate
    #[arg(long, env = "PODLING_AGENT_CONTROL_CA", value_name = "FILE")]
    control_ca: PathBuf,
    /// File with this agent's credential; read anew whenever it connects
    #[arg(long, env = "PODLING_AGENT_CREDENTIAL_FILE", value_name = "FILE")]
    credential_file: PathBuf,
    /// The workspace root: HOME of everything that runs in it
    #[arg(long, env = "PODLING_AGENT_ROOT", value_name = "DIR")]
    root: PathBuf,
    /// The agent's own folder, outside the workspace root
    #[arg(long, env = "PODLING_AGENT_STATE", value_name = "DIR")]
    state: PathBuf,
    /// Where to write pid, address and fingerprint of this run [default: agent.json in --state]
    #[arg(long, env = "PODLING_AGENT_INFO_FILE", value_name = "FILE")]
    info_file: Option<PathBuf>,
    /// Run in a session of its own, so that it outlives who started it
    #[arg(long, env = "PODLING_AGENT_OWN_SESSION")]
    own_session: bool,
    /// How to log, to stderr
    #[arg(long, env = "PODLING_AGENT_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: AgentLogFormat,
    /// The workspace's own command, if the control plane names none
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AgentLogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

impl AgentArgs {
    /// Reads the command line; the first word is the program's name.
    pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<(Self, ArgMatches), clap::Error> {
        let matches = Self::command().try_get_matches_from(words)?;
        Ok((Self::from_arg_matches(&matches)?, matches))
    }

    /// How to log.
    pub fn log_format(&self) -> AgentLogFormat {
        self.log_format
    }

    /// Whether to leave the session it was started in.
    pub fn own_session(&self) -> bool {
        self.own_session
    }

    /// Checks the values; `matches` knows where each came from.
    pub fn config(self, matches: &ArgMatches) -> Result<AgentConfig, InvalidValue> {
        let from = |error: InvalidValue, flag: &str| match matches.value_source(flag) {
            Some(ValueSource::EnvVariable) => {
                error.from_variable(format!("PODLING_AGENT_{}", flag.to_uppercase()))
            }
            _ => error,
        };
        let folder = |what, flag: &str, path: PathBuf| {
            let bad =
                |problem: &str| InvalidValue::new(what, path.display().to_string(), problem, "a folder");
            match path.canonicalize() {
                Ok(path) if path.is_dir() => Ok(path),
                Ok(_) => Err(from(bad("not a folder"), flag)),
                Err(error) => Err(from(bad(&error.to_string()), flag)),
            }
        };
        let root = folder("--root", "root", self.root)?;
        let state = folder("--state", "state", self.state)?;
        if state.starts_with(&root) {
            let problem = format!("lies within the workspace root {}", root.display());
            let bad =
                InvalidValue::new("--state", state.display().to_string(), problem, "a folder outside --root");
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
            orphans: OrphanPolicy::Reap,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_follows_two_dashes_and_state_stays_out_of_the_root() {
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
            let (args, matches) = AgentArgs::read(words).expect("args");
            args.config(&matches)
        };
        let config = read("state").expect("config");
        assert_eq!(config.command, ["code", "-x"]);
        assert!(config.info_file.ends_with("state/agent.json"));
        let error = read("home/inner").expect_err("refused").to_string();
        assert!(error.contains("--state") && error.contains("within the workspace root"), "{error}");
        assert!(read("nowhere").is_err());
    }
}
