//! The metrics of services, backends and the kernel's IPVS.

use std::net::{IpAddr, SocketAddr};

use lb_proxy::{BackendState, Refusal};

use crate::http::family::{Family, Histogram, Labels, Samples};
use crate::status::schema::{Backend, ConnectClass, ConnectTimes, Ipvs, RealServer, Service, VirtualServer};

use super::{counter, flag, gauge, optional, with};

pub(super) fn families(services: &[Service]) -> Vec<Family> {
    let of = |service: &Service| -> Labels { vec![("service", service.name.clone())] };
    let backends: Vec<(Labels, &Backend)> = services
        .iter()
        .flat_map(|service| {
            let labels = of(service);
            service.backends.iter().map(move |backend| (with(&labels, "backend", &backend.address), backend))
        })
        .collect();
    // Also those that have not happened, so that Prometheus sees the first one as an increase.
    let refused = services.iter().flat_map(|service| {
        let labels = of(service);
        Refusal::ALL.map(|reason| {
            let count = service.refusals.get(reason.as_str()).copied().unwrap_or_default();
            (with(&labels, "reason", reason.as_str()), count)
        })
    });
    let ages = backends.iter().filter_map(|(labels, it)| Some((labels.clone(), it.last_check_seconds_ago?)));
    let durations =
        backends.iter().filter_map(|(labels, it)| Some((labels.clone(), it.last_check_took_seconds?)));
    let states = backends.iter().flat_map(|(labels, it)| {
        BackendState::ALL
            .map(|state| (with(labels, "state", state.as_str()), flag(it.state == state.as_str())))
    });
    let of_backends = |value: fn(&Backend) -> f64| -> Vec<(Labels, f64)> {
        backends.iter().map(|(labels, backend)| (labels.clone(), value(backend))).collect()
    };
    let count_of_backends = |value: fn(&Backend) -> u64| -> Vec<(Labels, u64)> {
        backends.iter().map(|(labels, backend)| (labels.clone(), value(backend))).collect()
    };
    vec![
        gauge(
            "cplb_service_connections_active",
            "Open connections of clients",
            services.iter().map(|it| (of(it), it.connections_active as f64)).collect(),
        ),
        gauge(
            "cplb_service_connections_max",
            "Connections of clients that may be open at once",
            services.iter().map(|it| (of(it), it.max_connections as f64)).collect(),
        ),
        counter(
            "cplb_service_connections_accepted",
            "Clients accepted",
            services.iter().map(|it| (of(it), it.connections_accepted)).collect(),
        ),
        counter("cplb_service_connections_refused", "Clients refused, by reason", refused.collect()),
        gauge(
            "cplb_backend_up",
            "1 if the backend takes new connections of clients",
            of_backends(|it| flag(matches!(it.state.as_str(), "unknown" | "up" | "suspect"))),
        ),
        gauge("cplb_backend_state", "1 for the state of the backend, 0 for all others", states.collect()),
        gauge("cplb_backend_check_age_seconds", "Time since the last check ended", ages.collect()),
        gauge(
            "cplb_backend_connections_active",
            "Open connections to the backend",
            of_backends(|it| it.connections_active as f64),
        ),
        counter(
            "cplb_backend_connections",
            "Connections to the backend so far",
            count_of_backends(|it| it.connections_total),
        ),
        counter(
            "cplb_backend_connect_failures",
            "Connects to the backend that failed",
            count_of_backends(|it| it.connect_failures),
        ),
        Family {
            name: "cplb_backend_connect_seconds",
            help: "Times that successful connects to the backend took",
            samples: Samples::Histogram(
                backends.iter().map(|(labels, it)| (labels.clone(), histogram(&it.connect_times))).collect(),
            ),
        },
        counter(
            "cplb_backend_received_bytes",
            "Payload of clients to the backend",
            count_of_backends(|it| it.bytes_from_clients),
        ),
        counter(
            "cplb_backend_sent_bytes",
            "Payload of the backend to clients",
            count_of_backends(|it| it.bytes_to_clients),
        ),
        gauge("cplb_backend_check_duration_seconds", "Duration of the last check", durations.collect()),
    ]
}

pub(super) fn ipvs(ipvs: Option<&Ipvs>) -> Vec<Family> {
    let virtual_servers = ipvs.map_or(&[][..], |ipvs| &ipvs.virtual_servers);
    let of = |server: &VirtualServer| -> Labels {
        vec![("service", server.service.clone()), ("endpoint", endpoint(server))]
    };
    let servers: Vec<(Labels, &RealServer)> = virtual_servers
        .iter()
        .flat_map(|server| {
            let labels = of(server);
            server.servers.iter().map(move |it| (with(&labels, "server", &it.address), it))
        })
        .collect();
    let of_servers = |value: fn(&RealServer) -> f64| -> Vec<(Labels, f64)> {
        servers.iter().map(|(labels, server)| (labels.clone(), value(server))).collect()
    };
    vec![
        gauge(
            "cplb_ipvs_available",
            "1 if the kernel has IPVS; no sample without virtualServers",
            optional(ipvs.map(|ipvs| flag(ipvs.available))),
        ),
        gauge(
            "cplb_ipvs_directing",
            "1 if this node is the director",
            virtual_servers.iter().map(|it| (of(it), flag(it.directing))).collect(),
        ),
        gauge(
            "cplb_ipvs_servers_excluded",
            "Servers that a director does not use",
            virtual_servers.iter().map(|it| (of(it), it.excluded.len() as f64)).collect(),
        ),
        counter(
            "cplb_ipvs_connections",
            "Connections since the kernel's service was created",
            virtual_servers.iter().map(|it| (of(it), it.connections_total)).collect(),
        ),
        gauge(
            "cplb_ipvs_server_weight",
            "The weight of the server; 0 takes no new connections",
            of_servers(|it| it.weight.into()),
        ),
        gauge(
            "cplb_ipvs_server_connections_active",
            "Active connections to the server",
            of_servers(|it| it.connections_active.into()),
        ),
        counter(
            "cplb_ipvs_server_received_bytes",
            "Bytes of clients that were forwarded to the server",
            servers.iter().map(|(labels, it)| (labels.clone(), it.bytes_in)).collect(),
        ),
    ]
}

fn histogram(times: &ConnectTimes) -> Histogram {
    let class = |class: &ConnectClass| Some((class.up_to_seconds?, class.count));
    Histogram {
        sum: times.sum_seconds,
        count: times.classes.iter().map(|class| class.count).sum(),
        classes: times.classes.iter().filter_map(class).collect(),
    }
}

fn endpoint(server: &VirtualServer) -> String {
    let ip = server.ip_address.parse::<IpAddr>();
    ip.map_or_else(|_| server.ip_address.clone(), |ip| SocketAddr::new(ip, server.port).to_string())
}
