//! Finds the control plane and the token, by an address or by a data directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;
use podling_control::config;
use serde::Deserialize;

use crate::failure::CommandFailure;

/// Help heading of the global options.
const HEADING: &str = "Global options";

#[derive(Debug, Clone, Default, Args)]
pub struct GlobalOptions {
    /// Data directory of a control plane on this machine [default: $XDG_DATA_HOME/podling, or
    /// ~/.local/share/podling]
    #[arg(long, global = true, help_heading = HEADING, env = "PODLING_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address of a control plane, for example http://127.0.0.1:7411; requires a token
    #[arg(long, global = true, help_heading = HEADING, env = "PODLING_URL")]
    pub url: Option<String>,
    /// Token for the control plane [default: the root token in the data directory]
    #[arg(long, global = true, help_heading = HEADING, env = "PODLING_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// File of certificates (PEM) to trust for an https address; system certificates are not used
    #[arg(long, global = true, help_heading = HEADING, env = "PODLING_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long, global = true, help_heading = HEADING)]
    pub json: bool,
}

/// Address and credentials of a control plane.
#[derive(Debug, Clone)]
pub struct ControlPlaneTarget {
    /// Base URL: `http://host:port` or `https://host:port`.
    pub url: String,
    pub token: String,
    /// Data directory that contains the address. It is read again for every connection, because a
    /// restarted control plane may listen elsewhere.
    pub data: Option<PathBuf>,
    pub ca: Option<PathBuf>,
}

/// Content of `<data>/run/up.json`, written by `podling up`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RunningControlPlane {
    pub url: String,
    pub pid: u32,
}

impl ControlPlaneTarget {
    /// Returns the control plane at `--url`, or else the one that runs with the data directory.
    /// Fails if the address comes without a token, or if no control plane runs.
    pub fn find(global: &GlobalOptions) -> Result<Self, CommandFailure> {
        let ca = global.ca.clone();
        if let Some(url) = global.url.clone().filter(|url| !url.is_empty()) {
            let token = global.token.clone().filter(|token| !token.is_empty()).ok_or_else(|| {
                CommandFailure::Usage(
                    "an address (--url, PODLING_URL) requires a token; pass --token or set PODLING_TOKEN"
                        .to_owned(),
                )
            })?;
            return Ok(Self { url: url.trim_end_matches('/').to_owned(), token, data: None, ca });
        }
        let data = data_directory(global)?;
        let running = running(&data)?.ok_or_else(|| CommandFailure::NotRunning {
            data: data.clone(),
            default: global.data.is_none(),
        })?;
        let token = match global.token.clone().filter(|token| !token.is_empty()) {
            Some(token) => token,
            None => root_token(&data)?,
        };
        Ok(Self { url: running.url, token, data: Some(data), ca })
    }
}

/// Returns the data directory: `--data`, `PODLING_DATA` or the default.
pub fn data_directory(global: &GlobalOptions) -> Result<PathBuf, CommandFailure> {
    config::data_directory(global.data.as_deref(), &|name| std::env::var(name).ok())
        .map_err(|error| CommandFailure::Usage(error.to_string()))
}

/// Returns the control plane that runs with this data directory. `None` if there is none.
pub fn running(data: &Path) -> Result<Option<RunningControlPlane>, CommandFailure> {
    let path = data.join("run/up.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CommandFailure::io(format!("cannot read {}", path.display()))(error)),
    };
    let running: RunningControlPlane = serde_json::from_slice(&text)
        .map_err(|error| CommandFailure::Other(format!("cannot parse {}: {error}", path.display())))?;
    // A killed control plane does not remove its file.
    Ok(Path::new("/proc").join(running.pid.to_string()).exists().then_some(running))
}

fn root_token(data: &Path) -> Result<String, CommandFailure> {
    let path = data.join("root-token");
    let token = fs::read_to_string(&path)
        .map_err(CommandFailure::io(format!("cannot read the root token {}", path.display())))?;
    Ok(token.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_dir(pid: u32) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("run")).expect("run");
        let up = format!(r#"{{"url":"http://127.0.0.1:7411","pid":{pid}}}"#);
        fs::write(directory.path().join("run/up.json"), up).expect("up.json");
        fs::write(directory.path().join("root-token"), "secret\n").expect("root-token");
        directory
    }

    #[test]
    fn data_directory_provides_address_and_token() {
        let directory = data_dir(std::process::id());
        let global = GlobalOptions { data: Some(directory.path().into()), ..GlobalOptions::default() };
        let target = ControlPlaneTarget::find(&global).expect("a target");
        assert_eq!((target.url.as_str(), target.token.as_str()), ("http://127.0.0.1:7411", "secret"));

        let narrowed = GlobalOptions { token: Some("narrow".to_owned()), ..global };
        assert_eq!(ControlPlaneTarget::find(&narrowed).expect("a target").token, "narrow");
    }

    #[test]
    fn stale_up_file_is_ignored() {
        // Larger than any process id.
        let directory = data_dir(u32::MAX);
        let global = GlobalOptions { data: Some(directory.path().into()), ..GlobalOptions::default() };
        assert!(matches!(
            ControlPlaneTarget::find(&global),
            Err(CommandFailure::NotRunning { default: false, .. })
        ));
    }

    #[test]
    fn address_takes_precedence_and_requires_token() {
        let directory = data_dir(std::process::id());
        let url = Some("http://far:1/".to_owned());
        let global = GlobalOptions { data: Some(directory.path().into()), url, ..GlobalOptions::default() };
        assert!(matches!(ControlPlaneTarget::find(&global), Err(CommandFailure::Usage(_))));
        let global = GlobalOptions { token: Some("t".to_owned()), ..global };
        let target = ControlPlaneTarget::find(&global).expect("a target");
        assert_eq!((target.url.as_str(), target.data), ("http://far:1", None));
    }
}
