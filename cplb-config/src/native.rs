//! The native document as data: what the schema describes and what the effective configuration is written as.
//!
//! Reading does not go through these types, because they could only report that a value is wrong, not its place and the
//! right one; a test holds both to the same field names.

mod mirror;

use std::num::NonZeroU32;

use lb_proxy::{Balance, HealthCheck, HealthKind};
use netlink_vip::InterfaceSelector;
use schemars::{Schema, schema_for};
use vrrp::hmac::{AntiReplay, Mode};
use vrrp::router::Preempt;
use vrrp::{AuthPass, Version};

use crate::duration;
use crate::model::{
    AuthHmac, Backend, Backends, Config, HmacKey, Host, Instance, LbAlgorithm, LbKind, Service, UnicastPeers,
    VirtualServer,
};
use crate::secret::REDACTED;

use mirror::{
    AntiReplaySpec, ApiVersion, AuthHmacSpec, AutoSpec, BackendSpec, BackendsSpec, BalanceSpec, Document,
    FullBackendSpec, HealthCheckSpec, HealthType, HmacKeySpec, HmacMode, Kind, KubernetesSpec, LbAlgo,
    PreemptSpec, ServiceSpec, Spec, StatusSpec, UnicastPeersSpec, VirtualServerSpec, VrrpInstance,
};

/// The treatment of passwords in a written document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redact {
    /// Written, so that the document can be used.
    Nothing,
    /// Replaced by `<redacted>`, so that the document can be shown. It is too long for a password, so that such a
    /// document is not used by mistake.
    Passwords,
}

/// The JSON schema of the native document.
///
/// It describes shape and ranges of single fields. Rules between fields (unique VRIDs, families, ports) are checked by
/// [`load`](crate::load) only.
#[must_use]
pub fn json_schema() -> Schema {
    schema_for!(Document)
}

impl Config {
    /// The effective native document: every default written out, no comments. Loading it gives an equal configuration
    /// unless its passwords were redacted.
    ///
    /// # Errors
    /// [`WriteError`] if the YAML writer fails, which no configuration is known to cause.
    pub fn to_native_yaml(&self, redact: Redact) -> Result<String, WriteError> {
        let options = serde_saphyr::ser_options! { compact_list_indent: true };
        serde_saphyr::to_string_with_options(&Document::new(self, redact), options)
            .map_err(|error| WriteError(error.to_string()))
    }
}

/// The YAML writer failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration could not be written as YAML: {0}")]
pub struct WriteError(String);

impl Document {
    fn new(config: &Config, redact: Redact) -> Self {
        let spec = Spec {
            vrrp_instances: Some(
                config.instances.iter().map(|instance| VrrpInstance::new(instance, redact)).collect(),
            ),
            virtual_servers: Some(config.virtual_servers.iter().map(VirtualServerSpec::from).collect()),
            ipvs_sync: (config.ipvs_sync || !config.virtual_servers.is_empty()).then_some(config.ipvs_sync),
            disable_load_balancer: Some(config.disable_load_balancer),
            external_address: config.external_address.as_ref().map(|host| match host {
                Host::Address(ip) => ip.to_string(),
                Host::Name(name) => name.clone(),
            }),
            user_space_proxy_bind_port: Some(config.proxy_bind_port.number()),
            bind_address: config.bind_address,
            services: Some(config.services.iter().map(ServiceSpec::from).collect()),
            backends: (!config.backends.is_empty()).then(|| BackendsSpec::from(&config.backends)),
            balance: None,
            health_check: None,
            status: config.status_listen.map(|listen| StatusSpec { listen: Some(listen.to_string()) }),
        };
        Self { api_version: ApiVersion::V1Alpha1, kind: Kind::ControlPlaneLoadBalancer, metadata: None, spec }
    }
}

impl VrrpInstance {
    fn new(instance: &Instance, redact: Redact) -> Self {
        let interface = match &instance.interface {
            InterfaceSelector::DefaultRoute => None,
            selector => Some(selector.to_string()),
        };
        let password = |pass: AuthPass| match redact {
            Redact::Passwords => REDACTED.to_owned(),
            Redact::Nothing => String::from_utf8_lossy(&pass.wire()).trim_end_matches('\0').to_owned(),
        };
        let unicast = instance.unicast.as_ref();
        Self {
            virtual_ips: instance.virtual_ips.iter().map(ToString::to_string).collect(),
            interface,
            virtual_router_id: Some(instance.vrid.get()),
            auth_pass: instance.auth_pass.map(password),
            auth_pass_previous: instance.auth_pass_previous.map(password),
            auth_hmac: instance.auth_hmac.as_ref().map(|hmac| AuthHmacSpec::new(hmac, redact)),
            version: Some(match instance.version {
                Version::V2 => 2,
                Version::V3 => 3,
            }),
            advert_interval: Some(duration::format(instance.advert_interval.get())),
            advert_interval_seconds: None,
            priority: Some(instance.priority.get()),
            preempt: Some(match instance.preempt {
                Preempt::Never => PreemptSpec::Never,
                Preempt::Degraded => PreemptSpec::Degraded,
                Preempt::Always => PreemptSpec::Always,
            }),
            unicast_source_ip: unicast.and_then(|unicast| unicast.source),
            unicast_peers: unicast.map(|unicast| match &unicast.peers {
                UnicastPeers::Listed(peers) => UnicastPeersSpec::Listed(peers.clone()),
                UnicastPeers::Auto => UnicastPeersSpec::Auto(AutoSpec::Auto),
            }),
            address_label: Some(instance.address_label.value()),
        }
    }
}

impl AuthHmacSpec {
    fn new(hmac: &AuthHmac, redact: Redact) -> Self {
        let key = |key: &HmacKey| match (key, redact) {
            (HmacKey::File(path), _) => format!("file:{}", path.display()),
            (HmacKey::Inline(_), Redact::Passwords) => REDACTED.to_owned(),
            (HmacKey::Inline(key), Redact::Nothing) => {
                let digits: Vec<String> = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
                format!("hex:{}", digits.concat())
            }
        };
        Self {
            keys: hmac.keys.iter().map(|(id, found)| HmacKeySpec { id: id.get(), key: key(found) }).collect(),
            active_key: Some(hmac.active.get()),
            mode: Some(match hmac.mode {
                Mode::ReceiveOnly => HmacMode::ReceiveOnly,
                Mode::Permissive => HmacMode::Permissive,
                Mode::Enforce => HmacMode::Enforce,
            }),
            anti_replay: Some(match hmac.anti_replay {
                AntiReplay::Time => AntiReplaySpec::Time,
                AntiReplay::Monotonic => AntiReplaySpec::Monotonic,
            }),
            window: Some(duration::format(hmac.window)),
        }
    }
}

impl From<&VirtualServer> for VirtualServerSpec {
    fn from(server: &VirtualServer) -> Self {
        Self {
            ip_address: server.address,
            delay_loop: Some(duration::format(server.delay_loop)),
            lb_algo: Some(match server.algorithm {
                LbAlgorithm::RoundRobin => LbAlgo::Rr,
                LbAlgorithm::WeightedRoundRobin => LbAlgo::Wrr,
                LbAlgorithm::LeastConnections => LbAlgo::Lc,
                LbAlgorithm::WeightedLeastConnections => LbAlgo::Wlc,
                LbAlgorithm::LocalityBasedLeastConnections => LbAlgo::Lblc,
                LbAlgorithm::DestinationHashing => LbAlgo::Dh,
                LbAlgorithm::SourceHashing => LbAlgo::Sh,
                LbAlgorithm::ShortestExpectedDelay => LbAlgo::Sed,
                LbAlgorithm::NeverQueue => LbAlgo::Nq,
            }),
            lb_kind: Some(match server.kind {
                LbKind::Nat => mirror::LbKind::Nat,
                LbKind::DirectRouting => mirror::LbKind::Dr,
                LbKind::Tunnel => mirror::LbKind::Tun,
            }),
            persistence_timeout_seconds: Some(server.persistence_timeout.map_or(0, |time| time.as_secs())),
        }
    }
}

impl From<&Service> for ServiceSpec {
    fn from(service: &Service) -> Self {
        Self {
            name: service.name.clone(),
            port: service.port.number(),
            bind_port: Some(service.bind_port.number()),
            backend_port: Some(service.backend_port.number()),
            backends: service.backends.as_ref().map(BackendsSpec::from),
            balance: Some(match service.balance {
                Balance::RoundRobin => BalanceSpec::RoundRobin,
                Balance::LeastConnections => BalanceSpec::LeastConnections,
                Balance::Weighted => BalanceSpec::Weighted,
                Balance::SourceHash => BalanceSpec::SourceHash,
            }),
            health_check: Some(HealthCheckSpec::from(&service.health)),
            max_connections: service.max_connections.map(NonZeroU32::get),
            max_connections_per_client: service.max_connections_per_client.map(NonZeroU32::get),
        }
    }
}

impl From<&Backends> for BackendsSpec {
    fn from(backends: &Backends) -> Self {
        let kubernetes = backends
            .kubeconfig
            .as_ref()
            .map(|path| KubernetesSpec { kubeconfig: Some(path.to_string_lossy().into_owned()) });
        Self { fixed: Some(backends.fixed.iter().map(BackendSpec::from).collect()), kubernetes }
    }
}

impl From<&Backend> for BackendSpec {
    fn from(backend: &Backend) -> Self {
        if backend.weight == 1 && backend.name.is_none() {
            return Self::Address(backend.to_string());
        }
        Self::Full(FullBackendSpec {
            address: backend.host.to_string(),
            port: backend.port.map(crate::model::Port::number),
            weight: Some(backend.weight),
            name: backend.name.clone(),
        })
    }
}

impl From<&HealthCheck> for HealthCheckSpec {
    fn from(health: &HealthCheck) -> Self {
        let (kind, path, statuses) = match &health.kind {
            HealthKind::Tcp => (HealthType::Tcp, None, None),
            HealthKind::Tls => (HealthType::Tls, None, None),
            HealthKind::Https { path, statuses } => {
                (HealthType::Https, Some(path.clone()), Some(statuses.clone()).filter(|it| !it.is_empty()))
            }
        };
        Self {
            kind: Some(kind),
            path,
            statuses,
            interval: Some(duration::format(health.interval)),
            timeout: Some(duration::format(health.timeout)),
            rise: Some(health.rise),
            fall: Some(health.fall),
        }
    }
}
