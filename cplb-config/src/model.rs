//! The validated configuration, the result of all three kinds of input.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lb_proxy::{Balance, HealthCheck};
use netlink_vip::{AddressLabel, InterfaceSelector, VipAddress};
use vrrp::hmac::{AntiReplay, HmacConfig, HmacConfigError, Key, KeyError, KeyId, Mode};
use vrrp::router::Preempt;
use vrrp::{AdvertInterval, AuthPass, Priority, Version, Vrid};

/// The name of the API servers' service, which is balanced if none is listed.
pub(crate) const API_SERVICE: &str = "kube-apiserver";

/// A configuration of the daemon. Every default is filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Virtual routers; VRIDs and addresses are unique among them. None makes a plain load balancer.
    pub instances: Vec<Instance>,
    /// Virtual IPs that the kernel's IPVS balances instead of the userspace proxy.
    pub virtual_servers: Vec<VirtualServer>,
    /// Keep the IPVS connections of all nodes in step, so that those through direct routing and tunnels outlive a
    /// failover.
    pub ipvs_sync: bool,
    /// Only move the virtual IPs; balance nothing.
    pub disable_load_balancer: bool,
    /// The address or name by which clients reach the API servers, if it is configured; their certificates should have it.
    pub external_address: Option<Host>,
    /// First port the userspace proxy binds; where services got their default bind ports from.
    pub proxy_bind_port: Port,
    /// The address of the node at which other hosts reach the bind ports themselves; unspecified for all of its family,
    /// `::` for all. `None`: where there are virtual IPs none, else all.
    pub bind_address: Option<IpAddr>,
    /// The balanced services. Names, ports and bind ports are unique.
    pub services: Vec<Service>,
    /// The servers behind every service that has none of its own.
    pub backends: Backends,
    /// The address of the status page, if it is served.
    pub status_listen: Option<SocketAddr>,
}

/// One virtual router: addresses that move together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The virtual IPs in the order they are advertised, at least one; IPv4, IPv6 or both.
    pub virtual_ips: Vec<VipAddress>,
    /// The interface that gets them.
    pub interface: InterfaceSelector,
    /// VRRP virtual router identifier.
    pub vrid: Vrid,
    /// Version of the IPv4 advertisements; IPv6 is always version 3 (RFC 9568 §1). Version 3 if there is no IPv4.
    pub version: Version,
    /// Time between advertisements.
    pub advert_interval: AdvertInterval,
    /// 50 to 254; a fifth of it is advertised while the node cannot serve.
    pub priority: Priority,
    /// The conditions under which a Backup takes the addresses from an Active that still advertises.
    pub preempt: Preempt,
    /// Password of version 2 advertisements.
    pub auth_pass: Option<AuthPass>,
    /// The former password, which is accepted and sent, too, while it is rotated.
    pub auth_pass_previous: Option<AuthPass>,
    /// Signatures of advertisements.
    pub auth_hmac: Option<AuthHmac>,
    /// Advertise to these peers instead of by multicast.
    pub unicast: Option<Unicast>,
    /// RFC 6724 label of the IPv6 addresses.
    pub address_label: AddressLabel,
}

/// Signatures of advertisements (`auth_hmac` of keepalived 2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthHmac {
    /// 1 to 4 keys.
    pub keys: BTreeMap<KeyId, HmacKey>,
    /// The key of the first copy; one of `keys`.
    pub active: KeyId,
    /// The use of signatures.
    pub mode: Mode,
    /// The protection against replay.
    pub anti_replay: AntiReplay,
    /// The largest difference between a time of signing and this node's clock, 1 to 300 s.
    pub window: Duration,
}

/// A key, or the place where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HmacKey {
    /// The key itself.
    Inline(Key),
    /// A file with a key in the form that [`HmacKey::parse`] reads, by its absolute path.
    File(PathBuf),
}

/// A text that is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HmacKeyError {
    /// The text behind `hex:` has an odd length or a character that is no hexadecimal digit.
    #[error("`hex:` is followed by pairs of hexadecimal digits")]
    Hex,
    /// The length is out of range.
    #[error(transparent)]
    Length(#[from] KeyError),
}

impl HmacKey {
    /// Reads a key: `hex:` and 64 to 128 digits, or a text of 32 to 64 bytes. A line break at the end, as files have
    /// it, does not count.
    ///
    /// # Errors
    /// [`HmacKeyError`] if the digits are wrong or the key is too short or too long.
    pub fn parse(text: &str) -> Result<Key, HmacKeyError> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        let Some(digits) = text.strip_prefix("hex:") else {
            return Ok(Key::new(text.as_bytes())?);
        };
        let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let bytes: Option<Vec<u8>> =
            pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
        match bytes {
            Some(bytes) if rest.is_empty() => Ok(Key::new(&bytes)?),
            _ => Err(HmacKeyError::Hex),
        }
    }
}

impl AuthHmac {
    /// Replaces the files by the keys in them. `read` gives the key of a file.
    ///
    /// # Errors
    /// The first error of `read`.
    pub fn read_files<E>(&mut self, read: impl Fn(&Path) -> Result<Key, E>) -> Result<(), E> {
        for key in self.keys.values_mut() {
            if let HmacKey::File(path) = key {
                *key = HmacKey::Inline(read(path)?);
            }
        }
        Ok(())
    }

    /// The configuration of the router's signatures.
    ///
    /// # Errors
    /// [`HmacConfigError`] if the active key is missing; a key that stands in a file counts as missing.
    pub fn to_config(&self) -> Result<HmacConfig, HmacConfigError> {
        let inline = |(id, key): (&KeyId, &HmacKey)| match key {
            HmacKey::Inline(key) => Some((*id, key.clone())),
            HmacKey::File(_) => None,
        };
        let mut config =
            HmacConfig::new(self.keys.iter().filter_map(inline).collect(), self.active, Duration::ZERO)?;
        (config.mode, config.anti_replay, config.window) = (self.mode, self.anti_replay, self.window);
        Ok(config)
    }
}

/// Unicast advertisements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unicast {
    /// Source address; `None` takes the interface's.
    pub source: Option<IpAddr>,
    /// The other routers.
    pub peers: UnicastPeers,
}

/// The routers that unicast advertisements go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnicastPeers {
    /// These, at least one; none of them is the source or a virtual IP.
    Listed(Vec<IpAddr>),
    /// The other controllers: the backends, the servers that are discovered, and controllers that report themselves.
    Auto,
}

/// A virtual IP balanced by IPVS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    /// The virtual IP.
    pub address: IpAddr,
    /// Longest time between two health checks of what it balances, in whole microseconds, above zero. The intervals of
    /// [`Config::services`] are limited by it already.
    pub delay_loop: Duration,
    /// Scheduling algorithm.
    pub algorithm: LbAlgorithm,
    /// Forwarding method.
    pub kind: LbKind,
    /// The time that a client stays with its server: 1 to 2,678,400 s (31 days). `None` chooses for each connection,
    /// which only the native document can express.
    pub persistence_timeout: Option<Duration>,
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// Every value with its word in the configuration.
            pub const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),+];

            /// The word in the configuration.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words! {
    /// IPVS scheduler of a [`VirtualServer`].
    LbAlgorithm {
        /// Round robin.
        RoundRobin = "rr",
        /// Weighted round robin.
        WeightedRoundRobin = "wrr",
        /// Least connections.
        LeastConnections = "lc",
        /// Weighted least connections.
        WeightedLeastConnections = "wlc",
        /// Locality-based least connections.
        LocalityBasedLeastConnections = "lblc",
        /// Destination hashing.
        DestinationHashing = "dh",
        /// Source hashing.
        SourceHashing = "sh",
        /// Shortest expected delay.
        ShortestExpectedDelay = "sed",
        /// Never queue.
        NeverQueue = "nq",
    }
}

impl LbAlgorithm {
    /// Returns whether servers get shares by weight. To the other schedulers a weight is zero, which takes no new
    /// connections, or not zero. Source hashing gives each server as many buckets in turn as its weight
    /// (`ip_vs_sh_reassign`).
    #[must_use]
    pub const fn uses_weights(self) -> bool {
        match self {
            Self::WeightedRoundRobin
            | Self::WeightedLeastConnections
            | Self::LocalityBasedLeastConnections
            | Self::SourceHashing
            | Self::ShortestExpectedDelay
            | Self::NeverQueue => true,
            Self::RoundRobin | Self::LeastConnections | Self::DestinationHashing => false,
        }
    }
}

words! {
    /// IPVS forwarding method of a [`VirtualServer`].
    LbKind {
        /// Network address translation.
        Nat = "NAT",
        /// Direct routing.
        DirectRouting = "DR",
        /// IP-in-IP tunnels.
        Tunnel = "TUN",
    }
}

impl LbKind {
    /// Returns whether packets reach the servers with the address and the port of the virtual IP.
    #[must_use]
    pub const fn keeps_destination(self) -> bool {
        matches!(self, Self::DirectRouting | Self::Tunnel)
    }
}

/// One balanced TCP service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Unique name.
    pub name: String,
    /// Port clients use on the virtual IPs.
    pub port: Port,
    /// Port the proxy listens on.
    pub bind_port: Port,
    /// Port of backends that name none.
    pub backend_port: Port,
    /// Its own servers; `None` means [`Config::backends`].
    pub backends: Option<Backends>,
    /// The choice of a backend.
    pub balance: Balance,
    /// The health check of the backends.
    pub health: HealthCheck,
    /// Client connections of the proxy that may be open at once; `None` means as many as descriptors allow.
    pub max_connections: Option<NonZeroU32>,
    /// Of these, connections from one client address; `None` sets no such limit.
    pub max_connections_per_client: Option<NonZeroU32>,
}

impl Service {
    /// Returns whether each client has to reach every server, as konnectivity's agents do: then nothing may bind a
    /// client to one server, such as [`VirtualServer::persistence_timeout`]. Known by its name or by the port of its
    /// servers.
    #[must_use]
    pub fn is_konnectivity(&self) -> bool {
        let own =
            self.backends.iter().flat_map(|backends| &backends.fixed).filter_map(|backend| backend.port);
        is_konnectivity(&self.name, own.chain([self.backend_port]))
    }
}

pub(crate) fn is_konnectivity(name: &str, server_ports: impl IntoIterator<Item = Port>) -> bool {
    /// The port on which konnectivity's servers listen for agents (k0s, `spec.konnectivity.agentPort`).
    const AGENT_PORT: u16 = 8132;
    let mut ports = server_ports.into_iter();
    name.to_ascii_lowercase().contains("konnectivity") || ports.any(|port| port.number() == AGENT_PORT)
}

/// The sources of a service's servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// Listed in the configuration, or the controllers of a k0sctl file. Never a virtual IP.
    pub fixed: Vec<Backend>,
    /// Discovered through the Kubernetes API with this kubeconfig.
    pub kubeconfig: Option<PathBuf>,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Address, or a name to be resolved when it is needed.
    pub host: Host,
    /// Its port, if it is not the service's [`Service::backend_port`].
    pub port: Option<Port>,
    /// Share of connections where weights count (the [`Balance`] of the proxy, [`LbAlgorithm::uses_weights`] for IPVS),
    /// 0 to 256; 0 takes no new ones.
    pub weight: u32,
    /// A name for people.
    pub name: Option<String>,
}

/// An address or a host name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// An address; never an IPv4-mapped IPv6 address.
    Address(IpAddr),
    /// A DNS name.
    Name(String),
}

/// A TCP port, 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(NonZeroU16);

impl Port {
    /// The port with this number; `None` for 0.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        match NonZeroU16::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0.get()
    }
}

impl Host {
    /// Returns whether connections to it stay on this node: a loopback or unspecified address, or `localhost` (RFC 6761
    /// §6.3).
    #[must_use]
    pub fn is_this_node(&self) -> bool {
        match self {
            Self::Address(address) => address.is_loopback() || address.is_unspecified(),
            Self::Name(name) => name.trim_end_matches('.').eq_ignore_ascii_case("localhost"),
        }
    }

    /// Returns whether connections to it stay on this node where IPVS balances the virtual IP, which it does within one
    /// family.
    pub(crate) fn is_loopback_for(&self, vip: IpAddr) -> bool {
        let same_family = match self {
            Self::Address(address) => address.is_ipv4() == vip.is_ipv4(),
            Self::Name(_) => true,
        };
        same_family && self.is_this_node()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Host::Address(IpAddr::V6(address)), Some(port)) => write!(f, "[{address}]:{port}"),
            (host, Some(port)) => write!(f, "{host}:{port}"),
            (host, None) => host.fmt(f),
        }
    }
}

impl Backends {
    /// Returns whether there is neither a server nor a way to find one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fixed.is_empty() && self.kubeconfig.is_none()
    }
}

impl Config {
    /// Every virtual IP of every instance.
    pub fn virtual_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.instances.iter().flat_map(|instance| &instance.virtual_ips).map(VipAddress::ip)
    }

    /// Returns whether an instance has `unicastPeers: auto`.
    #[must_use]
    pub fn finds_peers(&self) -> bool {
        let is_auto = |unicast: &Unicast| unicast.peers == UnicastPeers::Auto;
        self.instances.iter().any(|instance| instance.unicast.as_ref().is_some_and(is_auto))
    }

    /// Returns whether `ip` is a virtual IP, also in its IPv4-mapped form.
    #[must_use]
    pub fn is_virtual_ip(&self, ip: IpAddr) -> bool {
        self.virtual_ips().any(|vip| vip == ip.to_canonical())
    }

    /// The service of the API servers: that of the name `kube-apiserver`, or the only one if that is not
    /// konnectivity's.
    #[must_use]
    pub fn api_service(&self) -> Option<&Service> {
        match self.services.as_slice() {
            [only] => Some(only).filter(|service| !service.is_konnectivity()),
            all => all.iter().find(|service| service.name == API_SERVICE),
        }
    }

    /// The servers of `service`.
    #[must_use]
    pub fn backends_of<'a>(&'a self, service: &'a Service) -> &'a Backends {
        service.backends.as_ref().unwrap_or(&self.backends)
    }

    /// The services that connect to the shared servers.
    pub(crate) fn sharing(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().filter(|service| service.backends.is_none())
    }
}
