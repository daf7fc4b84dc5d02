//! The choice of the next holder.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;

use vrrp::WirePriority;
use vrrp::channel::InstanceReport;
use vrrp::router::StateName;

use crate::daemon::group::PeerState;

use super::view::{InstanceView, View, is_at, label};

/// The routers that may have the addresses next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// They are asked in this order; the first one to agree has them.
    Ask {
        candidates: VecDeque<IpAddr>,
        /// The reasons why others are not asked.
        declined: Vec<String>,
    },
    /// None is asked: no peer is in the channel, and another program may take over.
    Resign,
    /// This node has them.
    This,
}

/// Finds the candidates. Whether one can serve it tells itself when it is asked.
///
/// # Errors
///
/// If there is none.
pub(super) fn choose(view: &View, instance: &InstanceView, to: Option<&str>) -> Result<Choice, String> {
    match to {
        Some(to) => named(view, instance, to),
        None => any(view, instance),
    }
}

/// All peers that can serve by their last report, the highest priority first, then the highest address.
fn any(view: &View, instance: &InstanceView) -> Result<Choice, String> {
    let outside = view.outside_channel(instance);
    let (mut able, mut declined) = (Vec::new(), Vec::new());
    for (peer, report) in view.members(instance) {
        match unable(peer, report) {
            Some(why) => declined.push(why),
            None => able.push((report.priority, peer.address)),
        }
    }
    if able.is_empty() && declined.is_empty() {
        let none = || "no other controller is known".to_owned();
        return if outside.is_empty() { Err(none()) } else { Ok(Choice::Resign) };
    }
    if !outside.is_empty() {
        // A peer that cannot serve would take over before a program that is not asked.
        let others: Vec<String> = outside.iter().map(IpAddr::to_string).collect();
        declined.push(format!("{} may be named with --to", others.join(", ")));
    }
    if able.is_empty() {
        return Err(cannot(&declined));
    }
    able.sort_unstable();
    let candidates = able.into_iter().rev().map(|(_, address)| address).collect();
    Ok(Choice::Ask { candidates, declined })
}

/// The refusal after all candidates have declined.
pub(super) fn cannot(declined: &[String]) -> String {
    format!("no other controller can take over: {}", declined.join("; "))
}

fn named(view: &View, instance: &InstanceView, to: &str) -> Result<Choice, String> {
    let only = |candidate| Ok(Choice::Ask { candidates: [candidate].into(), declined: Vec::new() });
    let address = to.parse::<IpAddr>().ok();
    if to == view.node || (address.is_some() && address == instance.own) {
        return Ok(Choice::This);
    }
    let outside = view.outside_channel(instance);
    let is_named =
        |peer: &&PeerState| peer.report.node == to || address.is_some_and(|address| is_at(peer, address));
    let found: Vec<&PeerState> = view.members(instance).map(|(peer, _)| peer).filter(is_named).collect();
    match (&found[..], address) {
        ([peer], _) => only(peer.address),
        ([], Some(address)) if outside.contains(&address) => only(address),
        ([], _) => {
            let peers = view.members(instance).map(|(peer, _)| format!("{} ({})", label(peer), peer.address));
            let known: BTreeSet<String> = peers.chain(outside.iter().map(IpAddr::to_string)).collect();
            let known: Vec<String> = known.into_iter().collect();
            let known = if known.is_empty() { "no other one".to_owned() } else { known.join(", ") };
            Err(format!("no controller {to} is known for these virtual IPs; known: {known}"))
        }
        (several, _) => {
            let addresses: Vec<String> = several.iter().map(|peer| peer.address.to_string()).collect();
            Err(format!("several controllers are named {to}: name an address: {}", addresses.join(", ")))
        }
    }
}

/// The reason why a peer cannot take over, by its last report. It may still report that it is Active.
fn unable(peer: &PeerState, report: &InstanceReport) -> Option<String> {
    let node = label(peer);
    match (&peer.report.serving, report.state) {
        (Some(Err(why)), _) => Some(format!("{node} cannot serve: {why}")),
        (None, _) => Some(format!("{node} has not reported whether it can serve")),
        (_, Some(state @ (StateName::Init | StateName::Stopped))) => Some(format!("{node} is {state}")),
        _ if WirePriority(report.priority).is_degraded() => {
            Some(format!("{node} cannot hold these virtual IPs"))
        }
        _ => None,
    }
}

/// Checks a successor that a peer names, and returns the source of the Active, which that peer is.
///
/// # Errors
///
/// If the peer is not the Active, the successor is no controller, or this node is the successor and cannot serve.
pub(super) fn may_succeed(
    view: &View,
    instance: &InstanceView,
    from: &PeerState,
    successor: IpAddr,
) -> Result<IpAddr, String> {
    if instance.state != StateName::Backup {
        return Err(format!("it is {}", instance.state));
    }
    let Some(active) = instance.active.filter(|active| is_at(from, *active)) else {
        return Err(format!("it does not follow {}", label(from)));
    };
    if instance.own == Some(successor) {
        view.serving.clone()?;
        return if instance.degraded {
            Err("it cannot hold these virtual IPs".to_owned())
        } else {
            Ok(active)
        };
    }
    let is_member = view.members(instance).any(|(peer, _)| is_at(peer, successor));
    if is_member || view.outside_channel(instance).contains(&successor) {
        return Ok(active);
    }
    Err(format!("it knows no controller {successor}"))
}
