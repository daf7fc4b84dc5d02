//! Real and hostile servers to be checked, on loopback.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A listener on a free port of 127.0.0.1 that hands each connection to a task of its own.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Must be called on a tokio runtime.
    pub(crate) fn tcp<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Self::on(listener, serve)
    }

    /// Serves on `listener`.
    pub(crate) fn on<F: Future<Output = ()> + Send + 'static>(
        listener: std::net::TcpListener,
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Self {
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (count, handles) = (Arc::clone(&accepted), Arc::clone(&connections));
        let task = tokio::spawn(async move {
            let mut tasks = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                handles.lock().unwrap().push(tasks.spawn(serve(stream)));
                while tasks.try_join_next().is_some() {}
            }
        });
        Self { addr, accepted, connections, task }
    }

    pub(crate) fn tls<F: Future<Output = ()> + Send + 'static>(
        tls: ServerConfig,
        serve: impl Fn(TlsStream<TcpStream>) -> F + Clone + Send + Sync + 'static,
    ) -> Self {
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        Self::tcp(move |stream| {
            let (acceptor, serve) = (acceptor.clone(), serve.clone());
            async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream).await;
                }
            }
        })
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Closes its connections, like a restarting proxy in front of it.
    pub(crate) fn hang_up(&self) {
        self.connections.lock().unwrap().drain(..).for_each(|task| task.abort());
    }

    /// Ends like a killed process: no listener, no connections.
    pub(crate) async fn kill(self) -> SocketAddr {
        self.hang_up();
        self.task.abort();
        let _ = self.task.await;
        self.addr
    }
}

/// The response of an [`Api`].
#[derive(Clone)]
pub(crate) struct Behaviour {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
    pub(crate) delay: Duration,
    pub(crate) close: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { status: 200, body: Bytes::from_static(b"ok"), delay: Duration::ZERO, close: false }
    }
}

/// An HTTPS server like a kube-apiserver's health endpoints.
pub(crate) struct Api {
    pub(crate) server: Server,
    behaviour: Arc<Mutex<Behaviour>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Api {
    pub(crate) fn new() -> Self {
        Self::with(tls())
    }

    pub(crate) fn with(tls: ServerConfig) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Self::on(listener, tls)
    }

    pub(crate) fn on(listener: std::net::TcpListener, tls: ServerConfig) -> Self {
        let behaviour = Arc::new(Mutex::new(Behaviour::default()));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let (how, seen) = (Arc::clone(&behaviour), Arc::clone(&requests));
        let server = Server::on(listener, move |stream| {
            serve(stream, acceptor.clone(), Arc::clone(&how), Arc::clone(&seen))
        });
        Self { server, behaviour, requests }
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    /// The requested paths so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    behaviour: Arc<Mutex<Behaviour>>,
    requests: Arc<Mutex<Vec<String>>>,
) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = service_fn(move |request: Request<Incoming>| {
        let host = request.headers()["host"].to_str().unwrap();
        requests.lock().unwrap().push(format!("{host} {}", request.uri()));
        let Behaviour { status, body, delay, close } = behaviour.lock().unwrap().clone();
        async move {
            tokio::time::sleep(delay).await;
            let mut response = Response::builder().status(status);
            if close {
                response = response.header("connection", "close");
            }
            Ok::<_, Infallible>(response.body(Full::new(body)).unwrap())
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// The part of TLS that a server offers.
pub(crate) fn tls_with(
    versions: &[&'static SupportedProtocolVersion],
    algorithm: &'static rcgen::SignatureAlgorithm,
    demand_certificate: bool,
) -> ServerConfig {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["other.example".to_owned()]).unwrap();
    // Expired, for another name, self-signed: a check without trust accepts each of them.
    params.not_before = rcgen::date_time_ymd(1999, 1, 1);
    params.not_after = rcgen::date_time_ymd(2000, 1, 1);
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions).unwrap();
    let builder = if demand_certificate {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    builder.with_single_cert(vec![certificate], key.into()).unwrap()
}

pub(crate) fn tls() -> ServerConfig {
    tls_with(rustls::ALL_VERSIONS, &rcgen::PKCS_ECDSA_P256_SHA256, false)
}

/// An address where SYNs are dropped: the queue of a listener that never accepts is full.
pub(crate) struct BlackHole {
    pub(crate) addr: SocketAddr,
    _listener: socket2::Socket,
    _queued: Vec<socket2::Socket>,
}

impl BlackHole {
    pub(crate) fn new() -> Self {
        let new = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let listener = new();
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let addr = listener.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        // One connection fits the queue of length 0; the loop finds its end.
        for _ in 0..8 {
            let socket = new();
            let full = socket.connect_timeout(&addr.into(), Duration::from_millis(200)).is_err();
            queued.push(socket);
            if full {
                return Self { addr, _listener: listener, _queued: queued };
            }
        }
        panic!("the queue of {addr} does not fill");
    }
}
