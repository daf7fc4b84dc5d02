//! Validity of the last claim on each group, shared so that it can be read in the middle of a write.
//!
//! A claim is carried out by writes that wait for the kernel's lock, which other namespaces may hold for longer than
//! a claim of a fast election is valid. Meanwhile the election goes on and keeps its word valid; only if it did not,
//! because the whole process or machine stood still, must what was written go again.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::types::GroupId;

/// Shared by the keeper and its handles.
#[derive(Debug, Default)]
pub(crate) struct Validity(Mutex<BTreeMap<GroupId, Instant>>);

impl Validity {
    /// The group may be held until `until`.
    pub(crate) fn extend(&self, id: GroupId, until: Instant) {
        self.ends().insert(id, until);
    }

    /// The group may not be held any more.
    pub(crate) fn withdraw(&self, id: GroupId) {
        self.ends().remove(&id);
    }

    /// Until when the group may be held, by the last claim or extension.
    pub(crate) fn end(&self, id: GroupId) -> Option<Instant> {
        self.ends().get(&id).copied()
    }

    /// Nothing here can panic while it holds the lock, so a poisoned one is as good as any.
    fn ends(&self) -> MutexGuard<'_, BTreeMap<GroupId, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
