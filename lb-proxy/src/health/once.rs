//! Single checks, for callers with a schedule of their own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::verify_server_name;
use rustls::pki_types::ServerName;
use rustls::server::ParsedCertificate;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::accept_any;
use super::certificate;
use super::connect::connect;
use super::http::tls_error;
use super::outcome::{CheckFailure, Step, text};
use super::probe::{NetProbe, Probe as _};
use super::target::Target;

/// Checks `target` once, over a new connection and within its time limit. `mark` is the `SO_MARK` of the connection, 0 for
/// none. `Ok` means that the server is alive, whether it is ready or cannot tell this program.
///
/// # Errors
///
/// See [`CheckFailure`].
pub async fn check_once(target: &Target, mark: u32) -> Result<(), CheckFailure> {
    let mut probe = NetProbe::new(target, mark, settings()?);
    let limit = target.check().timeout;
    match timeout(limit, probe.check()).await {
        Ok(result) => result.map(drop),
        Err(_) => Err(CheckFailure::TimedOut { step: probe.step(), after: limit }),
    }
}

/// A server's certificate for a name that is not among the names in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misnamed {
    /// The name that the client asked for.
    pub name: ServerName<'static>,
    /// The reason for which a client rejects the certificate.
    pub reason: String,
}

/// Returns those of `names` for which the server at `server` shows a certificate that a client rejects because of its names
/// (RFC 9525). A server may have several certificates, and is asked for each name as a client does it, with the server name
/// indication where that is no address. Nothing else of the certificates is verified. Each connection may take `limit`.
///
/// # Errors
///
/// See [`CheckFailure`]: the server shows no certificate.
pub async fn misnamed(
    server: SocketAddr,
    mark: u32,
    names: &[ServerName<'static>],
    limit: Duration,
) -> Result<Vec<Misnamed>, CheckFailure> {
    let tls = settings()?;
    let mut found = Vec::new();
    for name in names {
        let mut step = Step::Connect;
        let asked =
            timeout(limit, reason_of_rejection(server, mark, name, Arc::clone(&tls), &mut step)).await;
        let reason = asked.map_err(|_| CheckFailure::TimedOut { step, after: limit })??;
        found.extend(reason.map(|reason| Misnamed { name: name.clone(), reason }));
    }
    Ok(found)
}

fn settings() -> Result<Arc<ClientConfig>, CheckFailure> {
    accept_any::client_config().map_err(|error| CheckFailure::Local(text(&error)))
}

async fn reason_of_rejection(
    server: SocketAddr,
    mark: u32,
    name: &ServerName<'static>,
    tls: Arc<ClientConfig>,
    step: &mut Step,
) -> Result<Option<String>, CheckFailure> {
    let stream = connect(server, mark).await?;
    *step = Step::Handshake;
    let stream = match TlsConnector::from(tls).connect(name.clone(), stream).await {
        Ok(stream) => stream,
        // A server that has a certificate for other names only may say so itself.
        Err(error) => match tls_error(&error) {
            Some(rustls::Error::AlertReceived(rustls::AlertDescription::UnrecognisedName)) => {
                return Ok(Some("it has none for this name".to_owned()));
            }
            Some(why) => return Err(CheckFailure::Tls(text(why))),
            None => return Err(CheckFailure::closed(Step::Handshake, &error)),
        },
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let shown = shown.ok_or_else(|| CheckFailure::Tls("no certificate".into()))?;
    let verified = ParsedCertificate::try_from(shown).and_then(|shown| verify_server_name(&shown, name));
    Ok(verified.err().map(|error| certificate::explain_error(&error)))
}
