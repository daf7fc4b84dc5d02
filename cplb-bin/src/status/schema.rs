//! What `cplb status --json` prints: a stable schema, documented for its readers in `docs/status.md`.
//!
//! Fields are only ever added within one `schema` number. Names follow the configuration's. Durations are seconds;
//! moments are given as an age in seconds. All ages but those of transitions are counted by a monotonic clock, so that
//! a step of the wall clock cannot falsify them. Counts are totals since the start of the daemon.

mod ipvs;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(crate) use ipvs::{ExcludedServer, Ipvs, RealServer, VirtualServer};

/// The number of this schema.
pub(crate) const SCHEMA: u32 = 1;

/// The whole document.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    /// See [`SCHEMA`].
    pub(crate) schema: u32,
    /// The daemon's version.
    pub(crate) version: String,
    /// The daemon's process.
    pub(crate) pid: u32,
    /// Since the daemon started.
    pub(crate) uptime_seconds: f64,
    /// The configuration file in use.
    pub(crate) config: String,
    /// Everything that keeps this node from doing its whole job; empty on a sound node.
    pub(crate) degraded: Vec<String>,
    pub(crate) serving: Serving,
    /// Whether the election runs at real-time priority; `false` without an instance.
    pub(crate) real_time: bool,
    pub(crate) instances: Vec<Instance>,
    /// What became of the kernel's news about links and addresses; absent without an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kernel: Option<Kernel>,
    /// The interfaces that advertisements are received on.
    #[serde(default)]
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) services: Vec<Service>,
    /// The clusters whose API servers are discovered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) discovery: Vec<Discovery>,
    /// What the kernel balances; absent without `virtualServers`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ipvs: Option<Ipvs>,
    /// The nftables table that leads the VIPs' traffic to the load balancer; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<Table>,
}

/// Whether this node could serve clients that reach it through a VIP.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Serving {
    pub(crate) serving: bool,
    /// How long that has been so.
    pub(crate) since_seconds: f64,
    /// Why not, such as `no healthy backend`; absent while serving.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// One VRRP instance.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Instance {
    #[serde(rename = "virtualRouterID")]
    pub(crate) virtual_router_id: u8,
    /// The interface's name, or what is waited for.
    pub(crate) interface: String,
    /// Whether that interface exists and is up.
    pub(crate) interface_up: bool,
    /// With their prefix lengths.
    #[serde(rename = "virtualIPs")]
    pub(crate) virtual_ips: Vec<String>,
    /// [`vrrp::router::StateName`]: `init`, `backup`, `active`, `listening`, `yielding`, `resigning` or `stopped`.
    pub(crate) state: String,
    /// In this state.
    pub(crate) since_seconds: f64,
    /// [`vrrp::router::Reason`] as people read it.
    pub(crate) reason: String,
    /// Whether the kernel has confirmed each of the VIPs on the interface.
    #[serde(rename = "holdsVirtualIPs")]
    pub(crate) holds_virtual_ips: bool,
    /// Why this node should not hold the VIPs although it serves, one text for each; it then advertises a fifth of
    /// `priority`.
    #[serde(default)]
    pub(crate) unfit: Vec<String>,
    /// VIPs that are on this node without a lease, on whatever interface.
    #[serde(default)]
    pub(crate) copies: Vec<AddressCopy>,
    /// As configured, 50 to 254.
    pub(crate) priority: u8,
    /// What is advertised: a fifth of `priority` while not serving, or unfit.
    pub(crate) advertised_priority: u8,
    pub(crate) advert_interval_seconds: f64,
    /// Length of the VIPs' lease in the kernel, in whole seconds.
    pub(crate) lease_seconds: f64,
    /// The router that advertises, if it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) active_router: Option<ActiveRouter>,
    /// With unicast one a peer.
    pub(crate) advertisements_sent: u64,
    /// Those that could be decoded, obeyed or not.
    pub(crate) advertisements_received: u64,
    /// Packets that were not obeyed, by [`vrrp::router::Discard`]; those of count 0 are left out.
    pub(crate) discarded: BTreeMap<String, u64>,
    /// Advertisements that were obeyed although they tell of another configuration, by what differs:
    /// `address_list` (other virtual IPs) or `interval` (version 2 only).
    #[serde(default)]
    pub(crate) mismatches: BTreeMap<String, u64>,
    /// Those of the last 60 s, by what differs, with the time since the last one in seconds.
    #[serde(default)]
    pub(crate) mismatch_seconds_ago: BTreeMap<String, f64>,
    /// The last 16, the newest first.
    pub(crate) transitions: Vec<Transition>,
}

/// How this node keeps its picture of the kernel's links and addresses. All are totals since the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Kernel {
    /// How often the kernel dropped news because they came faster than they were read (netlink's ENOBUFS); each time
    /// everything is read anew.
    pub(crate) overruns: u64,
    /// How often everything was read anew, the first time at the start.
    pub(crate) resyncs: u64,
    /// Virtual IPs that somebody else removed while this node held them.
    pub(crate) missing: u64,
    /// Requests that the kernel refused or did not answer.
    pub(crate) errors: u64,
}

/// What arrived on one interface, whoever it was for. Packets of an instance's own VRID are counted there too.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Interface {
    pub(crate) name: String,
    /// VRRP packets.
    pub(crate) received: u64,
    /// Those that are too short to name a virtual router.
    pub(crate) malformed: u64,
    /// Those for virtual routers that do not run here, by VRID.
    pub(crate) foreign: BTreeMap<u8, u64>,
}

/// A VIP that another program or a person has placed on this node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AddressCopy {
    /// With its prefix length.
    pub(crate) address: String,
    /// The interface's name.
    pub(crate) interface: String,
}

/// Another router that is Active.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ActiveRouter {
    pub(crate) address: String,
    /// What it advertises, 0 to 255.
    pub(crate) priority: u8,
}

/// One change of state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Transition {
    /// By the wall clock, so that a time asleep counts.
    pub(crate) seconds_ago: f64,
    /// As [`Instance::state`].
    pub(crate) from: String,
    /// As [`Instance::state`].
    pub(crate) to: String,
    /// As [`Instance::reason`].
    pub(crate) reason: String,
}

/// One balanced port.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Service {
    pub(crate) name: String,
    /// The port at the VIPs.
    pub(crate) port: u16,
    /// The port the load balancer listens on.
    pub(crate) bind_port: u16,
    /// [`lb_proxy::Balance`] as in the configuration.
    pub(crate) balance: String,
    /// How connections of other hosts to this port of each virtual IP reach the load balancer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) delivery: Vec<Delivery>,
    /// Open now.
    pub(crate) connections_active: u64,
    /// Clients accepted.
    pub(crate) connections_accepted: u64,
    /// Clients that were refused, for whatever reason.
    pub(crate) connections_refused: u64,
    /// The same by [`lb_proxy::Refusal`].
    #[serde(default)]
    pub(crate) refusals: BTreeMap<String, u64>,
    /// Client connections that may be open at once.
    #[serde(default)]
    pub(crate) max_connections: u64,
    /// The same from one client address; absent if there is no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_connections_per_client: Option<u64>,
    pub(crate) backends: Vec<Backend>,
}

/// How connections of other hosts to a service at one virtual IP arrive.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Delivery {
    #[serde(rename = "virtualIP")]
    pub(crate) virtual_ip: String,
    /// `transparent` or `dnat`.
    pub(crate) mode: String,
    /// Why it is `dnat`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// One backend of a service.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Backend {
    /// With its port.
    pub(crate) address: String,
    /// [`lb_proxy::BackendState`]: `unknown`, `up`, `suspect`, `terminating`, `down` or `draining`.
    pub(crate) state: String,
    /// Since the verdict of its checks last changed, or since it was configured.
    pub(crate) since_seconds: f64,
    /// Why it is in this state, such as `connection refused`; absent if there is nothing to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// Open now.
    pub(crate) connections_active: u64,
    /// With those open.
    pub(crate) connections_total: u64,
    /// Connects that failed.
    pub(crate) connect_failures: u64,
    /// Since its last check ended; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_check_seconds_ago: Option<f64>,
}

/// A cluster whose API servers are discovered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Discovery {
    /// The path of the file.
    pub(crate) kubeconfig: String,
    /// Where the servers are known from: `api`, `disk` or `nothing`.
    pub(crate) source: String,
    pub(crate) servers: Vec<String>,
    /// What is waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) waiting: Option<String>,
    /// Why the API is not followed now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// Why what the API lists is not used as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kept: Option<String>,
    /// The API server that answered last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) answered_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) answered_seconds_ago: Option<f64>,
}

/// The nftables table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Table {
    /// Whether it was in place when it was last looked at.
    pub(crate) present: bool,
    /// How often it had to be restored because somebody removed or changed it.
    pub(crate) restored: u64,
    /// Why it is not in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lb_proxy::{BackendState, Balance};
    use serde_json::Value;
    use vrrp::WirePriority;
    use vrrp::router::{Discard, Reason, StateName};

    use super::*;

    const DOCS: &str = include_str!("../../../docs/status.md");

    /// With every field and no `..`, so that a new field cannot be forgotten here.
    fn complete() -> Status {
        let text = String::new;
        let transition = Transition { seconds_ago: 0.0, from: text(), to: text(), reason: text() };
        let instance = Instance {
            virtual_router_id: 51,
            interface: text(),
            interface_up: true,
            virtual_ips: Vec::new(),
            state: text(),
            since_seconds: 0.0,
            reason: text(),
            holds_virtual_ips: true,
            unfit: Vec::new(),
            copies: vec![AddressCopy { address: text(), interface: text() }],
            priority: 200,
            advertised_priority: 200,
            advert_interval_seconds: 1.0,
            lease_seconds: 3.0,
            active_router: Some(ActiveRouter { address: text(), priority: 200 }),
            advertisements_sent: 0,
            advertisements_received: 0,
            discarded: BTreeMap::new(),
            mismatches: BTreeMap::new(),
            mismatch_seconds_ago: BTreeMap::new(),
            transitions: vec![transition],
        };
        let backend = Backend {
            address: text(),
            state: text(),
            since_seconds: 0.0,
            reason: Some(text()),
            connections_active: 0,
            connections_total: 0,
            connect_failures: 0,
            last_check_seconds_ago: Some(0.0),
        };
        let service = Service {
            name: text(),
            port: 6443,
            bind_port: 6444,
            balance: text(),
            delivery: vec![Delivery { virtual_ip: text(), mode: text(), reason: Some(text()) }],
            connections_active: 0,
            connections_accepted: 0,
            connections_refused: 0,
            refusals: BTreeMap::new(),
            max_connections: 0,
            max_connections_per_client: Some(0),
            backends: vec![backend],
        };
        let server = RealServer {
            address: text(),
            weight: 1,
            connections_active: 0,
            connections_inactive: 0,
            connections_total: 0,
            bytes_in: 0,
        };
        let virtual_server = VirtualServer {
            ip_address: text(),
            port: 6443,
            service: text(),
            mark: 0x1001,
            lb_algo: text(),
            lb_kind: text(),
            persistence_timeout_seconds: 360,
            held: true,
            directing: true,
            connections_total: 0,
            servers: vec![server],
            excluded: vec![ExcludedServer::default()],
        };
        let ipvs = Ipvs {
            available: false,
            reason: Some(text()),
            virtual_servers: vec![virtual_server],
            sync_daemons: Vec::new(),
        };
        let discovery = Discovery {
            kubeconfig: text(),
            source: text(),
            servers: Vec::new(),
            waiting: Some(text()),
            error: Some(text()),
            kept: Some(text()),
            answered_by: Some(text()),
            answered_seconds_ago: Some(0.0),
        };
        Status {
            schema: SCHEMA,
            version: text(),
            pid: 1,
            uptime_seconds: 0.0,
            config: text(),
            degraded: Vec::new(),
            serving: Serving { serving: true, since_seconds: 0.0, reason: Some(text()) },
            real_time: true,
            instances: vec![instance],
            kernel: Some(Kernel { overruns: 0, resyncs: 1, missing: 0, errors: 0 }),
            interfaces: vec![Interface { name: text(), received: 0, malformed: 0, foreign: BTreeMap::new() }],
            services: vec![service],
            discovery: vec![discovery],
            ipvs: Some(ipvs),
            table: Some(Table { present: true, restored: 0, error: Some(text()) }),
        }
    }

    /// The paths of all fields that hold no further field.
    fn paths(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (name, value) in fields {
                    let dot = if path.is_empty() { "" } else { "." };
                    paths(value, &format!("{path}{dot}{name}"), found);
                }
            }
            Value::Array(items) if !items.is_empty() => paths(&items[0], &format!("{path}[]"), found),
            _ => {
                found.insert(path.to_owned());
            }
        }
    }

    #[test]
    fn the_documentation_has_exactly_the_fields_of_the_schema() {
        let mut fields = BTreeSet::new();
        paths(&serde_json::to_value(complete()).unwrap(), "", &mut fields);
        let documented: BTreeSet<String> = DOCS
            .lines()
            .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
            .collect();
        assert_eq!(documented, fields);
    }

    /// The row of the documentation that begins with this field.
    fn row(field: &str) -> &'static str {
        let start = format!("| `{field}` ");
        DOCS.lines()
            .find(|line| line.starts_with(&start))
            .unwrap_or_else(|| panic!("{field} is not documented"))
    }

    #[test]
    fn the_documentation_has_the_words_that_are_really_used() {
        let names = |field: &str, words: &[&str]| {
            let row = row(field);
            for word in words {
                assert!(row.contains(&format!("`{word}`")), "{word} is not in: {row}");
            }
        };
        use StateName::{Active, Backup, Init, Listening, Resigning, Stopped, Yielding};
        let states = [Init, Backup, Active, Listening, Yielding, Resigning, Stopped].map(StateName::as_str);
        names("instances[].state", &states);
        names("instances[].discarded", &Discard::ALL.map(Discard::as_str));
        use BackendState::{Down, Draining, Suspect, Terminating, Unknown, Up};
        names(
            "services[].backends[].state",
            &[Unknown, Up, Suspect, Terminating, Down, Draining].map(BackendState::as_str),
        );
        let balances =
            [Balance::RoundRobin, Balance::LeastConnections, Balance::Weighted, Balance::SourceHash];
        for balance in balances {
            names("services[].balance", &[&balance.to_string()]);
        }
        names("services[].refusals", &lb_proxy::Refusal::ALL.map(lb_proxy::Refusal::as_str));
        use crate::daemon::Mode::{Dnat, Transparent};
        names("services[].delivery[].mode", &[Transparent, Dnat].map(crate::daemon::Mode::as_str));
        assert!(row("schema").contains(&format!("| {SCHEMA} |")));
    }

    #[test]
    fn the_documentation_has_the_reasons_that_are_really_given() {
        let source = std::net::IpAddr::from([10, 0, 0, 12]);
        for reason in [
            Reason::Created,
            Reason::InterfaceUp,
            Reason::InterfaceDown,
            Reason::NoSourceAddress,
            Reason::ActiveSilent { source: None },
            Reason::ActiveSilent { source: Some(source) },
            Reason::ActiveResigned,
            Reason::ActiveDegraded,
            Reason::LowerPriority,
            Reason::Outranked { source, priority: WirePriority(200) },
            Reason::Unheard { source },
            Reason::Overslept,
            Reason::LeaseLost,
            Reason::NoOtherActive,
            Reason::RivalHeard { source },
            Reason::Shutdown,
            Reason::SuccessorAnnounced,
            Reason::SuccessorAdvertised,
            Reason::NoSuccessor,
            Reason::Reconfigured,
        ] {
            assert!(DOCS.contains(&format!("`{reason}`")), "{reason:?} is not documented: {reason}");
        }
    }
}
