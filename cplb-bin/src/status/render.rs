//! The table of `cplb status`.

use std::fmt::Write;

use super::schema::{
    Backend, Discovery, ExcludedServer, Instance, Interface, Ipvs, Peer, Service, Status, VirtualServer,
};

/// The whole status as a few aligned lines.
pub(crate) fn table(status: &Status) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "cplb {} · pid {} · up {} · {}",
        status.version,
        status.pid,
        age(status.uptime_seconds),
        status.config
    );
    let serving = &status.serving;
    let _ = match &serving.reason {
        _ if serving.serving => writeln!(out, "serving for {}", age(serving.since_seconds)),
        reason => writeln!(
            out,
            "NOT SERVING for {}: {}",
            age(serving.since_seconds),
            reason.as_deref().unwrap_or("not yet known")
        ),
    };
    for problem in &status.degraded {
        let _ = writeln!(out, "degraded: {problem}");
    }
    for instance in &status.instances {
        render_instance(&mut out, instance);
    }
    render_peers(&mut out, &status.peers);
    if let Some(kernel) = status.kernel.as_ref().filter(|kernel| kernel.overruns > 0) {
        let times = kernel.overruns;
        let _ =
            writeln!(out, "\nnetlink events overran {times} times; all links and addresses were read again");
    }
    for interface in &status.interfaces {
        render_interface(&mut out, interface);
    }
    for service in &status.services {
        render_service(&mut out, service);
    }
    for discovery in &status.discovery {
        render_discovery(&mut out, discovery);
    }
    if let Some(ipvs) = &status.ipvs {
        render_ipvs(&mut out, ipvs);
    }
    out
}

fn render_instance(out: &mut String, instance: &Instance) {
    let Instance { virtual_router_id: vrid, interface, state, reason, .. } = instance;
    let _ = writeln!(out, "\nvirtual router {vrid} on {interface}: {}", instance.virtual_ips.join(", "));
    let _ = writeln!(out, "  {state} for {} ({reason})", age(instance.since_seconds));
    // Configured priorities are 50 or more; after a change the former one may still be advertised for a moment.
    let degraded = if instance.advertised_priority < 50 {
        let reason = if instance.unfit.is_empty() { "not serving" } else { "it cannot hold the virtual IPs" };
        format!(", advertised as {} while {reason}", instance.advertised_priority)
    } else {
        String::new()
    };
    let _ = writeln!(
        out,
        "  priority {}{degraded}, every {} s",
        instance.priority, instance.advert_interval_seconds
    );
    if let Some(active) = &instance.active_router {
        let _ = writeln!(out, "  Active is {} with priority {}", active.address, active.priority);
    }
    let discarded: Vec<_> =
        instance.discarded.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    let _ = write!(
        out,
        "  advertisements: {} sent, {} received",
        instance.advertisements_sent, instance.advertisements_received
    );
    let _ = if discarded.is_empty() {
        writeln!(out)
    } else {
        writeln!(out, ", discarded: {}", discarded.join(", "))
    };
    for (difference, ago) in &instance.mismatch_seconds_ago {
        let count = instance.mismatches.get(difference).copied().unwrap_or_default();
        let _ = writeln!(
            out,
            "  another router's configuration differs: {difference}, last heard {} ago, in {count} advertisements",
            age(*ago)
        );
    }
    for transition in instance.transitions.iter().take(3) {
        let (from, to, reason) = (&transition.from, &transition.to, &transition.reason);
        let _ = writeln!(out, "  {} ago: {from} → {to}: {reason}", age(transition.seconds_ago));
    }
}

/// One line for each of the other controllers, and one for each of their problems.
fn render_peers(out: &mut String, peers: &[Peer]) {
    if peers.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nother controllers");
    for peer in peers {
        let serving = match (peer.serving, &peer.reason) {
            (Some(true), _) => "serving".to_owned(),
            (Some(false), Some(reason)) => format!("NOT SERVING: {reason}"),
            _ => "not yet known whether it serves".to_owned(),
        };
        let instances = peer.instances.iter().map(|it| format!("{} {}", it.virtual_router_id, it.state));
        let instances = instances.collect::<Vec<_>>().join(", ");
        let Peer { node, address, version, .. } = peer;
        let _ =
            writeln!(out, "  {node} ({address}), cplb {version}, {serving}; virtual routers: {instances}");
        for problem in &peer.degraded {
            let _ = writeln!(out, "    degraded: {problem}");
        }
        if peer.degraded_unlisted > 0 {
            let _ = writeln!(out, "    degraded: {} more", peer.degraded_unlisted);
        }
    }
}

/// Shows packets of foreign VRIDs and malformed ones only; those of the instances are shown with the instances.
fn render_interface(out: &mut String, interface: &Interface) {
    let mut unexpected: Vec<_> =
        interface.foreign.iter().map(|(vrid, count)| format!("{count} for virtual router {vrid}")).collect();
    if interface.malformed > 0 {
        unexpected.push(format!("{} malformed", interface.malformed));
    }
    if !unexpected.is_empty() {
        let _ = writeln!(out, "\n{}: other VRRP packets: {}", interface.name, unexpected.join(", "));
    }
}

fn render_service(out: &mut String, service: &Service) {
    let Service { name, port, bind_port, balance, .. } = service;
    let _ = writeln!(
        out,
        "\n{name} :{port} → :{bind_port}, {balance}: {} open, {} accepted, {} refused",
        service.connections_active, service.connections_accepted, service.connections_refused
    );
    if !service.refusals.is_empty() {
        let reasons = service.refusals.iter().map(|(reason, count)| format!("{reason} {count}"));
        let reasons: Vec<_> = reasons.collect();
        let _ = writeln!(out, "  refused: {}; at most {} open", reasons.join(", "), service.max_connections);
    }
    for delivery in service.delivery.iter().filter(|delivery| delivery.mode != "transparent") {
        let (vip, mode) = (&delivery.virtual_ip, &delivery.mode);
        let reason = delivery.reason.as_deref().unwrap_or_default();
        let _ = writeln!(out, "  {vip} by {mode}: a host firewall sees port {bind_port} ({reason})");
    }
    let width = service.backends.iter().map(|b| b.address.len()).max().unwrap_or(0);
    for backend in &service.backends {
        let Backend { address, state, .. } = backend;
        let reason = backend.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let _ = writeln!(
            out,
            "  {address:width$}  {state} for {}{reason}: {} open, {} in total, {} failed",
            age(backend.since_seconds),
            backend.connections_active,
            backend.connections_total,
            backend.connect_failures
        );
    }
}

fn render_discovery(out: &mut String, discovery: &Discovery) {
    let Discovery { kubeconfig, source, servers, .. } = discovery;
    let from = match source.as_str() {
        "api" => "from the API",
        "disk" => "from the last run",
        _ => "nothing is known yet",
    };
    let _ = writeln!(out, "\ndiscovery by {kubeconfig}: {} {from}", servers.join(", "));
    if let (Some(by), Some(ago)) = (&discovery.answered_by, discovery.answered_seconds_ago) {
        let _ = writeln!(out, "  {by} answered {} ago", age(ago));
    }
    for (label, text) in
        [("waiting", &discovery.waiting), ("failing", &discovery.error), ("kept", &discovery.kept)]
    {
        if let Some(text) = text {
            let _ = writeln!(out, "  {label}: {text}");
        }
    }
}

fn render_ipvs(out: &mut String, ipvs: &Ipvs) {
    if let Some(reason) = &ipvs.reason {
        let _ = writeln!(out, "\nIPVS: {reason}; the load balancer serves here instead");
    }
    for server in &ipvs.virtual_servers {
        let VirtualServer { ip_address, port, lb_algo, lb_kind, mark, .. } = server;
        let role = match (server.directing, server.held) {
            (true, _) => format!("{} connections so far", server.connections_total),
            (false, true) => "the load balancer serves here instead".to_owned(),
            (false, false) => "not on this node".to_owned(),
        };
        let _ = writeln!(
            out,
            "\nvirtual server {ip_address} port {port}, {lb_algo} {lb_kind}, mark {mark:#x}: {role}"
        );
        for server in &server.servers {
            let _ = writeln!(
                out,
                "  {}  weight {}: {} active, {} inactive, {} in total",
                server.address,
                server.weight,
                server.connections_active,
                server.connections_inactive,
                server.connections_total
            );
        }
        for ExcludedServer { address, reason } in &server.excluded {
            let _ = writeln!(out, "  {address}  excluded: {reason}");
        }
    }
    if !ipvs.sync_daemons.is_empty() {
        let _ = writeln!(out, "  connection synchronisation: {}", ipvs.sync_daemons.join(", "));
    }
}

/// A duration in at most two units.
fn age(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{whole} s"),
        120..7200 => format!("{} min", whole / 60),
        7200..172_800 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::schema::{Kernel, Serving};

    #[test]
    fn unexpected_packets_are_shown_and_an_interface_without_them_is_not() {
        let mut interface = Interface { name: "eth0".into(), received: 9, ..Interface::default() };
        let text = |interface: &Interface| {
            table(&Status { interfaces: vec![interface.clone()], ..Status::default() })
        };
        assert!(!text(&interface).contains("eth0"));
        interface.foreign.insert(99, 2);
        interface.malformed = 3;
        assert!(text(&interface).contains("eth0: other VRRP packets: 2 for virtual router 99, 3 malformed"));
    }

    #[test]
    fn netlink_overruns_are_shown_only_if_there_were_any() {
        let text = |overruns| {
            let kernel = Kernel { overruns, resyncs: 1 + overruns, ..Kernel::default() };
            table(&Status { kernel: Some(kernel), ..Status::default() })
        };
        assert!(text(2).contains("netlink events overran 2 times"), "{}", text(2));
        assert!(!text(0).contains("overran"), "{}", text(0));
    }

    #[test]
    fn a_mismatch_that_has_ended_is_not_shown() {
        let mut instance =
            Instance { mismatches: [("interval".to_owned(), 3)].into(), ..Instance::default() };
        let text =
            |instance: &Instance| table(&Status { instances: vec![instance.clone()], ..Status::default() });
        assert!(!text(&instance).contains("differs"), "{}", text(&instance));
        instance.mismatch_seconds_ago = [("interval".to_owned(), 2.0)].into();
        assert!(
            text(&instance).contains("differs: interval, last heard 2.0 s ago, in 3"),
            "{}",
            text(&instance)
        );
    }

    #[test]
    fn ages_have_at_most_two_units() {
        let shown: Vec<_> = [0.26, 11.9, 119.0, 120.0, 7_199.0, 7_260.0, 200_000.0].map(age).into();
        assert_eq!(shown, ["0.3 s", "11 s", "119 s", "2 min", "119 min", "2 h 1 min", "2 d 7 h"]);
    }

    #[test]
    fn a_problem_is_shown_with_its_reason() {
        let serving =
            Serving { serving: false, since_seconds: 3.0, reason: Some("no healthy backend".into()) };
        let status = Status { serving, degraded: vec!["nft is missing".into()], ..Status::default() };
        let text = table(&status);
        assert!(text.contains("NOT SERVING for 3.0 s: no healthy backend"), "{text}");
        assert!(text.contains("degraded: nft is missing"), "{text}");
    }
}
