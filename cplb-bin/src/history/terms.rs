//! The terms of the Actives, derived from the entries.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::format::{Entry, Kind};
use super::time::WallTime;

/// The most by which the times of one event differ on two controllers, as a rule: the error of the measured difference of their
/// clocks, and the time until the first advertisement is heard.
const TOLERANCE: Duration = Duration::from_millis(250);
/// The same where no other router was Active in between.
const WIDE_TOLERANCE: Duration = Duration::from_secs(1);

const ACTIVE: &str = "active";
/// A router in this state still has the virtual IPs.
const RESIGNING: &str = "resigning";

/// The time for which one router was Active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Term {
    #[serde(rename = "virtualRouterID")]
    pub(crate) vrid: u8,
    /// The name of the controller, or the address of a router that does not report itself.
    pub(crate) node: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<IpAddr>,
    pub(crate) begin: WallTime,
    /// The reason why it became Active.
    pub(crate) reason: String,
    /// The time from the last advertisement of another router until then, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) silence_milliseconds: Option<u32>,
    /// True for the latest term of an instance, as far as this node knows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) lasts: bool,
    /// Absent while it lasts, and if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) end: Option<WallTime>,
    /// The reason why it ended, as the router itself reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) end_reason: Option<String>,
    /// True if this node only heard the router, which does not report it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_heard: bool,
}

/// The terms of all instances, by the time of their begin. `entries` are in the order of their times.
///
/// Equal knowledge gives equal terms on all nodes: of what several controllers tell about one event, the report of the router
/// that became Active counts, and what others have heard only where there is no such report.
pub(crate) fn terms<'a>(entries: impl IntoIterator<Item = &'a Arc<Entry>>) -> Vec<Term> {
    let mut reported = Reported::default();
    let mut heard = Vec::new();
    for entry in entries {
        match (entry.kind, entry.vrid) {
            (Kind::Transition, Some(vrid)) => reported.transition(vrid, entry),
            (Kind::Heard, Some(vrid)) => heard.push((vrid, entry)),
            // A daemon that starts is not Active, whatever its last run did not come to report.
            (Kind::Started | Kind::Gap, _) => reported.lose_end(&entry.node),
            _ => {}
        }
    }
    let mut terms = reported.terms;
    for (vrid, entry) in heard {
        add_heard(&mut terms, vrid, entry);
    }
    let mut seen = BTreeSet::new();
    for term in terms.iter_mut().rev() {
        term.lasts = seen.insert(term.vrid) && term.end.is_none();
    }
    terms
}

#[derive(Default)]
struct Reported {
    terms: Vec<Term>,
    /// The index of the term that lasts, by instance and node.
    open: BTreeMap<(u8, String), usize>,
}

impl Reported {
    fn transition(&mut self, vrid: u8, entry: &Entry) {
        let to = entry.to.as_deref().unwrap_or_default();
        let key = (vrid, entry.node.clone());
        if to == RESIGNING {
            // The reason of the resignation is the reason of the end.
            if let Some(term) = self.open.get(&key).and_then(|index| self.terms.get_mut(*index)) {
                term.end_reason = Some(entry.reason.clone());
            }
            return;
        }
        // From another state, or to Active once more, the end of the term was not reported: the daemon was killed.
        let is_end = entry.from.as_deref().map_or(to != ACTIVE, |from| from == ACTIVE || from == RESIGNING);
        if let Some(term) = self.open.remove(&key).and_then(|index| self.terms.get_mut(index))
            && is_end
        {
            term.end = Some(entry.time);
            term.end_reason.get_or_insert_with(|| entry.reason.clone());
        }
        if to == ACTIVE {
            self.open.insert(key, self.terms.len());
            self.terms.push(Term {
                vrid,
                node: entry.node.clone(),
                address: entry.address,
                begin: entry.time,
                reason: entry.reason.clone(),
                silence_milliseconds: entry.silence_milliseconds,
                lasts: false,
                end: None,
                end_reason: None,
                is_heard: false,
            });
        }
    }

    /// The terms of a node end at a time that is not known.
    fn lose_end(&mut self, node: &str) {
        self.open.retain(|(_, name), _| name != node);
    }
}

/// Adds the term of a router that was heard, unless it is known.
fn add_heard(terms: &mut Vec<Term>, vrid: u8, entry: &Entry) {
    let name = match entry.address {
        Some(address) if entry.node.is_empty() => address.to_string(),
        _ => entry.node.clone(),
    };
    let of_instance = |term: &&Term| term.vrid == vrid;
    let latest = entry.time.saturating_sub(TOLERANCE);
    let has_ended = |term: &Term| match term.end {
        Some(end) => end < latest,
        // Where the end is not known, the next term is no earlier.
        None => terms
            .iter()
            .filter(of_instance)
            .any(|other| other.node != term.node && term.begin < other.begin && other.begin < latest),
    };
    let is_own = |term: &&Term| !term.is_heard && term.node == name;
    let mut before = terms.iter().filter(of_instance).filter(|term| term.begin <= entry.time);
    let next = terms.iter().filter(of_instance).find(|term| term.begin > entry.time);
    let begins_soon = |term: &Term| term.begin <= entry.time.saturating_add(WIDE_TOLERANCE);
    let is_reported = before.clone().filter(is_own).any(|term| !has_ended(term))
        || next.filter(is_own).is_some_and(begins_soon);
    let goes_on = before.next_back().is_some_and(|term| term.is_heard && term.node == name);
    if is_reported || goes_on {
        return;
    }
    let at = terms.iter().rposition(|term| term.begin <= entry.time).map_or(0, |at| at + 1);
    let term = Term {
        vrid,
        node: name,
        address: entry.address,
        begin: entry.time,
        reason: entry.reason.clone(),
        silence_milliseconds: None,
        lasts: false,
        end: None,
        end_reason: None,
        is_heard: true,
    };
    terms.insert(at, term);
}

#[cfg(test)]
#[path = "terms_tests.rs"]
mod tests;
