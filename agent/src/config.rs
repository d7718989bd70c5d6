//! Validated configuration, built from [`crate::args::AgentArgs`] or by tests.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::child::OrphanPolicy;

#[derive(Debug, Clone)]
pub struct AgentConfig {
    pub listen: ListenAddress,
    pub control: ControlEndpoint,
    /// Workspace root, and HOME of all programs.
    pub root: PathBuf,
    /// The agent's own directory, outside the workspace root.
    pub state: PathBuf,
    /// File with the pid, address and fingerprint of this run of the agent, for other processes.
    pub info_file: PathBuf,
    /// The workspace's own command, unless the claim names one. Empty if there is none.
    pub command: Vec<String>,
    /// Path of the socket of nscd. If it is set, the workspace's user gets an entry in the user
    /// database.
    pub name_service: Option<PathBuf>,
    /// Whether this process is the workspace's init, which reaps orphans and ends leftover
    /// processes.
    pub orphans: OrphanPolicy,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// Path of a Unix socket.
    Unix(PathBuf),
    /// Port 0 takes any free port.
    Tcp(SocketAddr),
}

/// Address and credentials for the control plane.
#[derive(Debug, Clone)]
pub struct ControlEndpoint {
    pub address: ControlAddress,
    /// PEM file with the CA that signs the control plane's certificate.
    pub ca: PathBuf,
    /// File with the secret that identifies this agent.
    pub credential: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlAddress {
    /// Path of a Unix socket.
    Unix(PathBuf),
    Tcp {
        /// DNS name or IP address.
        host: String,
        port: u16,
    },
}

/// A configuration value that is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {value:?}: {problem}; allowed: {allowed}")]
pub struct InvalidValue {
    what: String,
    value: String,
    problem: String,
    allowed: &'static str,
}

impl InvalidValue {
    /// Creates an error that names the value, the problem, and the allowed values.
    pub fn new(
        what: &'static str,
        value: impl Into<String>,
        problem: impl Into<String>,
        allowed: &'static str,
    ) -> Self {
        Self { what: what.to_owned(), value: value.into(), problem: problem.into(), allowed }
    }

    /// Adds the environment variable that the value came from.
    #[must_use]
    pub fn from_variable(self, name: String) -> Self {
        Self { what: format!("{} (from {name} in the environment)", self.what), ..self }
    }
}

const LISTEN: &str = "unix:/PATH or IP:PORT (port 0: any free port)";
const CONTROL: &str = "unix:/PATH or https://HOST:PORT";

impl FromStr for ListenAddress {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let bad = |problem: &str| InvalidValue::new("--listen", text, problem, LISTEN);
        match text.strip_prefix("unix:") {
            Some(path) => socket_path(path).map(Self::Unix).map_err(bad),
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| bad("neither a Unix socket nor an IP address with a port")),
        }
    }
}

impl FromStr for ControlAddress {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let bad = |problem: &str| InvalidValue::new("--control", text, problem, CONTROL);
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Self::Unix).map_err(bad);
        }
        let uri: http::Uri = text.parse().map_err(|_| bad("not a URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(bad("the connection must be encrypted (https)"));
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(bad("must have no path or query"));
        }
        let host = uri.host().ok_or_else(|| bad("has no host"))?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().ok_or_else(|| bad("has no port"))?;
        Ok(Self::Tcp { host, port })
    }
}

fn socket_path(path: &str) -> Result<PathBuf, &'static str> {
    let path = Path::new(path);
    if !path.is_absolute() || path.file_name().is_none() {
        return Err("not an absolute path");
    }
    Ok(path.to_owned())
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "https://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "https://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_as_documented() {
        assert_eq!("unix:/run/a.sock".parse(), Ok(ListenAddress::Unix("/run/a.sock".into())));
        assert_eq!("127.0.0.1:0".parse(), Ok(ListenAddress::Tcp(([127, 0, 0, 1], 0).into())));
        let control: ControlAddress = "https://[::1]:7443".parse().expect("address");
        assert_eq!(control, ControlAddress::Tcp { host: "::1".into(), port: 7443 });
        assert_eq!(control.to_string(), "https://[::1]:7443");
    }

    #[test]
    fn invalid_value_error_names_value_and_allowed() {
        for (text, problem) in [
            ("http://control:80", "encrypted"),
            ("https://control", "no port"),
            ("https://control:1/x", "no path"),
            ("unix:relative", "absolute"),
        ] {
            let error = text.parse::<ControlAddress>().expect_err("rejected").to_string();
            assert!(error.contains(problem) && error.contains("--control"), "{error}");
            assert!(error.contains(text) && error.contains("https://HOST:PORT"), "{error}");
        }
        assert!(
            "example.com:80".parse::<ListenAddress>().is_err(),
            "host names are not resolved for listening"
        );
    }
}
