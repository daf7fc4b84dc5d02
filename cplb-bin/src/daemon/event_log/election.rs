//! Events of the election.

use std::net::IpAddr;
use std::time::Instant;

use tracing::field::display;
use vrrp::router::{Discard, Reason, Transition, Warning};
use vrrp::runner::{ActiveChange, ChangeReason, InstanceId, PastTransition, RunnerEvent};

use crate::daemon::instance_log::{InstanceFields, instance_log};
use crate::daemon::problems::{Cause, Problems};

/// Logs an event of the election. `instance` gives the fields of an instance.
pub(crate) fn log_election(
    event: &RunnerEvent,
    instance: impl Fn(InstanceId) -> InstanceFields,
    problems: &mut Problems,
) {
    match event {
        RunnerEvent::Transition { id, past } => state_transition(&instance(*id), past),
        RunnerEvent::ActiveChanged { id, change, suppressed } => {
            active_change(&instance(*id), change, *suppressed);
        }
        RunnerEvent::Warning { id, warning, suppressed } => {
            let peer = peer_of_warning(warning).map(display);
            instance_log!(warn, instance(*id), peer, suppressed, "{warning}");
            if let Some((cause, text)) = contention(*id, warning) {
                problems.raise_fading(cause, text, Instant::now());
            }
        }
        RunnerEvent::Discarded { id, reason, source, suppressed } => {
            instance_log!(warn, instance(*id), peer = %source, suppressed, "advertisement discarded: {reason}");
            if let Some(text) = unheard_peer(*id, *reason, *source) {
                problems.raise_fading(Cause::Discarded(id.0, reason.as_str()), text, Instant::now());
            }
        }
        RunnerEvent::RealtimeUnavailable { why } => {
            tracing::warn!("the election runs without real-time priority: {why}");
            problems.raise(Cause::RealTime, format!("the election runs without real-time priority: {why}"));
        }
        RunnerEvent::SocketError { interface, operation, error, suppressed } => {
            tracing::warn!(interface, %operation, %error, suppressed, "VRRP socket error");
            let text = format!("{operation} on {interface} fails: {error}");
            problems.raise_fading(Cause::Socket(interface.clone()), text, Instant::now());
        }
        other => tracing::debug!(?other, "election"),
    }
}

fn state_transition(instance: &InstanceFields, past: &PastTransition) {
    let Transition { from, to, reason, after } = &past.transition;
    let peer = peer_of_reason(*reason).map(display);
    let after_seconds = after.as_secs_f64();
    let silent_seconds = match reason {
        Reason::ActiveSilent { source: Some(_) } => {
            past.since_last_heard.map(|silence| silence.as_secs_f64())
        }
        _ => None,
    };
    instance_log!(
        info, instance, %from, %to, %reason, peer, silent_seconds, after_seconds, "VRRP state transition"
    );
}

fn active_change(instance: &InstanceFields, change: &ActiveChange, suppressed: u64) {
    let ActiveChange { from, to: peer, reason, .. } = change;
    let Some(former) = from else {
        instance_log!(info, instance, %peer, "Active found");
        return;
    };
    let silent_seconds = match reason {
        ChangeReason::Silent(time) => Some(time.as_secs_f64()),
        _ => None,
    };
    let suppressed = (suppressed > 0).then_some(suppressed);
    instance_log!(info, instance, %peer, %former, reason = %change, silent_seconds, suppressed, "Active changed");
}

/// The router that caused a transition.
fn peer_of_reason(reason: Reason) -> Option<IpAddr> {
    match reason {
        Reason::ActiveSilent { source }
        | Reason::ActiveResigned { source }
        | Reason::ActiveDegraded { source } => source,
        Reason::Outranked { source, .. } | Reason::Unheard { source } | Reason::RivalHeard { source } => {
            Some(source)
        }
        _ => None,
    }
}

/// The router that a warning is about.
fn peer_of_warning(warning: &Warning) -> Option<IpAddr> {
    match warning {
        Warning::Conflict { source }
        | Warning::OtherGroup { source, .. }
        | Warning::Stranger { source, .. }
        | Warning::AddressListMismatch { source }
        | Warning::IntervalMismatch { source, .. }
        | Warning::Contended { source }
        | Warning::Unheard { source }
        | Warning::FamilySplit { source }
        | Warning::ClockDiffers { source, .. } => Some(*source),
        _ => None,
    }
}

/// The problem for advertisements that are discarded although they may be those of another controller. All others are
/// broken or foreign.
fn unheard_peer(id: InstanceId, reason: Discard, source: IpAddr) -> Option<String> {
    let difference = match reason {
        Discard::Password | Discard::AuthType => "another authPass: give every controller the same authPass",
        Discard::Unsigned => "no signature: give every controller the same authHMAC",
        Discard::UnexpectedSignature => {
            "a signature, and this node has no authHMAC: give every controller the same"
        }
        Discard::UnknownKey => {
            "a key that this node does not have: give every controller the same authHMAC keys"
        }
        Discard::Digest => "another key under the same id: give every controller the same authHMAC keys",
        Discard::Stale => "a time that is not within the authHMAC window: let both clocks be synchronised",
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
fn contention(id: InstanceId, warning: &Warning) -> Option<(Cause, String)> {
    let rival = |kind| Cause::Rival(id.0, kind);
    let (cause, text) = match warning {
        Warning::OtherGroup { .. } => (
            Cause::OtherGroup(id.0),
            format!(
                "virtual router {id}: {warning}: give this cluster another virtualRouterID on every controller; `cplb \
                 check` proposes one"
            ),
        ),
        Warning::Stranger { .. } => (
            Cause::Stranger(id.0),
            format!(
                "virtual router {id}: {warning} (none of backends and unicastPeers): stop it there, or list it"
            ),
        ),
        Warning::AnnouncedElsewhere { .. } => (
            rival("announced"),
            format!(
                "virtual router {id}: {warning}: does a firewall or switch drop IP protocol 112 between them, or does \
                 another host have the address?"
            ),
        ),
        Warning::Contended { .. } => (rival("contended"), format!("virtual router {id}: {warning}")),
        Warning::Unheard { .. } => (rival("unheard"), format!("virtual router {id}: {warning}")),
        Warning::FamilySplit { .. } => (rival("family"), format!("virtual router {id}: {warning}")),
        Warning::ClockDiffers { .. } => (
            rival("clock"),
            format!("virtual router {id}: {warning}: are both clocks synchronised, or is it a replay?"),
        ),
        Warning::ClockStepped { .. } => (
            rival("clock_step"),
            format!("virtual router {id}: {warning} since cplb was started; its signatures follow it slowly"),
        ),
        Warning::Conflict { .. } => (rival("conflict"), format!("virtual router {id}: {warning}")),
        _ => return None,
    };
    Some((cause, text))
}

/// Reports whether the source of unicast advertisements is an address of the interface, as it must be.
pub(crate) fn log_source(
    id: InstanceId,
    (source, present): (IpAddr, bool),
    instance: impl Fn(InstanceId) -> InstanceFields,
    problems: &mut Problems,
) {
    let cause = Cause::Source(id.0);
    if present {
        problems.clear(&cause);
        return;
    }
    let text = format!("virtual router {id} waits: its interface does not have unicastSourceIP {source}");
    if problems.raise(cause, text) {
        instance_log!(warn, instance(id), %source, "unicastSourceIP is not on the interface; waiting for it");
    }
}
