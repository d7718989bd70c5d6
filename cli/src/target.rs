//! Finds the control plane and the token, by an address or by a data directory.

use std::{
    ffi::OsString,
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
    /// Data directory of a control plane on this machine [env: PODLING_DATA] [default:
    /// $XDG_DATA_HOME/podling, or ~/.local/share/podling]
    #[arg(long, global = true, help_heading = HEADING, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address of a control plane, for example http://127.0.0.1:7411; requires a token [env:
    /// PODLING_URL]
    #[arg(long, global = true, help_heading = HEADING)]
    pub url: Option<String>,
    /// Token for the control plane [env: PODLING_TOKEN] [default: the root token in the data
    /// directory]
    #[arg(long, global = true, help_heading = HEADING)]
    pub token: Option<String>,
    /// File of certificates (PEM) to trust for an https address; system certificates are not used
    /// [env: PODLING_CA] [default: with a data directory, the certificate of its control plane]
    #[arg(long, global = true, help_heading = HEADING, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long, global = true, help_heading = HEADING)]
    pub json: bool,
}

impl GlobalOptions {
    /// Fills options that were not given from the environment. The parser does not read it, because
    /// its usage texts would show options from the environment as if they were required.
    #[must_use]
    pub fn with_environment(self, env: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let value = |name| env(name).filter(|value: &OsString| !value.is_empty());
        let text = |name| value(name).and_then(|value| value.into_string().ok());
        let path = |name| value(name).map(PathBuf::from);
        Self {
            data: self.data.or_else(|| path("PODLING_DATA")),
            url: self.url.or_else(|| text("PODLING_URL")),
            token: self.token.or_else(|| text("PODLING_TOKEN")),
            ca: self.ca.or_else(|| path("PODLING_CA")),
            json: self.json,
        }
    }

    /// Returns the options with which another command in the same environment finds the same control
    /// plane. A token is left out, because it is secret.
    pub fn repeated_options(&self, env: &dyn Fn(&str) -> Option<OsString>) -> String {
        let without = Self::default().with_environment(env);
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let mut options = String::new();
        if let Some(data) = &self.data
            && without.data.as_ref().map(absolute) != Some(absolute(data))
        {
            options.push_str(&format!(" --data {}", data.display()));
        }
        if let Some(url) = self.url.as_ref().filter(|_| self.url != without.url) {
            options.push_str(&format!(" --url {url}"));
        }
        if let Some(ca) = self.ca.as_ref().filter(|_| self.ca != without.ca) {
            options.push_str(&format!(" --ca {}", ca.display()));
        }
        options
    }
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
    /// Certificate of the control plane on this machine. It is trusted unless `ca` is given.
    pub certificate: Option<PathBuf>,
}

/// Content of `<data>/run/up.json`, written by `podling up`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RunningControlPlane {
    pub url: String,
    pub pid: u32,
    /// File with the certificate that the control plane serves, if it serves TLS.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
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
            let url = url.trim_end_matches('/').to_owned();
            return Ok(Self { url, token, data: None, ca, certificate: None });
        }
        let data = data_directory(global)?;
        let running = running(&data)?.ok_or_else(|| CommandFailure::NotRunning { data: data.clone() })?;
        let token = match global.token.clone().filter(|token| !token.is_empty()) {
            Some(token) => token,
            None => root_token(&data)?,
        };
        let RunningControlPlane { url, certificate, .. } = running;
        Ok(Self { url, token, data: Some(data), ca, certificate })
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
    fn flags_take_precedence_and_are_repeated_in_advice() {
        let env = |name: &str| match name {
            "PODLING_DATA" => Some(OsString::from("/env")),
            "PODLING_TOKEN" => Some(OsString::from("secret")),
            "PODLING_URL" => Some(OsString::new()),
            _ => None,
        };
        let none = GlobalOptions::default().with_environment(&env);
        assert_eq!((none.data.clone(), none.url.clone()), (Some("/env".into()), None));
        assert_eq!(none.repeated_options(&env), "", "the environment of another command is the same");
        let flags = GlobalOptions { data: Some("/flag".into()), ..GlobalOptions::default() };
        assert_eq!(flags.clone().with_environment(&env).repeated_options(&env), " --data /flag");
        assert_eq!(flags.repeated_options(&|_| None), " --data /flag");
        let remote = GlobalOptions {
            url: Some("https://x".to_owned()),
            token: Some("secret".to_owned()),
            ca: Some("/ca".into()),
            ..GlobalOptions::default()
        };
        assert_eq!(remote.repeated_options(&env), " --url https://x --ca /ca");
    }

    #[test]
    fn stale_up_file_is_ignored() {
        // Larger than any process id.
        let directory = data_dir(u32::MAX);
        let global = GlobalOptions { data: Some(directory.path().into()), ..GlobalOptions::default() };
        assert!(matches!(ControlPlaneTarget::find(&global), Err(CommandFailure::NotRunning { .. })));
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
