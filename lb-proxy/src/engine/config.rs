//! Configuration of the balancer: options of the process, services and backends.
//!
//! Plain values without behaviour, public fields and defaults; `LoadBalancer::start` checks them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::balance::Balance;
use crate::check::HealthCheck;
use crate::health::Trust;

/// Settings that all services of one `LoadBalancer` share. They hold until it stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Number of worker threads, 1 to 64; 0 means one for each processor, at most 4.
    pub workers: usize,
    /// `SO_MARK` of every socket towards a backend; 0 sets none. [`crate::MARK`] keeps clear of the bits that
    /// kube-proxy and the network plugins use.
    ///
    /// The rules of the nftables table let packets with this mark pass, so that the proxy cannot reach itself through
    /// the virtual address. Needs `CAP_NET_ADMIN`; without it an `Event::MarkRefused` is sent once.
    pub mark: u32,
    /// Lets listeners on all addresses accept the connections that nftables assigns to them by `tproxy`, whatever their
    /// port ([`crate::nft::Delivery::Transparent`]): sets `IP_TRANSPARENT`. Needs `CAP_NET_ADMIN` or `CAP_NET_RAW`;
    /// without either an `Event::TransparentRefused` is sent once, and the listeners are ordinary ones.
    pub transparent: bool,
    /// Addresses that are never a backend: the virtual IPs. A backend with one of them is dropped with an event.
    pub forbidden: Vec<IpAddr>,
    /// `TCP_CONGESTION` of the sockets towards backends, for example `cubic`; `None` keeps the system's choice.
    pub congestion: Option<String>,
    /// The way in which payload moves between the two sockets of a pair.
    ///
    /// Pipes take at most a quarter of the descriptors that the process may open when the balancer starts
    /// (`RLIMIT_NOFILE`), and are at most 256 for each worker. Beyond that payload goes through a buffer.
    pub relay: RelayMode,
    /// Idle time before TCP keepalive probes, on both sides, at least 1 s. Three probes, a third of this apart but at
    /// least 1 s, then reset: a vanished idle peer is detected after twice this time.
    ///
    /// A peer that vanishes while it owes an acknowledgement is detected when the kernel gives up retransmitting
    /// (`net.ipv4.tcp_retries2`, about 15 minutes). If it is a backend, its checks have reset its sessions long before.
    pub keepalive: Duration,
    /// `TCP_USER_TIMEOUT` on both sides, in whole milliseconds; zero, the default, sets none.
    ///
    /// With one, data that stays unacknowledged for this long ends the session, and a silent peer is found after
    /// this time instead of three probes. But Linux also ends the session of a peer that is alive, acknowledges every
    /// probe of its closed window and merely does not read for this long: a paused client, a log follower behind a
    /// pager. Choose none, or at least a quarter of an hour.
    pub user_timeout: Duration,
    /// Time for which a listener that [`crate::LoadBalancer::reconfigure`] no longer lists goes on accepting for its
    /// service, so that clients that still use its port are not refused. At most 1 h; zero closes it at once.
    ///
    /// The service's backends are those of the new configuration, or its last ones if it was removed. A port on which a
    /// backend of the new configuration is to listen on this node is closed at once.
    pub linger: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            workers: 0,
            mark: 0,
            transparent: false,
            forbidden: Vec::new(),
            congestion: None,
            relay: RelayMode::Auto,
            keepalive: Duration::from_secs(15),
            user_timeout: Duration::ZERO,
            linger: Duration::from_secs(2),
        }
    }
}

/// The way in which payload moves between the two sockets of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RelayMode {
    /// Small traffic through a buffer, bulk traffic through a pipe with `splice(2)`; decided for each direction.
    #[default]
    Auto,
    /// Always through a buffer.
    Copy,
    /// Always through a pipe, as long as there are any; see [`Options::relay`].
    Splice,
}

/// One balanced TCP service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Unique name; identifies the service over reconfigurations, in events and in statistics.
    pub name: String,
    /// Addresses to accept on. `[::]` is dual-stack and falls back to `0.0.0.0` where IPv6 is disabled.
    pub listen: Vec<SocketAddr>,
    /// The servers behind it. May be empty: clients are then refused.
    pub backends: Vec<Backend>,
    /// The algorithm that chooses a backend.
    pub balance: Balance,
    /// The health check of each backend.
    pub health: HealthCheck,
    /// Verifies the servers that answer HTTPS checks, and authenticates this program to them. `None`, the default,
    /// verifies no server and presents no credential.
    pub trust: Option<Trust>,
    /// Time after which a connect to one backend counts as failed.
    pub connect_timeout: Duration,
    /// Time after which the next backend is tried beside an unanswered connect.
    pub hedge_after: Duration,
    /// Time over which a recovered backend gets its full share again; zero for at once.
    pub slow_start: Duration,
    /// Client connections that may be open at once; further ones are reset as soon as they are accepted. `None`, the
    /// default, and more than that mean what the descriptors that the process has when the balancer starts
    /// (`RLIMIT_NOFILE`) allow all services together. A change ends no open connection.
    pub max_connections: Option<usize>,
    /// Of these, connections from one client address; `None`, the default, sets no such limit. Connections that were
    /// accepted while there was none are not counted.
    pub max_connections_per_client: Option<usize>,
}

impl Service {
    /// A service with the default balancing, health check and timings: connect timeout 2 s, next backend after
    /// 200 ms, slow start over 10 s.
    pub fn new(name: impl Into<String>, listen: Vec<SocketAddr>, backends: Vec<Backend>) -> Self {
        Service {
            name: name.into(),
            listen,
            backends,
            balance: Balance::default(),
            health: HealthCheck::default(),
            trust: None,
            connect_timeout: Duration::from_secs(2),
            hedge_after: Duration::from_millis(200),
            slow_start: Duration::from_secs(10),
            max_connections: None,
            max_connections_per_client: None,
        }
    }
}

/// One server behind a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The address it listens on. Identifies the backend within its service.
    pub addr: SocketAddr,
    /// Share of connections under [`Balance::Weighted`] and [`Balance::SourceHash`]. 0 drains the backend: it gets no
    /// new connections, and its open ones continue.
    pub weight: u32,
    /// A name for people, for example the controller's host name.
    pub name: Option<String>,
}

impl Backend {
    /// A backend of weight 1 without a name.
    pub fn new(addr: SocketAddr) -> Self {
        Backend { addr, weight: 1, name: None }
    }
}

impl From<SocketAddr> for Backend {
    fn from(addr: SocketAddr) -> Self {
        Backend::new(addr)
    }
}
