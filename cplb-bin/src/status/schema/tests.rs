//! The documentation has the fields and the words of the schema.

use std::collections::BTreeSet;

use lb_proxy::{BackendState, Balance};
use serde_json::Value;
use vrrp::WirePriority;
use vrrp::router::{Discard, Reason, StateName};

use super::*;

const DOCS: &str = include_str!("../../../../docs/status.md");

/// A document with every field. There is no `..`, so that a new field does not compile without its value here.
pub(crate) fn complete() -> Status {
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
        foreign_owners: vec![ForeignOwner {
            address: text(),
            mac: text(),
            first_seconds_ago: 0.0,
            last_seconds_ago: 0.0,
            controller: Some(text()),
        }],
        end_to_end: vec![EndToEnd {
            service: text(),
            endpoint: text(),
            active: text(),
            state: text(),
            reason: Some(text()),
            failures: 0,
            checked_seconds_ago: Some(0.0),
        }],
        priority: 200,
        advertised_priority: 200,
        advert_interval_seconds: 1.0,
        lease_seconds: 3.0,
        active_router: Some(ActiveRouter { address: text(), priority: 200 }),
        unicast_peers: Some(Vec::new()),
        advertisements_sent: 0,
        advertisements_received: 0,
        discarded: BTreeMap::new(),
        mismatches: BTreeMap::new(),
        mismatch_seconds_ago: BTreeMap::new(),
        transitions: vec![transition],
        transition_totals: BTreeMap::new(),
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
        last_check_took_seconds: Some(0.0),
        bytes_from_clients: 0,
        bytes_to_clients: 0,
        connect_times: ConnectTimes {
            sum_seconds: 0.0,
            classes: vec![ConnectClass { up_to_seconds: Some(0.001), count: 0 }],
        },
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
        degraded_causes: BTreeMap::new(),
        serving: Serving { serving: true, since_seconds: 0.0, reason: Some(text()) },
        real_time: true,
        instances: vec![instance],
        kernel: Some(Kernel { overruns: 0, resyncs: 1, missing: 0, errors: 0 }),
        peers: vec![Peer {
            address: text(),
            node: text(),
            version: text(),
            authenticated: true,
            heard_seconds_ago: 0.0,
            clock_ahead_seconds: 0.0,
            serving: Some(true),
            reason: Some(text()),
            degraded: Vec::new(),
            degraded_unlisted: 0,
            instances: vec![PeerInstance {
                virtual_router_id: 51,
                state: text(),
                advertised_priority: 200,
                claim_seconds: 0.0,
            }],
            transitions: vec![PeerTransition {
                virtual_router_id: 51,
                seconds_ago: 0.0,
                to: text(),
                reason: text(),
            }],
        }],
        channels: vec![Channel {
            interface: text(),
            messages_sent: 0,
            messages_received: 0,
            discarded: BTreeMap::new(),
        }],
        interfaces: vec![Interface { name: text(), received: 0, malformed: 0, foreign: BTreeMap::new() }],
        services: vec![service],
        discovery: vec![discovery],
        ipvs: Some(ipvs),
        table: Some(Table { present: true, restored: 0, error: Some(text()) }),
    }
}

/// The paths of all leaf fields.
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

/// The row of the documentation for a field.
fn row(field: &str) -> &'static str {
    let start = format!("| `{field}` ");
    DOCS.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{field} is not documented"))
}

#[test]
fn the_documentation_has_every_word_of_the_enumerations() {
    let names = |field: &str, words: &[&str]| {
        let row = row(field);
        for word in words {
            assert!(row.contains(&format!("`{word}`")), "{word} is not in: {row}");
        }
    };
    names("instances[].state", &StateName::ALL.map(StateName::as_str));
    names("instances[].discarded", &Discard::ALL.map(Discard::as_str));
    names("services[].backends[].state", &BackendState::ALL.map(BackendState::as_str));
    let balances = [Balance::RoundRobin, Balance::LeastConnections, Balance::Weighted, Balance::SourceHash];
    for balance in balances {
        names("services[].balance", &[&balance.to_string()]);
    }
    names("channels[].discarded", &vrrp::channel::Discard::ALL.map(vrrp::channel::Discard::as_str));
    names("services[].refusals", &lb_proxy::Refusal::ALL.map(lb_proxy::Refusal::as_str));
    use crate::daemon::Mode::{Dnat, Transparent};
    names("services[].delivery[].mode", &[Transparent, Dnat].map(crate::daemon::Mode::as_str));
    assert!(row("schema").contains(&format!("| {SCHEMA} |")));
}

#[test]
fn the_documentation_has_every_reason_of_a_state() {
    let source = std::net::IpAddr::from([10, 0, 0, 12]);
    for reason in [
        Reason::Created,
        Reason::InterfaceUp,
        Reason::InterfaceDown,
        Reason::NoSourceAddress,
        Reason::ActiveSilent { source: None },
        Reason::ActiveSilent { source: Some(source) },
        Reason::ActiveResigned { source: None },
        Reason::ActiveResigned { source: Some(source) },
        Reason::ActiveDegraded { source: None },
        Reason::ActiveDegraded { source: Some(source) },
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
