//! Reads the parts of a kubeconfig by which API servers are reached, verified, and given the user's credentials.
//!
//! The file may appear late and change at any time: k0s writes it at its first start, and certificates are rotated.
//! Messages quote only names, paths and positions of it.

use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::{AuthInfo, Cluster, Kubeconfig, KubeconfigError as ParseError};
use lb_proxy::health::rustls::pki_types::pem::PemObject as _;
use lb_proxy::health::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use lb_proxy::health::{Credentials, Names, Trust, TrustError};

use crate::source;

/// In bytes. Larger files are no kubeconfigs, certificates or tokens.
const MAX_SIZE: usize = 1 << 20;

const AUTHORITY: &str = "certificate authority";
const CERTIFICATE: &str = "client certificate";
const KEY: &str = "client key";

/// The port of an `https` URL without one.
const HTTPS: u16 = 443;

/// Names in the certificate of every API server.
const COMMON_NAMES: [&str; 2] = ["kubernetes", "kubernetes.default.svc"];

/// The content of a kubeconfig: access to the API servers of one cluster.
#[derive(Clone)]
pub(crate) struct Access {
    /// The server that the file names.
    pub(crate) server: Server,
    /// The name by which its users verify servers.
    pub(crate) client_name: String,
    /// Verifies servers by the cluster's authority, and holds the user's certificate and token.
    pub(crate) trust: Trust,
    /// The files that this was read from, with their states.
    files: Vec<(PathBuf, Option<FileState>)>,
}

/// The host and the port of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// An address or a name.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// The state of a file, which differs after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileState {
    modified: SystemTime,
    length: u64,
    inode: u64,
}

/// The reason why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubeconfigError {
    /// It, or a file that it names, does not exist (yet).
    #[error("{} does not exist", .0.display())]
    Absent(PathBuf),
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} has more than {MAX_SIZE} bytes", .0.display())]
    TooLong(PathBuf),
    /// Without the message of the parser, which may quote the file.
    #[error("{}{position}: not a kubeconfig", path.display())]
    Parse { path: PathBuf, position: Position },
    #[error("no current-context is set, or it does not exist")]
    NoContext,
    #[error("the cluster of the current context does not exist")]
    NoCluster,
    #[error("the user of the current context does not exist")]
    NoUser,
    /// Without the URL, which may contain a password.
    #[error("the cluster's server is not a URL of the form https://HOST:PORT, without a path")]
    Server,
    #[error("proxy-url is not supported: connections to servers are direct")]
    Proxy,
    #[error("the cluster has no certificate-authority, by which servers could be verified")]
    NoAuthority,
    #[error(
        "insecure-skip-tls-verify is not accepted: credentials would go to a server that is not verified"
    )]
    Insecure,
    #[error(
        "the user is authenticated by the program {0:?}, which is not supported: give a client certificate or a token"
    )]
    Exec(String),
    #[error(
        "the user is authenticated by the provider {0:?}, which is not supported: give a client certificate or a token"
    )]
    Provider(String),
    #[error(
        "the user is authenticated by a password, which API servers no longer accept: give a client certificate or a token"
    )]
    Password,
    #[error("the {what} in {origin} is not base64")]
    Base64 { what: &'static str, origin: String },
    #[error("the {what} in {origin} is not PEM, or of the wrong kind")]
    Pem { what: &'static str, origin: String },
    /// Refused by the TLS library.
    #[error("the {what} in {origin} cannot be used: {reason}")]
    Refused { what: &'static str, origin: String, reason: String },
    #[error("the token is not text")]
    TokenText,
    #[error("the tls-server-name {0:?} is not a host name")]
    Name(String),
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Line and column in the file, if known.
#[derive(Debug)]
pub(crate) struct Position(Option<(u64, u64)>);

impl KubeconfigError {
    /// Returns whether a file is missing, which may appear later by itself.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent(_))
    }
}

impl Access {
    /// Reads the file and the files that it names. Blocks on the file system.
    pub(crate) fn read(path: &Path) -> Result<Self, KubeconfigError> {
        let mut files = Files::default();
        files.read(path)?;
        let file = Kubeconfig::read_from(path).map_err(|error| parse_error(path, &error))?;
        let (cluster, user) = current(&file)?;
        if cluster.insecure_skip_tls_verify == Some(true) {
            return Err(KubeconfigError::Insecure);
        }
        if cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()) {
            return Err(KubeconfigError::Proxy);
        }
        let server = Server::parse(cluster.server.as_deref().unwrap_or_default())?;
        let authority = files.data(
            path,
            cluster.certificate_authority_data.as_deref(),
            cluster.certificate_authority.as_deref(),
            AUTHORITY,
        )?;
        let authority = authority.ok_or(KubeconfigError::NoAuthority)?;
        let authorities = certificates(&authority, AUTHORITY)?;
        refuse_unsupported(user)?;
        let mut credentials = Credentials::default();
        let identity = identity(path, user, &mut files)?;
        let identity_origin = identity.as_ref().map_or_else(String::new, |(_, origin)| origin.clone());
        credentials.certificate = identity.map(|(identity, _)| identity);
        credentials.token = token(user, &mut files)?;
        let names = names(&server, cluster.tls_server_name.as_deref())?;
        let trust = Trust::new(authorities, names, credentials).map_err(|error| match error {
            TrustError::Authority(reason) => {
                KubeconfigError::Refused { what: AUTHORITY, origin: authority.origin.clone(), reason }
            }
            TrustError::Identity(reason) => {
                KubeconfigError::Refused { what: CERTIFICATE, origin: identity_origin, reason }
            }
            other => other.into(),
        })?;
        let client_name = cluster.tls_server_name.clone().filter(|name| !name.is_empty());
        let client_name = client_name.unwrap_or_else(|| server.host.clone());
        Ok(Self { server, client_name, trust, files: files.read })
    }

    /// Returns whether a file has changed since it was read. Blocks on the file system.
    pub(crate) fn is_outdated(&self) -> bool {
        self.files.iter().any(|(path, state)| FileState::of(path) != *state)
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("server", &self.server).finish_non_exhaustive()
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((line, column)) => write!(f, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

impl Server {
    fn parse(url: &str) -> Result<Self, KubeconfigError> {
        let wrong = || KubeconfigError::Server;
        let uri: hyper::Uri = url.parse().map_err(|_| wrong())?;
        if uri.scheme_str() != Some("https") || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong());
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        // The library returns no port for one that is not a number.
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let port = match authority.strip_prefix(host).ok_or_else(wrong)?.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?,
            None => HTTPS,
        };
        Ok(Self { host: host.trim_start_matches('[').trim_end_matches(']').to_owned(), port })
    }
}

impl FileState {
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let found = fs::metadata(path).ok()?;
        Some(Self { modified: found.modified().ok()?, length: found.len(), inode: found.ino() })
    }
}

/// Bytes, and the file that they were read from.
struct Data {
    bytes: Vec<u8>,
    origin: String,
}

/// Reads files and records them with their states.
#[derive(Default)]
struct Files {
    read: Vec<(PathBuf, Option<FileState>)>,
}

impl Files {
    fn read(&mut self, path: &Path) -> Result<Vec<u8>, KubeconfigError> {
        // The state is taken before the file is read, so that a change meanwhile is noticed.
        self.read.push((path.to_owned(), FileState::of(path)));
        let failure = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => KubeconfigError::Absent(path.to_owned()),
            _ => KubeconfigError::Read { path: path.to_owned(), source },
        };
        let bytes = source::read_file(path, MAX_SIZE).map_err(failure)?;
        if bytes.len() > MAX_SIZE {
            return Err(KubeconfigError::TooLong(path.to_owned()));
        }
        Ok(bytes)
    }

    /// The data that the kubeconfig contains, or that of the file that it names.
    fn data(
        &mut self,
        kubeconfig: &Path,
        inline: Option<&str>,
        file: Option<&str>,
        what: &'static str,
    ) -> Result<Option<Data>, KubeconfigError> {
        match (inline.filter(|text| !text.is_empty()), file) {
            (Some(inline), _) => {
                let origin = kubeconfig.display().to_string();
                match STANDARD.decode(inline.trim()) {
                    Ok(bytes) => Ok(Some(Data { bytes, origin })),
                    Err(_) => Err(KubeconfigError::Base64 { what, origin }),
                }
            }
            (None, Some(file)) => {
                self.read(Path::new(file)).map(|bytes| Some(Data { bytes, origin: file.to_owned() }))
            }
            (None, None) => Ok(None),
        }
    }
}

fn parse_error(path: &Path, error: &ParseError) -> KubeconfigError {
    let position = match error {
        ParseError::Parse(error) => error.location().map(|at| (at.line(), at.column())),
        _ => None,
    };
    KubeconfigError::Parse { path: path.to_owned(), position: Position(position) }
}

/// The cluster and the user of the current context. Without a user requests are anonymous.
fn current(file: &Kubeconfig) -> Result<(&Cluster, Option<&AuthInfo>), KubeconfigError> {
    let name = file.current_context.as_deref().ok_or(KubeconfigError::NoContext)?;
    let context = file.contexts.iter().find(|context| context.name == name);
    let context = context.and_then(|context| context.context.as_ref()).ok_or(KubeconfigError::NoContext)?;
    let cluster = file.clusters.iter().find(|cluster| cluster.name == context.cluster);
    let cluster = cluster.and_then(|cluster| cluster.cluster.as_ref()).ok_or(KubeconfigError::NoCluster)?;
    let Some(name) = context.user.as_deref().filter(|name| !name.is_empty()) else {
        return Ok((cluster, None));
    };
    let user = file.auth_infos.iter().find(|user| user.name == name);
    let user = user.and_then(|user| user.auth_info.as_ref()).ok_or(KubeconfigError::NoUser)?;
    Ok((cluster, Some(user)))
}

fn refuse_unsupported(user: Option<&AuthInfo>) -> Result<(), KubeconfigError> {
    let Some(user) = user else { return Ok(()) };
    if let Some(exec) = &user.exec {
        return Err(KubeconfigError::Exec(exec.command.clone().unwrap_or_default()));
    }
    if let Some(provider) = &user.auth_provider {
        return Err(KubeconfigError::Provider(provider.name.clone()));
    }
    if user.username.is_some() || user.password.is_some() {
        return Err(KubeconfigError::Password);
    }
    Ok(())
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The client's certificate and key, with the origin of the certificate.
fn identity(
    kubeconfig: &Path,
    user: Option<&AuthInfo>,
    files: &mut Files,
) -> Result<Option<(Identity, String)>, KubeconfigError> {
    use secrecy::ExposeSecret as _;
    let Some(user) = user else { return Ok(None) };
    let certificate = files.data(
        kubeconfig,
        user.client_certificate_data.as_deref(),
        user.client_certificate.as_deref(),
        CERTIFICATE,
    )?;
    let key = user.client_key_data.as_ref().map(secrecy::SecretString::expose_secret);
    let key = files.data(kubeconfig, key, user.client_key.as_deref(), KEY)?;
    let (Some(certificate), Some(key)) = (certificate, key) else { return Ok(None) };
    let chain = certificates(&certificate, CERTIFICATE)?;
    let key = PrivateKeyDer::from_pem_slice(&key.bytes)
        .map_err(|_| KubeconfigError::Pem { what: KEY, origin: key.origin })?;
    Ok(Some(((chain, key), certificate.origin)))
}

fn token(user: Option<&AuthInfo>, files: &mut Files) -> Result<Option<String>, KubeconfigError> {
    use secrecy::ExposeSecret as _;
    let Some(user) = user else { return Ok(None) };
    let inline = user.token.as_ref().map(|token| token.expose_secret().to_owned());
    let text = match (inline, &user.token_file) {
        (Some(inline), _) => inline,
        (None, Some(file)) => {
            String::from_utf8(files.read(Path::new(file))?).map_err(|_| KubeconfigError::TokenText)?
        }
        (None, None) => return Ok(None),
    };
    let text = text.trim();
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn certificates(data: &Data, what: &'static str) -> Result<Vec<CertificateDer<'static>>, KubeconfigError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&data.bytes).collect();
    let all = all.ok().filter(|all| !all.is_empty());
    all.ok_or_else(|| KubeconfigError::Pem { what, origin: data.origin.clone() })
}

/// The names of which a server's certificate must have one: `tls-server-name` alone if it is given. Names of the loopback
/// do not count: any certificate that the authority has signed for a process of a node may have them.
fn names(server: &Server, given: Option<&str>) -> Result<Names, KubeconfigError> {
    let parse = |name: &str| ServerName::try_from(name.to_owned()).ok();
    if let Some(given) = given.filter(|name| !name.is_empty()) {
        return parse(given).map(Names::Only).ok_or_else(|| KubeconfigError::Name(given.to_owned()));
    }
    let is_loopback = |host: &&str| {
        *host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    let host = Some(server.host.as_str()).filter(|host| !is_loopback(host));
    Ok(Names::AnyOf(COMMON_NAMES.into_iter().chain(host).filter_map(parse).collect()))
}

#[cfg(test)]
mod tests;
