//! Reads a kubeconfig as far as it takes to ask API servers, and to prove to them who asks.
//!
//! The file may come late and change at any time: k0s writes it at its first start, and certificates are rotated.
//! Nothing of it is ever shown but names, paths and positions.

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

/// Every API server answers to these names, whoever made its certificate.
const COMMON_NAMES: [&str; 2] = ["kubernetes", "kubernetes.default.svc"];

/// What it takes to ask API servers of one cluster.
#[derive(Clone)]
pub(crate) struct Access {
    /// Where the file says that one is.
    pub(crate) server: Server,
    /// Verifies servers by the cluster's authority, and holds the user's certificate and token.
    pub(crate) trust: Trust,
    /// The state of the files that all this is from.
    seen: Vec<(PathBuf, Option<Stamp>)>,
}

/// The host and the port of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// An address or a name.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    length: u64,
    inode: u64,
}

/// Why a kubeconfig is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubeconfigError {
    /// It, or a file that it names, is not there (yet).
    #[error("{} does not exist", .0.display())]
    Absent(PathBuf),
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} has more than {MAX_SIZE} bytes", .0.display())]
    TooLong(PathBuf),
    /// What the parser says may quote the file.
    #[error("{}{position}: not a kubeconfig", path.display())]
    Parse { path: PathBuf, position: Position },
    #[error("no current-context is set, or it does not exist")]
    NoContext,
    #[error("the cluster of the current context does not exist")]
    NoCluster,
    #[error("the user of the current context does not exist")]
    NoUser,
    /// It may hold a password.
    #[error("the cluster's server is no URL of the form https://HOST:PORT, without a path")]
    Server,
    #[error("proxy-url is not supported: servers are asked directly")]
    Proxy,
    #[error("the cluster has no certificate-authority, by which servers could be verified")]
    NoAuthority,
    #[error("insecure-skip-tls-verify is not accepted: credentials would go to whoever answers")]
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
    /// Read, and refused by the TLS library.
    #[error("the {what} in {origin} cannot be used: {why}")]
    Refused { what: &'static str, origin: String, why: String },
    #[error("the token is no text")]
    TokenText,
    #[error("the tls-server-name {0:?} is no name")]
    Name(String),
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Line and column, if they are known.
#[derive(Debug)]
pub(crate) struct Position(Option<(u64, u64)>);

impl KubeconfigError {
    /// Whether it may be better later without anybody's doing.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent(_))
    }
}

impl Access {
    /// Reads the file and what it refers to. Waits for the disk.
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
            TrustError::Authority(why) => {
                KubeconfigError::Refused { what: AUTHORITY, origin: authority.origin.clone(), why }
            }
            TrustError::Identity(why) => {
                KubeconfigError::Refused { what: CERTIFICATE, origin: identity_origin, why }
            }
            other => other.into(),
        })?;
        Ok(Self { server, trust, seen: files.seen })
    }

    /// Whether a file that it was read from has changed since.
    pub(crate) fn is_outdated(&self) -> bool {
        self.seen.iter().any(|(path, stamp)| Stamp::of(path) != *stamp)
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
        // The library takes a port that is none for no port.
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let port = match authority.strip_prefix(host).ok_or_else(wrong)?.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?,
            None => HTTPS,
        };
        Ok(Self { host: host.trim_start_matches('[').trim_end_matches(']').to_owned(), port })
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let found = fs::metadata(path).ok()?;
        Some(Self { modified: found.modified().ok()?, length: found.len(), inode: found.ino() })
    }
}

/// Bytes with the file that they are from.
struct Data {
    bytes: Vec<u8>,
    origin: String,
}

/// Reads files and remembers which.
#[derive(Default)]
struct Files {
    seen: Vec<(PathBuf, Option<Stamp>)>,
}

impl Files {
    fn read(&mut self, path: &Path) -> Result<Vec<u8>, KubeconfigError> {
        // Before it is read: one that changes meanwhile is read again.
        self.seen.push((path.to_owned(), Stamp::of(path)));
        let fault = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => KubeconfigError::Absent(path.to_owned()),
            _ => KubeconfigError::Read { path: path.to_owned(), source },
        };
        let bytes = source::read_file(path, MAX_SIZE).map_err(fault)?;
        if bytes.len() > MAX_SIZE {
            return Err(KubeconfigError::TooLong(path.to_owned()));
        }
        Ok(bytes)
    }

    /// What is given in the file, or in another file.
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

/// The cluster and the user of the current context. A user may be missing: then nobody says who asks.
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

/// The client's certificate and key, with the place of the certificate.
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

/// The names by which a server may be known. One that the file gives is the only one. The loopback's are those of
/// everything that the authority has certified on a node.
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
mod tests {
    use testbed::api::{Authority, Credential, Validity, kubeconfig};

    use super::*;

    /// A file with the usual content, after a change.
    fn read(change: impl Fn(&mut serde_json::Value)) -> Result<Access, KubeconfigError> {
        let authority = Authority::new("cluster").unwrap();
        let client = authority.client("cplb", Validity::Now).unwrap();
        let text = kubeconfig(([10, 0, 0, 11], 6443).into(), &authority, &Credential::Certificate(&client));
        let mut file = serde_json::from_str(&text).unwrap();
        change(&mut file);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.conf");
        fs::write(&path, file.to_string()).unwrap();
        Access::read(&path)
    }

    fn refusal(change: impl Fn(&mut serde_json::Value)) -> String {
        read(change).expect_err("it should be refused").to_string()
    }

    #[test]
    fn what_is_of_no_use_is_refused_with_the_reason() {
        let user = |value: serde_json::Value| {
            move |file: &mut serde_json::Value| file["users"][0]["user"] = value.clone()
        };
        let cluster = |field: &'static str, value: serde_json::Value| {
            move |file: &mut serde_json::Value| file["clusters"][0]["cluster"][field] = value.clone()
        };
        use serde_json::json;
        assert!(
            refusal(user(json!({"exec": {"command": "aws", "apiVersion": "v1"}})))
                .contains("program \"aws\"")
        );
        assert!(refusal(user(json!({"auth-provider": {"name": "gcp"}}))).contains("provider \"gcp\""));
        assert!(refusal(user(json!({"username": "a", "password": "s3cret"}))).contains("password"));
        assert!(refusal(user(json!({"token": "two words"}))).contains("token"));
        assert!(
            refusal(cluster("insecure-skip-tls-verify", json!(true))).contains("insecure-skip-tls-verify")
        );
        assert!(
            refusal(cluster("certificate-authority-data", json!(null))).contains("no certificate-authority")
        );
        assert!(refusal(cluster("certificate-authority-data", json!("%"))).contains("not base64"));
        assert!(refusal(cluster("certificate-authority-data", json!("Zm9v"))).contains("not PEM"));
        assert!(refusal(cluster("server", json!("http://10.0.0.11"))).contains("https://HOST:PORT"));
        let secret = refusal(cluster("server", json!("https://admin:s3cret@10.0.0.11:6443")));
        assert!(secret.contains("https://HOST:PORT") && !secret.contains("s3cret"), "{secret}");
        assert!(refusal(cluster("proxy-url", json!("http://proxy"))).contains("proxy-url"));
        assert!(refusal(cluster("tls-server-name", json!("a b"))).contains("no name"));
        assert!(refusal(|file| file["current-context"] = json!(null)).contains("current-context"));
        assert!(refusal(|file| file["clusters"] = json!([])).contains("cluster of the current context"));
        assert!(refusal(|file| file["users"] = json!([])).contains("user of the current context"));
    }

    #[test]
    fn an_error_of_a_certificate_names_the_file_and_the_cause() {
        // The armour of a certificate around another content.
        let armoured = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.crt");
        fs::write(&ca, armoured).unwrap();
        let text = refusal(|file| {
            file["clusters"][0]["cluster"]["certificate-authority-data"] = serde_json::json!(null);
            file["clusters"][0]["cluster"]["certificate-authority"] = ca.display().to_string().into();
        });
        assert!(text.contains(&ca.display().to_string()) && text.contains("not a valid X.509"), "{text}");
        let text = refusal(|file| {
            file["clusters"][0]["cluster"]["certificate-authority-data"] = STANDARD.encode(armoured).into();
        });
        assert!(text.contains("admin.conf") && text.contains("not a valid X.509"), "{text}");
        let other = Authority::new("other").unwrap().client("other", Validity::Now).unwrap();
        let text = kubeconfig(
            ([10, 0, 0, 11], 6443).into(),
            &Authority::new("cluster").unwrap(),
            &Credential::Certificate(&other),
        );
        let other: serde_json::Value = serde_json::from_str(&text).unwrap();
        let text = refusal(|file| {
            let key = &other["users"][0]["user"]["client-key-data"];
            file["users"][0]["user"]["client-key-data"] = key.clone();
        });
        assert!(text.contains("admin.conf") && text.contains("the key is not that of"), "{text}");
    }

    #[test]
    fn who_says_nothing_of_a_user_is_anonymous() {
        assert!(read(|file| file["contexts"][0]["context"]["user"] = "".into()).is_ok());
        assert!(read(|file| file["users"][0]["user"] = serde_json::json!({})).is_ok());
    }

    #[test]
    fn nothing_of_the_file_is_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.conf");
        for text in ["users:\n- token: s3cret\n  - s3cret: [", "s3cret", "\u{0}s3cret", "users: s3cret\n"] {
            fs::write(&path, text).unwrap();
            let error = Access::read(&path).expect_err("it is no kubeconfig");
            for shown in [error.to_string(), format!("{error:?}")] {
                assert!(shown.contains("admin.conf") || shown.contains("context"), "{shown}");
                assert!(!shown.contains("s3cret"), "{shown}");
            }
        }
        let access = read(|file| file["users"][0]["user"]["token"] = "s3cret".into()).unwrap();
        let shown = format!("{access:?} {:?} {:?}", access.trust, access.trust.authorization());
        assert!(access.trust.authorization().is_some() && !shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn a_change_of_any_file_is_seen() {
        let authority = Authority::new("cluster").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let (path, ca) = (directory.path().join("admin.conf"), directory.path().join("ca.crt"));
        let text = kubeconfig(([10, 0, 0, 11], 6443).into(), &authority, &Credential::Anonymous);
        let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
        // Relative to the kubeconfig, as kubectl reads it.
        file["clusters"][0]["cluster"] =
            serde_json::json!({"server": "https://a:6443", "certificate-authority": "ca.crt"});
        fs::write(&path, file.to_string()).unwrap();
        assert!(Access::read(&path).unwrap_err().is_absent(), "it may come");
        fs::write(&ca, authority.pem()).unwrap();
        let access = Access::read(&path).unwrap();
        assert!(!access.is_outdated());
        fs::write(&ca, Authority::new("another").unwrap().pem().to_owned() + "\n").unwrap();
        assert!(access.is_outdated());
        let access = Access::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(access.is_outdated());
    }

    #[test]
    fn servers_have_hosts_and_ports() {
        let parse = |url: &str| Server::parse(url).map(|server| (server.host, server.port)).ok();
        assert_eq!(parse("https://[fd00::1]:6443"), Some(("fd00::1".into(), 6443)));
        assert_eq!(parse("https://api.example.com/"), Some(("api.example.com".into(), 443)));
        for wrong in [
            "",
            "10.0.0.1:6443",
            "http://a",
            "https://",
            "https://:6443",
            "https://a:99999",
            "https://a:0",
            "https://u@a",
            "https://a/k8s/clusters/b",
            "https://a/?b",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_loopback_is_no_name_of_a_server() {
        let named = |host: &str, given: Option<&str>| {
            names(&Server { host: host.into(), port: 6443 }, given).unwrap()
        };
        let of = |all: &[&str]| {
            Names::AnyOf(all.iter().map(|name| ServerName::try_from((*name).to_owned()).unwrap()).collect())
        };
        assert_eq!(named("localhost", None), of(&COMMON_NAMES));
        assert_eq!(named("127.0.0.1", None), of(&COMMON_NAMES));
        assert_eq!(
            named("api.example.com", None),
            of(&["kubernetes", "kubernetes.default.svc", "api.example.com"])
        );
        assert!(matches!(named("10.0.0.1", Some("other")), Names::Only(_)));
    }
}
