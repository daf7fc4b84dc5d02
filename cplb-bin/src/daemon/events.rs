//! Turns the parts' events into log lines and problems.

use std::net::IpAddr;
use std::time::Instant;

use lb_proxy::Event as Balancer;
use netlink_vip::{GroupId, InterfaceState, KeeperEvent, ResyncCause, Warning};
use vrrp::runner::{InstanceId, RunnerEvent};

use super::names::Answers;
use super::problems::{Cause, Problems};

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
        }
        RunnerEvent::Discarded { id, reason, source, suppressed } => {
            tracing::warn!(vrid = id.0, %source, suppressed, "advertisement discarded: {reason}");
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
            tracing::info!(vrid = id.0, took_ms = took.as_millis(), "the virtual IPs are here");
            problems.clear(&Cause::Refused(id.0));
        }
        KeeperEvent::Removed { id, reason } => {
            tracing::info!(vrid = id.0, reason = %reason, "the virtual IPs are gone");
        }
        KeeperEvent::Missing { id, ip } => {
            tracing::warn!(vrid = id.0, %ip, "somebody removed the virtual IP; restoring it");
        }
        KeeperEvent::LeaseLost { id } => tracing::warn!(vrid = id.0, "the lease of the virtual IPs was lost"),
        KeeperEvent::Refused { id, ip, reason } => {
            tracing::error!(vrid = id.0, %ip, "the virtual IP cannot be installed: {reason}");
            problems.raise(Cause::Refused(id.0), format!("{ip} cannot be installed: {reason}"));
        }
        KeeperEvent::Warning { id, warning } => {
            match id {
                Some(id) => tracing::warn!(vrid = id.0, "{warning}"),
                None => tracing::warn!("{warning}"),
            }
            if matches!(warning, Warning::Unobserved(_)) {
                problems.raise(Cause::Unobserved, warning.to_string());
            }
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
        Balancer::BackendLeaving { service, backend, sessions } => {
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
        Balancer::ClientsRefused { service, total } => {
            tracing::warn!(%service, total, "clients are refused: no backend takes a connection");
        }
        Balancer::ListenFallback { configured, actual, reason } => {
            tracing::info!(%configured, %actual, reason, "listening on IPv4 only");
        }
        Balancer::MarkRefused { reason } => {
            tracing::warn!(reason, "connections to backends are not marked");
        }
        Balancer::CongestionRefused { algorithm, reason } => {
            tracing::warn!(algorithm, reason, "congestion control");
        }
        Balancer::ResourcesExhausted { worker, reason } => {
            tracing::error!(worker, reason, "no descriptors or memory for new clients: raise LimitNOFILE=");
            problems.raise(
                Cause::Exhausted,
                format!("no descriptors or memory for new clients ({reason}): raise LimitNOFILE="),
            );
        }
        Balancer::WorkerGone { worker } => {
            tracing::error!(worker, "a worker of the load balancer ended");
            problems
                .raise(Cause::Worker, format!("worker {worker} of the load balancer ended: restart cplb"));
        }
        other => tracing::debug!(?other, "load balancer"),
    }
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
    fn tables_that_cannot_be_read_are_a_problem_until_they_can() {
        let mut problems = Problems::default();
        let warning = Warning::Unobserved(KernelError::NoAnswer);
        keeper(&KeeperEvent::Warning { id: None, warning }, nowhere, &mut problems);
        assert!(problems.texts()[0].contains("cannot read the kernel's tables"), "{:?}", problems.texts());
        keeper(&KeeperEvent::Resynced { cause: ResyncCause::Retry }, nowhere, &mut problems);
        assert!(problems.texts().is_empty());
    }
}
