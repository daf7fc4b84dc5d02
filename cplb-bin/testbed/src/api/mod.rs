//! A Kubernetes API that serves what finding API servers takes: lists and watches of `default/kubernetes`, and readiness.

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

/// An API server, on a thread of its own. Several may serve one cluster. Dropping it closes its port and its connections.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// What servers of one cluster have in common.
#[derive(Debug, Clone)]
pub struct ApiCluster(Arc<Store>);

/// How a server answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ApiBehaviour {
    /// As it should.
    #[default]
    Serve,
    /// As it should, after a while.
    Slow(Duration),
    /// With what is no JSON.
    Garbage,
    /// With this status.
    Status(u16),
    /// To watches with the head of an answer, and nothing more, for ever.
    HalfOpen,
    /// To watches with an answer that ends at once.
    EndsWatches,
    /// To watches that their version is gone (410), however new it is.
    AlwaysGone,
    /// As one that knows no EndpointSlices.
    WithoutSlices,
}

/// Requests so far, by what was asked.
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
    /// The version that the cluster has.
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
    /// One whose object lists these servers.
    #[must_use]
    pub fn new(servers: &[SocketAddr]) -> Self {
        let cluster = Cluster::new(servers.iter().copied().collect());
        let version = watch::Sender::new(cluster.version());
        Self(Arc::new(Store { cluster: Mutex::new(cluster), version, token: Mutex::default() }))
    }

    /// Changes what the object lists.
    pub fn set_servers(&self, servers: &[SocketAddr]) {
        self.change(Some(servers.iter().copied().collect()));
    }

    /// Deletes the object.
    pub fn delete(&self) {
        self.change(None);
    }

    /// Forgets what has happened, so that who watches from an earlier version is told that it is gone.
    pub fn forget(&self) {
        let mut cluster = lock(&self.0.cluster);
        cluster.forget();
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
    /// [`Error::System`] if it is taken; [`Error::Certificate`].
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
    /// As there.
    pub fn start_in(
        node: &Node,
        cluster: &ApiCluster,
        address: SocketAddr,
        authority: &Authority,
        identity: &Identity,
    ) -> Result<Self, Error> {
        // Its sockets are the node's, whichever thread waits for them.
        node.try_run(|| Self::start(cluster, address, authority, identity))?
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes how it answers from now on.
    pub fn set_behaviour(&self, behaviour: ApiBehaviour) {
        *lock(&self.shared.behaviour) = behaviour;
    }

    /// The status that readiness is answered with.
    pub fn set_readiness(&self, status: u16) {
        *lock(&self.shared.readiness) = status;
    }

    /// What it was asked so far.
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

/// A kubeconfig for a server, with what else is given.
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

/// How a client says who it is.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Credential<'a> {
    /// Not at all.
    Anonymous,
    /// By a certificate.
    Certificate(&'a Identity),
    /// By a bearer token.
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
    fn bytes_become_text() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(super::base64(bytes.as_bytes()), text, "RFC 4648 section 10");
        }
    }
}
