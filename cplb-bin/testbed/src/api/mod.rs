//! A Kubernetes API with the endpoints that discovery of API servers uses: lists and watches of `default/kubernetes`,
//! and readiness.

mod authority;
mod cluster;
mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::watch;

pub use authority::{Authority, Identity, Validity};

use crate::{Error, Node, listen::listen};
use cluster::Cluster;

/// An API server on its own thread. Several may serve one cluster. Dropping it closes its port and its connections.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// The state that the servers of one cluster share.
#[derive(Debug, Clone)]
pub struct ApiCluster(Arc<Store>);

/// The way in which a server answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ApiBehaviour {
    /// Correctly.
    #[default]
    Serve,
    /// Correctly, after a delay.
    Slow(Duration),
    /// With a body that is not JSON.
    Garbage,
    /// With this HTTP status.
    Status(u16),
    /// Watches: sends the response headers and nothing more, without ever closing.
    HalfOpen,
    /// Watches: ends the response at once.
    EndsWatches,
    /// Watches: reports that the version is gone (410), however new it is.
    AlwaysGone,
    /// As an API server that does not have the EndpointSlice resource.
    WithoutSlices,
}

/// Requests so far, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ApiRequests {
    /// Lists of servers.
    pub lists: u64,
    /// Watches of the list.
    pub watches: u64,
    /// Requests for readiness.
    pub checks: u64,
    /// Requests without a valid credential.
    pub anonymous: u64,
}

#[derive(Debug)]
struct Store {
    cluster: Mutex<Cluster>,
    /// The cluster's current version.
    version: watch::Sender<u64>,
    token: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<Store>,
    behaviour: Mutex<ApiBehaviour>,
    readiness: Mutex<u16>,
    requests: Mutex<ApiRequests>,
}

impl ApiCluster {
    /// Creates a cluster whose object lists these servers.
    #[must_use]
    pub fn new(servers: &[SocketAddr]) -> Self {
        let cluster = Cluster::new(servers.iter().copied().collect());
        let version = watch::Sender::new(cluster.version());
        Self(Arc::new(Store { cluster: Mutex::new(cluster), version, token: Mutex::default() }))
    }

    /// Changes the servers that the object lists.
    pub fn set_servers(&self, servers: &[SocketAddr]) {
        self.change(Some(servers.iter().copied().collect()));
    }

    /// Deletes the object.
    pub fn delete(&self) {
        self.change(None);
    }

    /// Compacts the history away, so that a watch from an earlier version is answered that the version is gone.
    pub fn compact(&self) {
        let mut cluster = lock(&self.0.cluster);
        cluster.compact();
        self.0.version.send_replace(cluster.version());
    }

    /// Accepts this bearer token, and no other one, besides client certificates.
    pub fn set_token(&self, token: &str) {
        *lock(&self.0.token) = Some(token.to_owned());
    }

    fn change(&self, servers: Option<BTreeSet<SocketAddr>>) {
        let mut cluster = lock(&self.0.cluster);
        cluster.change(servers);
        self.0.version.send_replace(cluster.version());
    }
}

impl ApiServer {
    /// Serves the cluster at an address of this network namespace.
    ///
    /// # Errors
    /// [`Error::System`] if the address is in use; [`Error::Certificate`].
    pub fn start(
        cluster: &ApiCluster,
        address: SocketAddr,
        authority: &Authority,
        identity: &Identity,
    ) -> Result<Self, Error> {
        let acceptor = authority.acceptor(identity)?;
        let listener = listen(address).map_err(Error::system(format!("listen on {address}")))?;
        let address = listener.local_addr().map_err(Error::system(format!("listen on {address}")))?;
        let shared = Arc::new(Shared {
            store: Arc::clone(&cluster.0),
            behaviour: Mutex::default(),
            readiness: Mutex::new(200),
            requests: Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("api".to_owned())
            .spawn(move || server::run(listener, &acceptor, &serving, stopped))
            .map_err(Error::system("start an API server"))?;
        Ok(Self { address, shared, stop, thread: Some(thread) })
    }

    /// Like [`ApiServer::start`], in a node.
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub fn start_in(
        node: &Node,
        cluster: &ApiCluster,
        address: SocketAddr,
        authority: &Authority,
        identity: &Identity,
    ) -> Result<Self, Error> {
        // The sockets belong to the node's namespace, whichever thread polls them.
        node.try_run(|| Self::start(cluster, address, authority, identity))?
    }

    /// The address that the server listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the server's behaviour from now on.
    pub fn set_behaviour(&self, behaviour: ApiBehaviour) {
        *lock(&self.shared.behaviour) = behaviour;
    }

    /// Sets the HTTP status of readiness responses.
    pub fn set_readiness(&self, status: u16) {
        *lock(&self.shared.readiness) = status;
    }

    /// The requests so far.
    #[must_use]
    pub fn requests(&self) -> ApiRequests {
        *lock(&self.shared.requests)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A kubeconfig for a server, with the given authority and credential.
#[must_use]
pub fn kubeconfig(server: SocketAddr, authority: &Authority, credential: &Credential<'_>) -> String {
    let mut user = BTreeMap::new();
    match credential {
        Credential::Anonymous => {}
        Credential::Certificate(identity) => {
            user.insert("client-certificate-data", base64(identity.certificate_pem.as_bytes()));
            user.insert("client-key-data", base64(identity.key_pem.as_bytes()));
        }
        Credential::Token(token) => {
            user.insert("token", (*token).to_owned());
        }
    }
    // YAML is a superset of JSON.
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "default",
        "contexts": [{"name": "default", "context": {"cluster": "local", "user": "user"}}],
        "clusters": [{"name": "local", "cluster": {
            "server": format!("https://{server}"),
            "certificate-authority-data": base64(authority.pem().as_bytes()),
        }}],
        "users": [{"name": "user", "user": user}],
    })
    .to_string()
}

/// The credential that a client presents.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Credential<'a> {
    /// None.
    Anonymous,
    /// A client certificate.
    Certificate(&'a Identity),
    /// A bearer token.
    Token(&'a str),
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for position in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * position) & 63) as usize];
            text.push(if position <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_matches_rfc_4648_vectors() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(super::base64(bytes.as_bytes()), text, "RFC 4648 section 10");
        }
    }
}
