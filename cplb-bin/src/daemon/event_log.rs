//! Turns the parts' events into log lines and problems.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lb_proxy::{Event as Balancer, Refusal, Shortage};
use netlink_vip::wire::address_flag;
use netlink_vip::{AddressCopy, GroupId, InterfaceState, KeeperEvent, ResyncCause, Warning};
use vrrp::router::{Discard, Warning as Election};
use vrrp::runner::{InstanceId, RunnerEvent};

use super::backends::Answers;
use super::problems::{Cause, Problems};
use super::serving::{Fitness, copy_text};

/// Logs an event of the election.
pub(crate) fn election(event: &RunnerEvent, problems: &mut Problems) {
    match event {
        RunnerEvent::Transition { id, transition } => tracing::info!(
            vrid = id.0,
            from = %transition.from,
            to = %transition.to,
            reason = %transition.reason,
            after_seconds = transition.after.as_secs_f64(),
            "state"
        ),
        RunnerEvent::Warning { id, warning, suppressed } => {
            tracing::warn!(vrid = id.0, suppressed, "{warning}");
            if let Some((cause, text)) = contention(*id, warning) {
                problems.raise_fading(cause, text, Instant::now());
            }
        }
        RunnerEvent::Discarded { id, reason, source, suppressed } => {
            tracing::warn!(vrid = id.0, %source, suppressed, "advertisement discarded: {reason}");
            if let Some(text) = unheard_peer(*id, *reason, *source) {
                problems.raise_fading(Cause::Discarded(id.0, reason.as_str()), text, Instant::now());
            }
        }
        RunnerEvent::RealtimeUnavailable { why } => {
            tracing::warn!("the election runs without real-time priority: {why}");
            problems.raise(Cause::RealTime, format!("the election runs without real-time priority: {why}"));
        }
        RunnerEvent::SocketError { interface, operation, error, suppressed } => {
            tracing::warn!(interface, %error, suppressed, "{operation}");
            let text = format!("{operation} on {interface} fails: {error}");
            problems.raise_fading(Cause::Socket(interface.clone()), text, Instant::now());
        }
        other => tracing::debug!(?other, "election"),
    }
}

/// The problem for advertisements that are discarded although they may be those of another controller. All others are
/// broken or foreign.
fn unheard_peer(id: InstanceId, reason: Discard, source: IpAddr) -> Option<String> {
    let difference = match reason {
        Discard::Password | Discard::AuthType => "another authPass: give every controller the same authPass",
        Discard::Version => "another version of VRRP: give every controller the same `version`",
        Discard::HopLimit => "a hop limit that is not 255: let no router forward between the controllers",
        Discard::NotLinkLocal => {
            "a source that is not link-local: it must advertise from its link-local address"
        }
        _ => return None,
    };
    Some(format!(
        "virtual router {id}: {source} advertises with {difference}; until then neither hears the other and both may be \
         Active"
    ))
}

/// The problem for a warning about another user of an instance's addresses or VRID.
fn contention(id: InstanceId, warning: &Election) -> Option<(Cause, String)> {
    let rival = |kind| Cause::Rival(id.0, kind);
    let (cause, text) = match warning {
        Election::OtherGroup { .. } => (
            Cause::OtherGroup(id.0),
            format!(
                "virtual router {id}: {warning}: give this cluster another virtualRouterID on every controller; `cplb \
                 check` proposes one"
            ),
        ),
        Election::Stranger { .. } => (
            Cause::Stranger(id.0),
            format!(
                "virtual router {id}: {warning} (none of backends and unicastPeers): stop it there, or list it"
            ),
        ),
        Election::AnnouncedElsewhere { .. } => (
            rival("announced"),
            format!(
                "virtual router {id}: {warning}: does a firewall or switch drop IP protocol 112 between them, or does \
                 another host have the address?"
            ),
        ),
        Election::Contended { .. } => (rival("contended"), format!("virtual router {id}: {warning}")),
        Election::Unheard { .. } => (rival("unheard"), format!("virtual router {id}: {warning}")),
        Election::FamilySplit { .. } => (rival("family"), format!("virtual router {id}: {warning}")),
        Election::Conflict { .. } => (rival("conflict"), format!("virtual router {id}: {warning}")),
        _ => return None,
    };
    Some((cause, text))
}

/// The node's own addresses that advertisements may come from.
fn sources(state: &InterfaceState) -> String {
    let v4 = state.source_v4().map(IpAddr::V4);
    let v6 = state.source_v6().map(IpAddr::V6);
    let all: Vec<String> = v4.into_iter().chain(v6).map(|ip| ip.to_string()).collect();
    all.join(" ")
}

/// Logs an event of the keeper; `wanted` is how the configuration names a group's interface.
pub(crate) fn keeper(event: &KeeperEvent, wanted: impl Fn(GroupId) -> String, problems: &mut Problems) {
    match event {
        KeeperEvent::Interface { id, state } => {
            let cause = Cause::Interface(id.0);
            match state {
                None => {
                    let wanted = wanted(*id);
                    tracing::warn!(vrid = id.0, wanted, "there is no such interface; waiting for it");
                    problems.raise(cause, format!("virtual router {id} waits for its interface: {wanted}"));
                }
                Some(state) if !state.up => {
                    tracing::warn!(vrid = id.0, interface = %state.name, "the interface is down");
                    problems.raise(cause, format!("virtual router {id}: {} is down", state.name));
                }
                Some(state) => {
                    tracing::info!(vrid = id.0, interface = %state.name, sources = sources(state), "the interface is up");
                    problems.clear(&cause);
                }
            }
        }
        KeeperEvent::Installed { id, took } => {
            tracing::info!(vrid = id.0, took_ms = took.as_millis(), "virtual IPs installed");
        }
        KeeperEvent::Removed { id, reason } => {
            tracing::info!(vrid = id.0, reason = %reason, "virtual IPs removed");
        }
        KeeperEvent::Missing { id, ip } => {
            tracing::warn!(vrid = id.0, %ip, "somebody removed the virtual IP; restoring it");
        }
        KeeperEvent::LeaseLost { id } => tracing::warn!(vrid = id.0, "the lease of the virtual IPs was lost"),
        KeeperEvent::Copies { id, copies } => {
            let (vrid, cause) = (id.0, Cause::Copies(id.0));
            for copy in copies {
                let AddressCopy { interface, ip, prefix_len, .. } = copy;
                tracing::warn!(vrid, %ip, prefix_len, interface, "virtual IP without a lease on this node");
            }
            if copies.is_empty() {
                problems.clear(&cause);
                tracing::info!(vrid, "no virtual IP without a lease on this node any more");
            } else {
                problems.raise_all(cause, copies.iter().map(copy_text).collect());
            }
        }
        KeeperEvent::SessionsEnded { id, ips, reset, silent, took } => {
            let (vrid, took_ms) = (id.0, took.as_millis());
            if *silent == 0 {
                tracing::info!(vrid, addresses = ?ips, reset, took_ms, "sessions reset");
            } else {
                tracing::warn!(
                    vrid,
                    addresses = ?ips,
                    reset,
                    silent,
                    took_ms,
                    "sessions ended without a reset, as their address was gone"
                );
            }
        }
        KeeperEvent::Warning { id, warning } => {
            match id {
                Some(id) => tracing::warn!(vrid = id.0, "{warning}"),
                None => tracing::warn!("{warning}"),
            }
            keeper_warning(id.map(|id| id.0), warning, problems);
        }
        KeeperEvent::Resynced { cause } => {
            problems.clear(&Cause::Unobserved);
            match cause {
                ResyncCause::Overrun => overrun(problems),
                cause => tracing::debug!(?cause, "read the kernel's tables anew"),
            }
        }
        other => tracing::debug!(?other, "keeper"),
    }
}

/// Multicast IPv6 advertisements come from a link-local address (RFC 9568 §5.1.2.1); `multicasts` says whether a group
/// needs one.
pub(crate) fn link_local(event: &KeeperEvent, multicasts: impl Fn(GroupId) -> bool, problems: &mut Problems) {
    let KeeperEvent::Interface { id, state } = event else { return };
    let cause = Cause::LinkLocal(id.0);
    // One whose uniqueness is still being checked will do in a moment.
    let usable = |address: &netlink_vip::InterfaceAddress| {
        let is_ours = matches!(address.ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        is_ours && address.flags & address_flag::DADFAILED == 0
    };
    match state {
        Some(state) if state.up && multicasts(*id) && !state.addresses.iter().any(usable) => {
            let text = format!(
                "virtual router {id}: {} has no IPv6 link-local address, so IPv6 advertisements cannot be sent",
                state.name
            );
            if problems.raise(cause, text) {
                tracing::warn!(vrid = id.0, interface = %state.name, "the interface has no IPv6 link-local address");
            }
        }
        _ => {
            problems.clear(&cause);
        }
    }
}

/// Instances whose addresses this node cannot hold all are a problem, said once.
pub(crate) fn fitness(all: &[Fitness], problems: &mut Problems) {
    for Fitness { id, faults } in all {
        let cause = Cause::Unfit(id.0);
        if faults.is_empty() {
            if problems.clear(&cause) {
                tracing::info!(vrid = id.0, "this node can hold all virtual IPs again");
            }
        } else if problems.raise_all(cause, faults.clone()) {
            tracing::warn!(vrid = id.0, reasons = ?faults, "this node cannot hold all virtual IPs");
        }
    }
}

/// Keeps a warning in status for as long as it holds, or for a while if it tells of a moment.
fn keeper_warning(id: Option<u32>, warning: &Warning, problems: &mut Problems) {
    let text = match id {
        Some(id) => format!("virtual router {id}: {warning}"),
        None => warning.to_string(),
    };
    match (warning, id) {
        (Warning::Unobserved(_), _) => drop(problems.raise(Cause::Unobserved, text)),
        (Warning::RealtimeUnavailable { .. }, _) => drop(problems.raise(Cause::KeeperRealTime, text)),
        (Warning::ForeignLabel { .. }, Some(id)) => drop(problems.raise(Cause::Label(id), text)),
        // The state directory is watched, and what was removed is no longer there.
        (Warning::Unrecorded { .. } | Warning::Reclaimed { .. }, _) => {}
        (Warning::RecordUnreadable { .. }, _) => {
            problems.raise_fading(Cause::Record("virtual IPs"), text, Instant::now());
        }
        _ => problems.raise_fading(Cause::Keeper(id), text, Instant::now()),
    }
}

/// The kernel dropped news. Said once for as long as it goes on: a storm of changes lasts for many resyncs.
pub(crate) fn overrun(problems: &mut Problems) {
    let text = "the kernel dropped news about links and addresses that came faster than they were read (netlink \
                overrun), and everything is read anew: if this goes on, find with `ip monitor` what changes all the time";
    if problems.raise(Cause::Overrun, text) {
        tracing::warn!("{text}");
    }
}

/// No news were dropped for a while.
pub(crate) fn no_overrun(total: u64, problems: &mut Problems) {
    if problems.clear(&Cause::Overrun) {
        tracing::info!(overruns = total, "the kernel's news are read in time again");
    }
}

/// Raises or clears a problem of an instance's interface.
pub(crate) fn interface(id: GroupId, cause: Cause, problem: Option<String>, problems: &mut Problems) {
    let Some(text) = problem else {
        problems.clear(&cause);
        return;
    };
    let text = format!("virtual router {id}: {text}");
    if problems.raise(cause, &text) {
        tracing::warn!("{text}");
    }
}

/// The source of unicast advertisements must be an address of the interface.
pub(crate) fn source(id: InstanceId, source: IpAddr, present: bool, problems: &mut Problems) {
    let cause = Cause::Source(id.0);
    if present {
        problems.clear(&cause);
        return;
    }
    let text = format!("virtual router {id} waits: its interface does not have unicastSourceIP {source}");
    if problems.raise(cause, text) {
        tracing::warn!(vrid = id.0, %source, "the interface does not have unicastSourceIP; waiting for it");
    }
}

/// Each name of a backend without an address is a problem, said once.
pub(crate) fn names(answers: &Answers, problems: &mut Problems) {
    problems.retain(|cause| match cause {
        Cause::Name(name) => answers.asked(name),
        _ => true,
    });
    for (name, failure) in answers.failures() {
        let cause = Cause::Name(name.to_owned());
        match failure {
            None => {
                problems.clear(&cause);
            }
            Some(why) => {
                if problems.raise(cause, format!("the backend name {name} cannot be resolved: {why}")) {
                    tracing::warn!(name, error = why, "a backend's name cannot be resolved; trying again");
                }
            }
        }
    }
}

/// Logs an event of the load balancer.
pub(crate) fn balancer(event: &Balancer, problems: &mut Problems) {
    match event {
        Balancer::BackendUp { service, backend, reason, after } => {
            tracing::info!(%service, %backend, reason, after_seconds = after.as_secs_f64(), "backend up");
        }
        Balancer::BackendTerminating { service, backend, sessions } => {
            tracing::info!(%service, %backend, sessions, "backend shuts down: it gets no new connections");
        }
        Balancer::BackendDown { service, backend, reason, sessions } => {
            tracing::warn!(%service, %backend, reason, sessions, "backend down");
        }
        Balancer::BackendSuspected { service, backend, reason } => {
            tracing::info!(%service, %backend, %reason, "backend suspected");
        }
        Balancer::BackendTrusted { service, backend } => {
            tracing::info!(%service, %backend, "backend trusted again");
        }
        Balancer::BackendForbidden { service, backend } => {
            tracing::warn!(%service, %backend, "the backend is a virtual IP of this configuration and is left out");
        }
        Balancer::ClientsRefused { service, reason, limit, total } => {
            refused(service, *reason, *limit, *total, problems);
        }
        Balancer::ListenFallback { configured, actual, reason } => {
            tracing::info!(%configured, %actual, reason, "listening on IPv4 only");
        }
        Balancer::MarkRefused { reason } => {
            tracing::warn!(reason, "connections to backends are not marked");
            problems.raise(Cause::Mark, format!("connections to backends are not marked: {reason}"));
        }
        Balancer::CongestionRefused { algorithm, reason } => {
            tracing::warn!(algorithm, reason, "congestion control");
            problems.raise(Cause::Congestion, format!("no congestion control {algorithm}: {reason}"));
        }
        Balancer::ResourcesExhausted { shortage, backend, reason } => {
            exhausted(*shortage, *backend, reason, problems);
        }
        Balancer::WorkerGone { worker } => {
            tracing::error!(worker, "a worker of the load balancer ended");
            problems
                .raise(Cause::Worker, format!("worker {worker} of the load balancer ended: restart cplb"));
        }
        other => tracing::debug!(?other, "load balancer"),
    }
}

/// How long the load balancer's troubles are shown that it reports every 10 s while they last.
const LASTING: Duration = Duration::from_secs(15);

fn refused(service: &str, reason: Refusal, limit: Option<usize>, total: u64, problems: &mut Problems) {
    let limit = limit.map(|limit| limit.to_string()).unwrap_or_default();
    let remedy = match reason {
        Refusal::NoBackend => {
            tracing::warn!(service, total, "clients refused: no backend takes a connection");
            return;
        }
        Refusal::MaxConnections => "as many connections as maxConnections allows are open",
        Refusal::MaxConnectionsPerClient => {
            "a client has as many connections open as maxConnectionsPerClient allows"
        }
        Refusal::Descriptors => "sessions have all descriptors that LimitNOFILE leaves to them: raise it",
        // The shortage itself is reported.
        _ => return,
    };
    tracing::warn!(service, %reason, limit, total, "clients refused: {remedy}");
    let of = if limit.is_empty() { String::new() } else { format!(" ({limit})") };
    let text = format!("service {service} refuses clients: {remedy}{of}");
    problems.raise_until(Cause::Limited(service.to_owned(), reason), text, Instant::now() + LASTING);
}

fn exhausted(shortage: Shortage, backend: Option<SocketAddr>, reason: &str, problems: &mut Problems) {
    let backend = backend.map(|backend| backend.to_string()).unwrap_or_default();
    let remedy = match shortage {
        Shortage::Descriptors => "sessions have all descriptors that LimitNOFILE leaves to them: raise it",
        Shortage::HostFiles => "this host has no more open files: raise fs.file-max",
        Shortage::Ports => {
            "no local port is left towards a backend: widen net.ipv4.ip_local_port_range, or add backends"
        }
        _ => "the kernel has no memory for sockets: see net.ipv4.tcp_mem and the memory of this host",
    };
    tracing::error!(backend, reason, "connections fail: {remedy}");
    let towards = if backend.is_empty() { String::new() } else { format!(" (towards {backend})") };
    let text = format!("connections fail: {remedy}{towards}");
    problems.raise_until(Cause::Exhausted(shortage), text, Instant::now() + LASTING);
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_vip::KernelError;

    fn nowhere(_: GroupId) -> String {
        String::new()
    }

    #[test]
    fn dropped_news_are_a_problem_until_none_were_dropped_for_a_while() {
        let mut problems = Problems::default();
        for _ in 0..2 {
            keeper(&KeeperEvent::Resynced { cause: ResyncCause::Overrun }, nowhere, &mut problems);
        }
        let texts = problems.texts();
        assert!(texts.len() == 1 && texts[0].contains("netlink overrun"), "{texts:?}");
        keeper(&KeeperEvent::Resynced { cause: ResyncCause::Retry }, nowhere, &mut problems);
        assert_eq!(problems.texts(), texts);
        no_overrun(2, &mut problems);
        assert!(problems.texts().is_empty());
    }

    #[test]
    fn other_users_of_an_address_or_a_vrid_are_problems_until_they_are_silent() {
        let mut problems = Problems::default();
        let source = IpAddr::from([10, 0, 0, 66]);
        let addresses = vrrp::Addresses::V4((1..=6).map(|host| [10, 0, 0, 200 + host].into()).collect());
        let warnings = [
            Election::OtherGroup { source, addresses },
            Election::Stranger { source, priority: vrrp::WirePriority(150) },
            Election::AnnouncedElsewhere { ip: source, mac: vrrp::MacAddr([2; 6]) },
            Election::Contended { source },
            Election::AddressListMismatch { source },
        ];
        for warning in warnings {
            let event = RunnerEvent::Warning { id: InstanceId(51), warning, suppressed: 0 };
            election(&event, &mut problems);
        }
        let id = InstanceId(51);
        for reason in [Discard::Password, Discard::Checksum] {
            election(&RunnerEvent::Discarded { id, reason, source, suppressed: 0 }, &mut problems);
        }
        let texts = problems.texts();
        assert_eq!(texts.len(), 5, "{texts:?}");
        assert!(texts[0].contains("10.0.0.201, 10.0.0.202, 10.0.0.203, 10.0.0.204 and 2 more"), "{texts:?}");
        assert!(texts.iter().all(|text| text.starts_with("virtual router 51: ")), "{texts:?}");
        assert!(texts.iter().any(|text| text.contains("another authPass")), "{texts:?}");
        problems.fade(Instant::now() + std::time::Duration::from_secs(120));
        assert!(problems.texts().is_empty());
    }

    #[test]
    fn tables_that_cannot_be_read_are_a_problem_until_they_can() {
        let mut problems = Problems::default();
        let warning = Warning::Unobserved(KernelError::NoAnswer);
        keeper(&KeeperEvent::Warning { id: None, warning }, nowhere, &mut problems);
        assert!(problems.texts()[0].contains("cannot read the kernel's tables"), "{:?}", problems.texts());
        keeper(&KeeperEvent::Resynced { cause: ResyncCause::Retry }, nowhere, &mut problems);
        assert!(problems.texts().is_empty());
    }
    #[test]
    fn a_missing_link_local_address_degrades_only_groups_that_multicast_ipv6() {
        let address = |ip: &str, flags| netlink_vip::InterfaceAddress {
            ip: ip.parse().unwrap(),
            prefix_len: 64,
            scope: 0,
            flags,
        };
        let event = |up, addresses: &[netlink_vip::InterfaceAddress]| {
            let (name, addresses) = ("eth0".to_owned(), addresses.to_vec());
            let state =
                InterfaceState { name, index: 2, mac: Some([2; 6]), up, addresses, kind: None, vrf: None };
            KeeperEvent::Interface { id: GroupId(51), state: Some(state) }
        };
        let mut problems = Problems::default();
        let global = address("fd00::1", 0);
        link_local(&event(true, &[global]), |_| false, &mut problems);
        link_local(&event(false, &[global]), |_| true, &mut problems);
        assert!(problems.texts().is_empty(), "{:?}", problems.texts());
        for useless in [global, address("fe80::1", address_flag::DADFAILED)] {
            link_local(&event(true, &[useless]), |_| true, &mut problems);
            let text = "virtual router 51: eth0 has no IPv6 link-local address, so IPv6 advertisements cannot be sent";
            assert_eq!(problems.texts(), [text]);
        }
        link_local(&event(true, &[address("fe80::1", address_flag::TENTATIVE)]), |_| true, &mut problems);
        assert!(problems.texts().is_empty(), "it will do in a moment");
    }
}
