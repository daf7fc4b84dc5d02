//! One check of one backend, by its kind.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate;
use super::connect::connect;
use super::http::{KeptConnection, ProbeRequest, certificate_demanded, tls_error};
use super::outcome::{Answer, CheckFailure, Step, text};
use super::target::{Method, Target};
use super::trust::{ServerTls, Trust};

/// The interface of a check to the task of its target. Dropping the future of a check abandons its connection.
pub(super) trait Probe: Send + 'static {
    /// Checks once, without a limit of time.
    fn check(&mut self) -> impl Future<Output = Result<Answer, CheckFailure>> + Send;

    /// The current step of the check, or the last one of the previous check.
    fn step(&self) -> Step;

    /// Returns when, between two checks, a connection that had worked before is lost, which justifies a check at once.
    /// May never return.
    fn connection_lost(&mut self) -> impl Future<Output = ()> + Send;
}

/// A check over real sockets.
pub(super) struct NetProbe {
    backend: SocketAddr,
    mark: u32,
    /// The settings without verification.
    tls: Arc<ClientConfig>,
    trust: Option<Trust>,
    /// Set once the server has refused anonymous requests.
    identified: bool,
    method: Method,
    step: Step,
    kept: Option<KeptConnection>,
}

impl NetProbe {
    pub(super) fn new(target: &Target, mark: u32, tls: Arc<ClientConfig>) -> Self {
        Self {
            backend: target.key().backend,
            mark,
            tls,
            trust: target.trust().cloned(),
            identified: false,
            method: target.method().clone(),
            step: Step::Connect,
            kept: None,
        }
    }

    /// The TLS settings for a handshake.
    fn tls(&self) -> ServerTls {
        let address = self.backend.ip();
        match (&self.trust, &self.method) {
            (Some(trust), Method::Https(_)) => trust.tls_at(address, self.identified),
            _ => ServerTls::unverified(Arc::clone(&self.tls), address),
        }
    }

    async fn connect(&mut self) -> Result<TcpStream, CheckFailure> {
        self.step = Step::Connect;
        connect(self.backend, self.mark).await
    }

    /// Completes a TLS handshake; `None` if the server is alive but demands a client certificate.
    async fn handshake(&mut self) -> Result<Option<TlsStream<TcpStream>>, CheckFailure> {
        let stream = self.connect().await?;
        self.step = Step::Handshake;
        let tls = self.tls();
        match TlsConnector::from(Arc::clone(&tls.config)).connect(tls.name.clone(), stream).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if certificate_demanded(&error) && tls.is_alert_trusted() => Ok(None),
            Err(error) => Err(match tls_error(&error) {
                Some(rustls::Error::InvalidCertificate(why)) => {
                    CheckFailure::Untrusted(certificate::explain(why).into())
                }
                Some(why) => CheckFailure::Tls(text(why)),
                None => CheckFailure::closed(Step::Handshake, &error),
            }),
        }
    }

    async fn https(&mut self, request: &ProbeRequest) -> Result<Answer, CheckFailure> {
        let answer = self.answer(request).await;
        // The configuration may expect other statuses from identified requests.
        let denied = matches!(answer, Ok(Answer::Denied) | Err(CheckFailure::Status(401 | 403)));
        let known = self.identified || !self.trust.as_ref().is_some_and(Trust::has_credentials);
        if !denied || known {
            return answer;
        }
        // The next connection verifies the server again before it presents a credential.
        (self.identified, self.kept) = (true, None);
        self.answer(request).await
    }

    async fn answer(&mut self, request: &ProbeRequest) -> Result<Answer, CheckFailure> {
        let trust = self.trust.as_ref().filter(|_| self.identified);
        let authorization = trust.and_then(Trust::authorization).cloned();
        if let Some(kept) = self.kept.take() {
            self.step = Step::Response;
            // The server may close a kept connection at any time, even during a request (RFC 9112 section 9.5): only a
            // failure of a new connection says something about the server.
            if let Ok((result, kept)) = kept.send(request, authorization.as_ref()).await {
                self.kept = kept;
                return result;
            }
        }
        let Some(stream) = self.handshake().await? else { return Ok(Answer::Denied) };
        self.step = Step::Response;
        let (result, kept) = KeptConnection::new(stream).await?.send(request, authorization.as_ref()).await?;
        self.kept = kept;
        result
    }
}

impl Probe for NetProbe {
    async fn check(&mut self) -> Result<Answer, CheckFailure> {
        match self.method.clone() {
            Method::Tcp => self.connect().await.map(|_| Answer::Ready),
            // A server that demands a certificate speaks TLS, which is all that this check examines.
            Method::Tls => self.handshake().await.map(|_| Answer::Ready),
            Method::Https(request) => self.https(&request).await,
        }
    }

    fn step(&self) -> Step {
        self.step
    }

    async fn connection_lost(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.closed().await;
            // A server that closes after each response must not be checked ten times as often.
            let has_been_reused = kept.responses() > 1;
            self.kept = None;
            if has_been_reused {
                return;
            }
        }
        std::future::pending::<()>().await;
    }
}
