//! Finds the control plane and the token, by an address or by a data directory, and opens
//! connections to it.
//!
//! A data directory contains the address of its control plane. This address is read again for each
//! connection, because a restarted control plane may listen elsewhere. A connection is TCP or TLS.
//! TLS trusts the certificates of `--ca`, or the certificate that a control plane on this machine
//! announced.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use podling_control::{config, pinned_certificate::PinnedCertificateVerifier};
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tower::util::BoxCloneService;

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
        let data = config::data_directory(global.data.as_deref(), &|name| std::env::var(name).ok())
            .map_err(|error| CommandFailure::Usage(error.to_string()))?;
        let running = running(&data)?.ok_or_else(|| CommandFailure::NotRunning { data: data.clone() })?;
        let token = match global.token.clone().filter(|token| !token.is_empty()) {
            Some(token) => token,
            None => root_token(&data)?,
        };
        let RunningControlPlane { url, certificate, .. } = running;
        Ok(Self { url, token, data: Some(data), ca, certificate })
    }

    /// Returns a connector for this control plane. Fails if the certificates cannot be loaded.
    pub fn connector(&self) -> Result<Connector, CommandFailure> {
        let tls = match self.url.starts_with("https://") {
            true => Some(tls(self.ca.as_deref(), self.certificate.as_deref())?),
            false => None,
        };
        let data = self.data.clone();
        let connect = move |uri: Uri| -> BoxFuture<'static, io::Result<TokioIo<Box<dyn ByteStream>>>> {
            let (tls, data) = (tls.clone(), data.clone());
            Box::pin(async move { Ok(TokioIo::new(dial(resolve_address(uri, data)?, tls).await?)) })
        };
        Ok(BoxCloneService::new(tower::service_fn(connect)))
    }
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

/// TCP or TLS stream.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

pub type Connector = BoxCloneService<Uri, TokioIo<Box<dyn ByteStream>>, io::Error>;

fn resolve_address(uri: Uri, data: Option<PathBuf>) -> io::Result<Uri> {
    let Some(data) = data else { return Ok(uri) };
    match running(&data) {
        Ok(Some(running)) => running.url.parse().map_err(io::Error::other),
        Ok(None) => Err(io::ErrorKind::ConnectionRefused.into()),
        Err(failure) => Err(io::Error::other(failure.describe())),
    }
}

async fn dial(uri: Uri, tls: Option<TlsConnector>) -> io::Result<Box<dyn ByteStream>> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    // Keystrokes are small packets and must be sent at once.
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    Ok(Box::new(tls.connect(name, stream).await?))
}

/// Trusts the certificates in `ca`, or else the `certificate` of the control plane on this machine.
fn tls(ca: Option<&Path>, certificate: Option<&Path>) -> Result<TlsConnector, CommandFailure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| CommandFailure::Other(format!("cannot set up TLS: {error}")))?;
    let builder = match (ca, certificate) {
        (Some(ca), _) => builder.with_root_certificates(roots(ca)?),
        (None, Some(certificate)) => {
            let certificate = certificate.to_owned();
            let verifier = PinnedCertificateVerifier::new(provider, move |shown: &CertificateDer<'_>| {
                check_announced(&certificate, shown)
            });
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
        (None, None) => {
            let message = "an https address requires a file of certificates to trust; pass --ca FILE or set \
                           PODLING_CA";
            return Err(CommandFailure::Usage(message.to_owned()));
        }
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Fails unless the server shows the first certificate of the file that `podling up` announced in
/// its data directory, which only its user can write. The certificate may be self-signed or name
/// another host, because commands on this machine connect to a loopback address. The file is read at
/// each connection, because a restarted `podling up` may have a new certificate.
fn check_announced(file: &Path, shown: &CertificateDer<'_>) -> Result<(), rustls::Error> {
    let announced = CertificateDer::from_pem_file(file)
        .map_err(|error| rustls::Error::General(format!("cannot read {}: {error}", file.display())))?;
    match announced == *shown {
        true => Ok(()),
        false => Err(CertificateError::ApplicationVerificationFailure.into()),
    }
}

fn roots(ca: &Path) -> Result<RootCertStore, CommandFailure> {
    let bad = |what: String| {
        CommandFailure::Usage(format!("cannot load certificates from {}: {what}", ca.display()))
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| bad(error.to_string()))? {
        let certificate = certificate.map_err(|error| bad(error.to_string()))?;
        roots.add(certificate).map_err(|error| bad(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad("the file contains no certificate".to_owned()));
    }
    Ok(roots)
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

    #[test]
    fn announced_certificate_is_read_at_each_connection() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("tls.pem");
        let announce = |base64: &str| {
            let pem = format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n");
            fs::write(&file, pem).expect("written");
        };
        let (old, new) = (CertificateDer::from(vec![0; 3]), CertificateDer::from(vec![4; 3]));
        announce("AAAA");
        assert!(check_announced(&file, &old).is_ok() && check_announced(&file, &new).is_err());
        announce("BAQE");
        assert!(check_announced(&file, &old).is_err() && check_announced(&file, &new).is_ok());
        fs::remove_file(&file).expect("removed");
        let error = check_announced(&file, &new).expect_err("no file").to_string();
        assert!(error.contains("tls.pem"), "{error}");
    }
}
