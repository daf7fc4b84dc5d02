//! Checks that verify the server and present credentials.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use lb_proxy::HealthKind;
use lb_proxy::health::{CheckFailure, Credentials, HealthState, Names, Target, Trust};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};

use super::servers::Server;
use super::{Watch, check, https, target};

const TOKEN: &str = "s3cret";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Authority {
    fn new() -> Self {
        Self::named("cluster")
    }

    fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn sign(&self, names: &[&str], usage: ExtendedKeyUsagePurpose, expired: bool) -> Identity {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![usage];
        if expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 12, 31);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (vec![certificate], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    fn server(&self, names: &[&str]) -> Identity {
        self.sign(names, ExtendedKeyUsagePurpose::ServerAuth, false)
    }

    fn client(&self) -> Identity {
        self.sign(&[], ExtendedKeyUsagePurpose::ClientAuth, false)
    }

    /// Accepts the name that the servers of k0s and kubeadm have.
    fn trust(&self, credentials: Credentials) -> Trust {
        let names = vec![ServerName::try_from("kubernetes").unwrap()];
        Trust::new([self.certificate.clone()], Names::AnyOf(names), credentials).unwrap()
    }
}

fn with_certificate(identity: Identity) -> Credentials {
    let mut credentials = Credentials::default();
    credentials.certificate = Some(identity);
    credentials
}

fn with_token() -> Credentials {
    let mut credentials = Credentials::default();
    credentials.token = Some(TOKEN.to_owned());
    credentials
}

/// The requests that a server received: whether with a client certificate, and with which `Authorization`.
type Requests = Arc<Mutex<Vec<(bool, Option<String>)>>>;

/// A server that identifies clients by the authority's certificates, or by the token, and answers anonymous requests
/// with the status `anonymous`.
fn serve(
    authority: &Authority,
    identity: Identity,
    versions: &[&'static SupportedProtocolVersion],
    anonymous: u16,
) -> (Server, Requests) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.clone()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let clients = clients.allow_unauthenticated().build().unwrap();
    let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let config = config.with_client_cert_verifier(clients).with_single_cert(identity.0, identity.1).unwrap();
    let requests = Requests::default();
    let seen = Arc::clone(&requests);
    let server = Server::tls(config, move |stream| {
        let has_certificate = stream.get_ref().1.peer_certificates().is_some();
        let seen = Arc::clone(&seen);
        let answer = service_fn(move |request: Request<Incoming>| {
            let authorization =
                request.headers().get("authorization").map(|it| it.to_str().unwrap().to_owned());
            let known = has_certificate || authorization.as_deref() == Some("Bearer s3cret");
            seen.lock().unwrap().push((has_certificate, authorization));
            let status = if known { 200 } else { anonymous };
            async move {
                let body = Full::new(Bytes::from_static(b"ok"));
                Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
            }
        });
        async move {
            let connection = hyper::server::conn::http1::Builder::new();
            let _ = connection.serve_connection(TokioIo::new(stream), answer).await;
        }
    });
    (server, requests)
}

fn verifying(addr: SocketAddr, kind: HealthKind, trust: Trust) -> Target {
    target(addr, check(kind)).with_trust(Some(trust))
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

#[tokio::test]
async fn no_credential_is_shown_while_anonymous_requests_are_answered() {
    let authority = Authority::new();
    for credentials in [with_certificate(authority.client()), with_token()] {
        let (server, requests) = serve(&authority, authority.server(&["kubernetes"]), &VERSIONS, 200);
        let mut watch = Watch::new([verifying(server.addr, https(), authority.trust(credentials))]);
        assert_eq!(watch.state().await, HealthState::Up);
        watch.after_checks(3).await;
        assert!(requests.lock().unwrap().iter().all(|it| *it == (false, None)), "{requests:?}");
    }
}

#[tokio::test]
async fn credentials_are_shown_after_401_or_403_to_a_verified_server() {
    let authority = Authority::new();
    for (version, anonymous) in VERSIONS.into_iter().zip([401, 403]) {
        let identity = authority.server(&["127.0.0.1"]);
        let (server, requests) = serve(&authority, identity, &[version], anonymous);
        for (credentials, known) in [
            (with_certificate(authority.client()), (true, None)),
            (with_token(), (false, Some("Bearer s3cret"))),
        ] {
            requests.lock().unwrap().clear();
            let before = server.accepted();
            let mut watch = Watch::new([verifying(server.addr, https(), authority.trust(credentials))]);
            assert_eq!(watch.state().await, HealthState::Up);
            watch.after_checks(3).await;
            watch.assert_quiet();
            let requests = requests.lock().unwrap().clone();
            assert_eq!(requests[0], (false, None), "the first request is anonymous");
            assert!(requests[1..].iter().all(|it| (it.0, it.1.as_deref()) == known), "{requests:?}");
            assert_eq!(server.accepted() - before, 2, "one anonymous and one identified connection");
        }
        let trust = authority.trust(Credentials::default());
        let mut anonymous = Watch::new([verifying(server.addr, https(), trust)]);
        assert_eq!(anonymous.state().await, HealthState::UpUnready);
    }
}

#[tokio::test]
async fn a_backend_whose_certificate_is_not_accepted_is_down_and_sees_no_request() {
    let (authority, other) = (Authority::new(), Authority::named("another"));
    let expired = authority.sign(&["kubernetes"], ExtendedKeyUsagePurpose::ServerAuth, true);
    for (identity, why) in [
        (other.server(&["kubernetes"]), "did not sign it"),
        (expired, "expired"),
        (authority.server(&["kubelet", "10.0.0.1"]), "it is for other names: kubelet, 10.0.0.1"),
        // A client certificate does not identify a server.
        (authority.sign(&["kubernetes"], ExtendedKeyUsagePurpose::ClientAuth, false), "extended key usage"),
    ] {
        let (server, requests) = serve(&authority, identity, &VERSIONS, 401);
        let mut credentials = with_certificate(authority.client());
        credentials.token = Some(TOKEN.to_owned());
        let mut watch = Watch::new([verifying(server.addr, https(), authority.trust(credentials))]);
        let HealthState::Down { reason: reason @ CheckFailure::Untrusted(_) } = watch.state().await else {
            panic!("{why}: the backend should be down")
        };
        assert!(reason.to_string().contains(why), "{why}: {reason}");
        watch.after_checks(3).await;
        assert!(requests.lock().unwrap().is_empty(), "{requests:?}");
        // A TLS check verifies no certificate.
        let tls = verifying(server.addr, HealthKind::Tls, authority.trust(Credentials::default()));
        assert_eq!(Watch::new([tls]).state().await, HealthState::Up);
    }
}

/// In a handshake, too, only a verified server can demand a certificate.
#[tokio::test]
async fn an_alert_of_an_unverified_server_is_no_sign_of_life() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let authority = Authority::new();
    // RFC 8446 section 6: fatal, unknown_ca.
    let server = Server::tcp(|mut stream| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(&[0x15, 3, 3, 0, 2, 2, 48]).await;
    });
    let trust = authority.trust(with_certificate(authority.client()));
    let mut watch = Watch::new([verifying(server.addr, https(), trust)]);
    let status = watch.state().await;
    assert!(matches!(status, HealthState::Down { reason: CheckFailure::Tls(_) }), "{status}");
    // Without verification the alert shows that a TLS server is alive.
    let mut unverified = Watch::new([target(server.addr, check(https()))]);
    assert_eq!(unverified.state().await, HealthState::UpUnready);
}

#[tokio::test]
async fn only_the_expected_statuses_are_ready() {
    let authority = Authority::new();
    let (server, _) = serve(&authority, authority.server(&["kubernetes"]), &VERSIONS, 401);
    let expecting = |statuses: &[u16]| {
        let kind = HealthKind::Https { path: "/readyz".to_owned(), statuses: statuses.to_vec() };
        Watch::new([target(server.addr, check(kind))])
    };
    assert_eq!(expecting(&[200, 401]).state().await, HealthState::Up);
    let reason = CheckFailure::Status(401);
    assert_eq!(expecting(&[200, 403]).state().await, HealthState::Down { reason });
    // The expected statuses are those of identified requests.
    let kind = HealthKind::Https { path: "/readyz".to_owned(), statuses: vec![200] };
    let target = verifying(server.addr, kind, authority.trust(with_token()));
    assert_eq!(Watch::new([target]).state().await, HealthState::Up);
}

#[test]
fn unusable_tokens_and_authorities_are_refused() {
    let authority = Authority::new();
    let names = || Names::AnyOf(Vec::new());
    for token in ["", "two words", "line\r\nbreak", "\u{e9}"] {
        let mut credentials = Credentials::default();
        credentials.token = Some(token.to_owned());
        assert!(Trust::new([authority.certificate.clone()], names(), credentials).is_err(), "{token:?}");
    }
    let garbage = CertificateDer::from(vec![1, 2, 3]);
    assert!(Trust::new([garbage], names(), Credentials::default()).is_err());
    assert!(
        Trust::new([], names(), Credentials::default()).is_err(),
        "an empty set of authorities verifies no server"
    );
    let shown = format!("{:?} {:?}", with_token(), authority.trust(with_token()));
    assert!(!shown.contains(TOKEN), "{shown}");
}
