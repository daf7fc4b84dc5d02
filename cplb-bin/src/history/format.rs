//! The entries of the history, and the content of `history.json`. The fuzz target `state_files` compiles this file, too.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::time::WallTime;

/// The most entries that are kept: those of a hundred moves or more among three controllers.
pub(crate) const MAX_ENTRIES: usize = 512;
/// The longest text in bytes, as on the group channel.
const MAX_TEXT: usize = 255;

/// The event that an entry records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Kind {
    /// An instance of a controller changed its state, as that controller reports.
    Transition,
    /// This node heard another router that became Active, which need not report itself.
    Heard,
    /// The daemon of this node started.
    Started,
    /// The daemon of this node stopped as it was asked to.
    Stopped,
    /// The transitions of a controller between `since` and this time are not known.
    Gap,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Entry {
    /// By the wall clock of this node.
    pub(crate) time: WallTime,
    pub(crate) kind: Kind,
    /// The name of the controller; empty for a router that does not report itself.
    pub(crate) node: String,
    /// An address of the controller or router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<IpAddr>,
    /// The instance, with `transition` and `heard`.
    #[serde(default, rename = "virtualRouterID", skip_serializing_if = "Option::is_none")]
    pub(crate) vrid: Option<u8>,
    /// The state left, with `transition` if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<String>,
    /// The state entered, with `transition`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<String>,
    /// The cause, with `transition` and `heard`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    /// The time from the last advertisement of another router to the transition, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) silence_milliseconds: Option<u32>,
    /// The time by the clock of the controller that reported it; absent for what this node has seen itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node_time: Option<WallTime>,
    /// The begin of a `gap`; with `started` the time of the last entry of the run before, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<WallTime>,
}

impl Entry {
    /// An entry without what depends on its kind.
    pub(crate) fn new(time: WallTime, kind: Kind, node: &str) -> Self {
        Self {
            time,
            kind,
            node: shortened(node),
            address: None,
            vrid: None,
            from: None,
            to: None,
            reason: String::new(),
            silence_milliseconds: None,
            node_time: None,
            since: None,
        }
    }

    fn fault(&self) -> Option<&'static str> {
        let texts = [Some(&self.node), self.from.as_ref(), self.to.as_ref(), Some(&self.reason)];
        let has_instance = self.vrid.is_some_and(|vrid| vrid > 0);
        match self.kind {
            _ if texts.into_iter().flatten().any(|text| text.len() > MAX_TEXT) => Some("a text is too long"),
            Kind::Transition if !has_instance || self.to.is_none() => Some("a transition lacks a field"),
            Kind::Heard if !has_instance || self.address.is_none() => Some("a heard router lacks a field"),
            Kind::Gap if self.since.is_none() => Some("a gap has no begin"),
            _ => None,
        }
    }
}

/// The text, cut at the longest length, without control characters, which take six bytes each in the file.
pub(crate) fn shortened(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_ascii_control() { ' ' } else { c }).collect()
}

/// The entries, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawContent")]
pub(crate) struct Content {
    pub(crate) entries: Vec<Entry>,
}

/// A content before validation.
#[derive(Deserialize)]
struct RawContent {
    entries: Vec<Entry>,
}

impl TryFrom<RawContent> for Content {
    type Error = String;

    fn try_from(RawContent { entries }: RawContent) -> Result<Self, Self::Error> {
        if entries.len() > MAX_ENTRIES {
            return Err(format!("more than {MAX_ENTRIES} entries"));
        }
        if let Some(fault) = entries.iter().find_map(Entry::fault) {
            return Err(fault.to_owned());
        }
        if !entries.is_sorted_by_key(|entry| entry.time) {
            return Err("the entries are not in the order of their times".to_owned());
        }
        Ok(Self { entries })
    }
}
