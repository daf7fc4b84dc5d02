//! The events that the history records, and its document.

use std::sync::Arc;
use std::time::SystemTime;

use vrrp::channel::{MAX_TRANSITIONS, TransitionReport};
use vrrp::router::{Reason, StateName};
use vrrp::runner::{InstanceId, PastTransition, RunnerEvent};

use crate::history::{
    ActiveSeen, Document, Entry, Instance, OwnTransition, PeerReport, PeerTransition, SCHEMA, WallTime,
    Written,
};

use crate::http::View;

use super::Daemon;
use super::group::PeerState;
use super::problems::Cause;

impl Daemon {
    /// Records an event of the election, and lets the other controllers know at once.
    pub(super) fn record_election(&mut self, event: &RunnerEvent) {
        match event {
            RunnerEvent::Transition { id, past } => {
                let Some(vrid) = self.vrid(*id) else { return };
                let transition = &past.transition;
                self.recorder.history.own(OwnTransition {
                    time: past.at.into(),
                    address: self.own_addresses().first().copied(),
                    vrid,
                    from: transition.from.as_str(),
                    to: transition.to.as_str(),
                    reason: transition.reason.to_string(),
                    silence_milliseconds: silence(past),
                });
                self.save_history();
                self.update_group();
            }
            RunnerEvent::ActiveChanged { id, change, .. } => {
                let Some(vrid) = self.vrid(*id) else { return };
                self.recorder.history.active_seen(ActiveSeen {
                    time: SystemTime::now().into(),
                    vrid,
                    address: change.to,
                    reason: change.to_string(),
                });
                self.save_history();
            }
            _ => {}
        }
    }

    /// Records the reports of the other controllers.
    pub(super) fn record_peers(&mut self) {
        for peer in self.group.peers() {
            self.recorder.history.peer(&peer_report(&peer), WallTime::now());
        }
        self.save_history();
    }

    /// Writes the history where the state directory is in use.
    pub(super) fn save_history(&mut self) {
        if self.uses_state_dir() {
            self.recorder.save();
        }
    }

    pub(super) fn on_history_written(&mut self, written: Written) {
        match self.recorder.written(written) {
            None => {
                self.problems.clear(&Cause::Record("history file"));
            }
            Some(why) => {
                let text = format!("the history is not written, and not known after a restart: {why}");
                if self.problems.raise(Cause::Record("history file"), &text) {
                    tracing::warn!("{text}");
                }
            }
        }
    }

    /// The last transitions of this node for its report, the newest last.
    pub(super) fn last_transitions(&self) -> Vec<TransitionReport> {
        self.recorder.history.last_own(MAX_TRANSITIONS).iter().filter_map(report).collect()
    }

    /// The answer to `cplb history`.
    pub(super) fn history(&self) -> Document {
        let instances = self.config.instances.iter().map(|instance| Instance {
            vrid: instance.vrid.get(),
            virtual_ips: instance.virtual_ips.iter().map(ToString::to_string).collect(),
        });
        Document {
            schema: SCHEMA,
            node: self.node_name.clone(),
            instances: instances.collect(),
            terms: Vec::new(),
            entries: self.recorder.history.entries().map(|entry| Entry::clone(entry)).collect(),
        }
    }

    /// The content of the status page.
    pub(super) fn page_view(&self) -> View {
        View {
            status: self.status(),
            node: self.node_name.clone(),
            entries: self.recorder.history.entries().cloned().collect(),
        }
    }

    fn vrid(&self, id: InstanceId) -> Option<u8> {
        u8::try_from(id.0).ok().filter(|vrid| *vrid > 0)
    }
}

/// The time without an Active, where that is the reason of a transition.
fn silence(past: &PastTransition) -> Option<u32> {
    let is_reason = matches!(past.transition.reason, Reason::ActiveSilent { source: Some(_) });
    let silence = past.since_last_heard.filter(|_| is_reason)?;
    Some(u32::try_from(silence.as_millis()).unwrap_or(u32::MAX - 1))
}

fn report(entry: &Arc<Entry>) -> Option<TransitionReport> {
    let state = |name: &Option<String>| {
        StateName::ALL.into_iter().find(|state| Some(state.as_str()) == name.as_deref())
    };
    Some(TransitionReport {
        vrid: entry.vrid?,
        at: entry.time.millis(),
        from: state(&entry.from),
        to: state(&entry.to),
        reason: entry.reason.clone(),
        silence: entry.silence_milliseconds,
    })
}

fn peer_report(peer: &PeerState) -> PeerReport {
    let PeerState { address, report, clock_ahead, .. } = peer;
    let transition = |found: &TransitionReport| PeerTransition {
        time: WallTime::from_millis(found.at),
        vrid: found.vrid,
        from: found.from.map(StateName::as_str),
        to: found.to.map_or("unknown", StateName::as_str),
        reason: found.reason.clone(),
        silence_milliseconds: found.silence,
    };
    let others = std::iter::once(address).filter(|address| !report.addresses.contains(address));
    PeerReport {
        node: report.node.clone(),
        addresses: report.addresses.iter().chain(others).copied().collect(),
        clock_ahead: *clock_ahead,
        transitions: report.transitions.iter().map(transition).collect(),
        is_full: report.transitions.len() >= MAX_TRANSITIONS,
    }
}
