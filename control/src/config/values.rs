//! Parsers of values. On failure each returns a description of the allowed values, which completes
//! "give …" in the message of [`ConfigError::Value`](super::ConfigError::Value).

use std::{
    net::{IpAddr, SocketAddr},
    path::{self, PathBuf},
};

use super::LogFormat;
use crate::quantity;

/// Allowed names of Kubernetes objects.
const LABEL: &str = "1 to 63 characters of a-z, 0-9 and \"-\", without \"-\" at either end";

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let allowed = "an address with a port, such as 127.0.0.1:7411, [::1]:0 or localhost:7411";
    let local = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    local.as_deref().unwrap_or(text).parse().map_err(|_| allowed.to_owned())
}

/// Parses a directory, which need not exist yet. Makes it absolute, because child processes have
/// other working directories.
pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    let path = path::absolute(text).unwrap_or_default();
    if text.is_empty() || path.is_file() { Err("a directory".to_owned()) } else { Ok(path) }
}

pub(super) fn file(text: &str) -> Result<PathBuf, String> {
    let path = path::absolute(text).unwrap_or_default();
    if path.is_file() { Ok(path) } else { Err("an existing file".to_owned()) }
}

/// Parses the origin of a web page, in the form in which a browser sends it.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let fits = host.is_some_and(|host| {
        // Browsers send an origin in lower case and without the default port. Any other form would
        // never match.
        let usual = if text.starts_with("https:") { ":443" } else { ":80" };
        let odd = host.contains(['@', '*'])
            || host.chars().any(|c| c.is_ascii_uppercase())
            || host.ends_with(usual);
        !odd && host.parse::<http::uri::Authority>().is_ok_and(|a| !a.host().is_empty())
    });
    if fits {
        Ok(text.to_owned())
    } else {
        Err("scheme and host as a browser sends them, in lower case, without a path or the default port, \
             such as https://console.example.org"
            .to_owned())
    }
}

/// Parses the backend's name. Returns whether it is Kubernetes.
pub(super) fn backend_is_kubernetes(text: &str) -> Result<bool, String> {
    match text {
        "local" => Ok(false),
        "kubernetes" => Ok(true),
        _ => Err("\"local\" or \"kubernetes\"".to_owned()),
    }
}

pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "an IP address, such as 10.244.0.7".to_owned())
}

/// Parses the name of a Kubernetes object (RFC 1123 label).
pub(super) fn label(text: &str) -> Result<String, String> {
    let fits = (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fits { Ok(text.to_owned()) } else { Err(LABEL.to_owned()) }
}

/// Parses the URL that agents connect to.
pub(super) fn agents_url(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").filter(|host| host.parse::<http::uri::Authority>().is_ok());
    match host {
        Some(_) => Ok(text.to_owned()),
        None => Err("an https URL with host and port, such as https://podling-agents:7412".to_owned()),
    }
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("\"text\" or \"json\"".to_owned()),
    }
}

pub(super) fn count(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "a number of workspaces, such as \"3\"".to_owned())
}

pub(super) fn cores(text: &str) -> Result<u64, String> {
    quantity::cores(text).ok_or_else(|| quantity::CORES.to_owned())
}

pub(super) fn bytes(text: &str) -> Result<u64, String> {
    quantity::bytes(text).ok_or_else(|| quantity::BYTES.to_owned())
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err("\"true\" or \"false\"".to_owned()),
    }
}
