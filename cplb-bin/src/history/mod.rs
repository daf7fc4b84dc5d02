//! The history: the transitions of the instances of all controllers that this node knows of, kept over restarts.
//!
//! [`History`] is the core: bounded, ordered by the wall clock, without duplicates. [`terms()`] derives from it which router
//! was Active and when. The daemon records into it, a file in the state directory keeps it, and `cplb history` shows it.

pub(crate) mod client;
mod document;
mod file;
mod format;
mod names;
mod render;
mod since;
mod store;
mod terms;
mod time;

pub(crate) use document::{Document, Instance, SCHEMA};
pub(crate) use file::{Saver, Written, read};
pub(crate) use format::{Content, Entry};
pub(crate) use names::Names;
pub(crate) use since::duration;
pub(crate) use store::{ActiveSeen, History, OwnTransition, PeerReport, PeerTransition};
pub(crate) use terms::{Term, terms};
pub(crate) use time::WallTime;
