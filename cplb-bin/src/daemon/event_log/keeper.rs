//! Events of the keeper of the addresses, and the state of the interfaces that it reports.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_vip::wire::address_flag;
use netlink_vip::{AddressCopy, GroupId, InterfaceState, KeeperEvent, ResyncCause, Warning};
use vrrp::runner::InstanceId;

use crate::daemon::ids::instance_of;
use crate::daemon::instance_log::{InstanceFields, instance_log};
use crate::daemon::problems::{Cause, Problems};
use crate::daemon::serving::copy_text;

/// Logs an event of the keeper. `instance` gives the fields of an instance, `wanted` the selector of its interface
/// in the configuration.
pub(crate) fn log_keeper(
    event: &KeeperEvent,
    instance: impl Fn(InstanceId) -> InstanceFields,
    wanted: impl Fn(GroupId) -> String,
    problems: &mut Problems,
) {
    let instance = |id: &GroupId| instance(instance_of(*id));
    match event {
        KeeperEvent::Interface { id, state: Some(state) } => {
            let instance = InstanceFields { interface: state.name.clone(), ..instance(id) };
            interface_present(&instance, state, problems);
        }
        KeeperEvent::Interface { id, state: None } => {
            let instance = InstanceFields { interface: wanted(*id), ..instance(id) };
            interface_missing(&instance, problems);
        }
        KeeperEvent::Installed { id, took } => {
            instance_log!(info, instance(id), took_ms = took.as_millis(), "virtual IPs installed");
        }
        KeeperEvent::Removed { id, reason } => {
            instance_log!(info, instance(id), %reason, "virtual IPs removed");
        }
        KeeperEvent::Missing { id, ip } => {
            instance_log!(warn, instance(id), %ip, "virtual IP removed by another program; restoring it");
        }
        KeeperEvent::LeaseLost { id } => instance_log!(warn, instance(id), "lease of the virtual IPs lost"),
        KeeperEvent::Copies { id, copies } => address_copies(&instance(id), copies, problems),
        KeeperEvent::SessionsEnded { id, ips, reset, silent, took } => {
            sessions_ended(&instance(id), ips, (*reset, *silent), *took);
        }
        KeeperEvent::Warning { id: Some(id), warning } => {
            instance_log!(warn, instance(id), "{warning}");
            note_warning(Some(id.0), warning, problems);
        }
        KeeperEvent::Warning { id: None, warning } => {
            tracing::warn!("{warning}");
            note_warning(None, warning, problems);
        }
        KeeperEvent::Resynced { cause } => {
            problems.clear(&Cause::Unobserved);
            match cause {
                ResyncCause::Overrun => log_overrun(problems),
                cause => tracing::debug!(?cause, "the kernel's tables were read again"),
            }
        }
        other => tracing::debug!(?other, "keeper"),
    }
}

fn interface_missing(instance: &InstanceFields, problems: &mut Problems) {
    instance_log!(warn, instance, "interface not found; waiting for it");
    let InstanceFields { interface, vrid, .. } = instance;
    let text = format!("virtual router {vrid} waits for its interface: {interface}");
    problems.raise(Cause::Interface(*vrid), text);
}

fn interface_present(instance: &InstanceFields, state: &InterfaceState, problems: &mut Problems) {
    let (vrid, cause) = (instance.vrid, Cause::Interface(instance.vrid));
    if state.up {
        instance_log!(info, instance, sources = sources(state), "interface up");
        problems.clear(&cause);
    } else {
        instance_log!(warn, instance, "interface down");
        problems.raise(cause, format!("virtual router {vrid}: {} is down", state.name));
    }
}

/// The node's own addresses that advertisements may come from.
fn sources(state: &InterfaceState) -> String {
    let v4 = state.source_v4().map(IpAddr::V4);
    let v6 = state.source_v6().map(IpAddr::V6);
    let all: Vec<String> = v4.into_iter().chain(v6).map(|ip| ip.to_string()).collect();
    all.join(" ")
}

fn address_copies(instance: &InstanceFields, copies: &[AddressCopy], problems: &mut Problems) {
    let cause = Cause::Copies(instance.vrid);
    for AddressCopy { interface, ip, prefix_len, .. } in copies {
        instance_log!(
            warn,
            instance,
            %ip,
            prefix_len,
            found_on = %interface,
            "virtual IP without a lease on this node"
        );
    }
    if copies.is_empty() {
        problems.clear(&cause);
        instance_log!(info, instance, "no virtual IP without a lease on this node any more");
    } else {
        problems.raise_all(cause, copies.iter().map(copy_text).collect());
    }
}

/// `reset` sessions ended by a reset, `silent` ones without.
fn sessions_ended(
    instance: &InstanceFields,
    ips: &[IpAddr],
    (reset, silent): (usize, usize),
    took: Duration,
) {
    let took_ms = took.as_millis();
    if silent == 0 {
        instance_log!(info, instance, addresses = ?ips, reset, took_ms, "sessions reset");
    } else {
        instance_log!(
            warn,
            instance,
            addresses = ?ips,
            reset,
            silent,
            took_ms,
            "sessions ended without a reset, as their address was gone"
        );
    }
}

/// Keeps a warning in status for as long as it holds, or for [`Problems::raise_fading`]'s time if its end is not reported.
fn note_warning(vrid: Option<u32>, warning: &Warning, problems: &mut Problems) {
    let text = match vrid {
        Some(vrid) => format!("virtual router {vrid}: {warning}"),
        None => warning.to_string(),
    };
    match (warning, vrid) {
        (Warning::Unobserved(_), _) => drop(problems.raise(Cause::Unobserved, text)),
        (Warning::RealtimeUnavailable { .. }, _) => drop(problems.raise(Cause::KeeperRealTime, text)),
        (Warning::ForeignLabel { .. }, Some(vrid)) => drop(problems.raise(Cause::Label(vrid), text)),
        // The state directory has a watch of its own, and a reclaimed address is gone.
        (Warning::Unrecorded { .. } | Warning::Reclaimed { .. }, _) => {}
        (Warning::RecordUnreadable { .. }, _) => {
            problems.raise_fading(Cause::Record("virtual IPs"), text, Instant::now());
        }
        _ => problems.raise_fading(Cause::Keeper(vrid), text, Instant::now()),
    }
}

/// Multicast IPv6 advertisements come from a link-local address (RFC 9568 §5.1.2.1); `multicasts` returns whether a group
/// needs one.
pub(crate) fn log_link_local(
    event: &KeeperEvent,
    instance: impl Fn(InstanceId) -> InstanceFields,
    multicasts: impl Fn(GroupId) -> bool,
    problems: &mut Problems,
) {
    let KeeperEvent::Interface { id, state } = event else { return };
    let cause = Cause::LinkLocal(id.0);
    // A tentative address becomes usable within seconds.
    let usable = |address: &netlink_vip::InterfaceAddress| {
        let is_link_local = matches!(address.ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        is_link_local && address.flags & address_flag::DADFAILED == 0
    };
    match state {
        Some(state) if state.up && multicasts(*id) && !state.addresses.iter().any(usable) => {
            let text = format!(
                "virtual router {id}: {} has no IPv6 link-local address, so IPv6 advertisements cannot be sent",
                state.name
            );
            if problems.raise(cause, text) {
                let instance = InstanceFields { interface: state.name.clone(), ..instance(instance_of(*id)) };
                instance_log!(warn, instance, "interface has no IPv6 link-local address");
            }
        }
        _ => {
            problems.clear(&cause);
        }
    }
}

/// Reports that the kernel dropped netlink events, once until [`log_overrun_end`]: a storm of changes causes many resyncs.
pub(crate) fn log_overrun(problems: &mut Problems) {
    let text = "netlink overrun: the kernel dropped events about links and addresses that came faster than they were \
                read, and all state was read again: if this persists, find the source of the changes with `ip monitor`";
    if problems.raise(Cause::Overrun, text) {
        tracing::warn!("{text}");
    }
}

/// Ends the problem of [`log_overrun`], after a round of maintenance without dropped events.
pub(crate) fn log_overrun_end(total: u64, problems: &mut Problems) {
    if problems.clear(&Cause::Overrun) {
        tracing::info!(overruns = total, "netlink events no longer overrun");
    }
}

/// Raises or clears a problem of an instance's interface.
pub(crate) fn log_interface(
    instance: &InstanceFields,
    cause: Cause,
    problem: Option<String>,
    problems: &mut Problems,
) {
    let Some(text) = problem else {
        problems.clear(&cause);
        return;
    };
    if problems.raise(cause, format!("virtual router {}: {text}", instance.vrid)) {
        instance_log!(warn, instance, "{text}");
    }
}
