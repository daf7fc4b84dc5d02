//! Mailbox through which other threads reach the keeper: a slot per group for the election's last word, a queue for
//! the rest.
//!
//! A slot, because only the last word counts, and because a stopped keeper must not find a pile of old claims.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::event::Warning;
use crate::group::Registered;
use crate::lease::Claim;
use crate::status::Status;
use crate::types::{GroupId, Release};
use crate::validity::Validity;

/// The election's last word on a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    Claim(Claim),
    /// A release, and the claim that followed it, if one did before the keeper read it: the release still counts.
    Release(Release, Option<Claim>),
}

/// Rare changes.
#[derive(Debug)]
pub(crate) enum Command {
    Add(Box<Registered>),
    Update(Box<Registered>),
    Remove(GroupId),
    Warn(Option<GroupId>, Warning),
    Shutdown,
}

/// Everything that arrived since the last iteration.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) commands: VecDeque<Command>,
    pub(crate) intents: BTreeMap<GroupId, Intent>,
    /// Planned releases that wait to be finished, and when they are due without it. They stay in the box until then.
    deferred: BTreeMap<GroupId, Instant>,
}

/// Shared by the keeper and its handles.
#[derive(Default)]
pub(crate) struct Mailbox {
    pending: Mutex<Pending>,
    validity: Arc<Validity>,
    status: Mutex<Arc<Status>>,
    /// Since when a ping is unanswered.
    pinged_at: Mutex<Option<Instant>>,
    notify: Notify,
}

impl Mailbox {
    pub(crate) fn validity(&self) -> Arc<Validity> {
        Arc::clone(&self.validity)
    }

    /// The last claim is valid for longer: nothing the keeper has to wake up for.
    pub(crate) fn extend(&self, id: GroupId, valid_until: Instant) {
        self.validity.extend(id, valid_until);
    }

    pub(crate) fn claim(&self, id: GroupId, valid_until: Instant) {
        let claim = Claim { issued: Instant::now(), valid_until };
        self.validity.extend(id, valid_until);
        let mut pending = lock(&self.pending);
        let deferred = pending.deferred.remove(&id).map(|_| Release::Planned);
        let intent = match pending.intents.get(&id) {
            Some(Intent::Release(release, _)) => Intent::Release(*release, Some(claim)),
            _ => deferred.map_or(Intent::Claim(claim), |release| Intent::Release(release, Some(claim))),
        };
        pending.intents.insert(id, intent);
        drop(pending);
        self.notify.notify_one();
    }

    pub(crate) fn release(&self, id: GroupId, release: Release) {
        self.validity.withdraw(id);
        let mut pending = lock(&self.pending);
        pending.deferred.remove(&id);
        pending.intents.insert(id, Intent::Release(release, None));
        drop(pending);
        self.notify.notify_one();
    }

    /// A planned release at `deadline`, unless it is finished before, or a claim comes.
    pub(crate) fn release_by(&self, id: GroupId, deadline: Instant) {
        self.validity.withdraw(id);
        let mut pending = lock(&self.pending);
        if let Some(Intent::Release(release, _)) = pending.intents.remove(&id) {
            pending.intents.insert(id, Intent::Release(release, None));
        } else {
            let due = pending.deferred.entry(id).or_insert(deadline);
            *due = deadline.min(*due);
        }
        drop(pending);
        self.notify.notify_one();
    }

    /// Makes a release that is deferred due now; without one, nothing happens.
    pub(crate) fn finish_release(&self, id: GroupId) {
        let mut pending = lock(&self.pending);
        if pending.deferred.remove(&id).is_some() {
            pending.intents.insert(id, Intent::Release(Release::Planned, None));
        }
        drop(pending);
        self.notify.notify_one();
    }

    pub(crate) fn defers_release(&self, id: GroupId) -> bool {
        lock(&self.pending).deferred.contains_key(&id)
    }

    /// When the next deferred release is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        lock(&self.pending).deferred.values().min().copied()
    }

    pub(crate) fn command(&self, command: Command) {
        lock(&self.pending).commands.push_back(command);
        self.notify.notify_one();
    }

    /// Pings the keeper, and returns for how long the ping before is unanswered.
    pub(crate) fn ping(&self) -> Duration {
        let now = Instant::now();
        let since = *lock(&self.pinged_at).get_or_insert(now);
        self.notify.notify_one();
        now.saturating_duration_since(since)
    }

    /// Answers a ping.
    pub(crate) fn pong(&self) {
        *lock(&self.pinged_at) = None;
    }

    /// Commands that are carried out together, without a claim in between: an address that changes its group is
    /// deleted in the name of the former one, which must not meet it under the next one's lease.
    pub(crate) fn command_all(&self, commands: impl Iterator<Item = Command>) {
        lock(&self.pending).commands.extend(commands);
        self.notify.notify_one();
    }

    /// Empties the box, but for deferred releases that are not yet due.
    pub(crate) fn take(&self, now: Instant) -> Pending {
        let mut pending = lock(&self.pending);
        let Pending { commands, mut intents, deferred } = std::mem::take(&mut *pending);
        let (due, later) = deferred.into_iter().partition::<BTreeMap<_, _>, _>(|(_, at)| *at <= now);
        pending.deferred = later;
        intents.extend(due.into_keys().map(|id| (id, Intent::Release(Release::Planned, None))));
        Pending { commands, intents, ..Pending::default() }
    }

    /// Waits for something to arrive.
    pub(crate) async fn changed(&self) {
        self.notify.notified().await;
    }

    pub(crate) fn status(&self) -> Arc<Status> {
        Arc::clone(&lock(&self.status))
    }

    pub(crate) fn publish(&self, status: Status) {
        *lock(&self.status) = Arc::new(status);
    }
}

/// Nothing here can panic while it holds a lock, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unresponsive_for_counts_from_the_first_unanswered_ping() {
        let mailbox = Mailbox::default();
        assert_eq!(mailbox.ping(), Duration::ZERO);
        std::thread::sleep(Duration::from_millis(2));
        let first = mailbox.ping();
        assert!(first >= Duration::from_millis(2) && mailbox.ping() >= first);
        mailbox.pong();
        assert_eq!(mailbox.ping(), Duration::ZERO);
    }

    #[test]
    fn only_the_last_intent_counts_but_a_release_is_never_lost() {
        let mailbox = Mailbox::default();
        let (id, now) = (GroupId(1), Instant::now());
        let until = now + Duration::from_secs(1);
        mailbox.claim(id, until);
        mailbox.claim(id, until + Duration::from_secs(1));
        let pending = mailbox.take(now);
        let Intent::Claim(claim) = pending.intents[&id] else { panic!() };
        assert_eq!(claim.valid_until, until + Duration::from_secs(1));
        assert!(mailbox.take(now).intents.is_empty());

        mailbox.claim(id, until);
        mailbox.release(id, Release::Lost);
        assert_eq!(mailbox.take(now).intents[&id], Intent::Release(Release::Lost, None));

        mailbox.release(id, Release::Planned);
        mailbox.claim(id, until);
        let Intent::Release(Release::Planned, Some(claim)) = mailbox.take(now).intents[&id] else { panic!() };
        assert_eq!(claim.valid_until, until);
    }

    const ID: GroupId = GroupId(1);
    const BOUND: Duration = Duration::from_millis(300);
    const RELEASE: Intent = Intent::Release(Release::Planned, None);

    /// A mailbox with a deferred release, of which the keeper knows.
    fn deferred() -> (Mailbox, Instant) {
        let (mailbox, now) = (Mailbox::default(), Instant::now());
        mailbox.claim(ID, now + BOUND);
        mailbox.release_by(ID, now + BOUND);
        assert!(mailbox.take(now).intents.is_empty(), "neither the claim nor the release");
        assert_eq!(mailbox.validity.end(ID), None, "the claim is valid no longer");
        (mailbox, now)
    }

    #[test]
    fn a_deferred_release_is_due_once_at_its_first_deadline() {
        let (mailbox, now) = deferred();
        mailbox.release_by(ID, now + 2 * BOUND);
        assert_eq!(mailbox.deadline(), Some(now + BOUND));
        assert!(mailbox.take(now + BOUND - Duration::from_nanos(1)).intents.is_empty());
        assert_eq!(mailbox.take(now + BOUND).intents[&ID], RELEASE);
        assert!(!mailbox.defers_release(ID) && mailbox.deadline().is_none());
        mailbox.finish_release(ID);
        assert!(mailbox.take(now + 2 * BOUND).intents.is_empty());
    }

    #[test]
    fn a_deferred_release_that_is_finished_does_not_wait() {
        let (mailbox, now) = deferred();
        mailbox.finish_release(ID);
        assert_eq!(mailbox.take(now).intents[&ID], RELEASE);
        assert!(mailbox.take(now + BOUND).intents.is_empty());
    }

    #[test]
    fn no_late_end_of_a_deferred_release_revokes_the_claim_after_it() {
        let (mailbox, now) = deferred();
        mailbox.claim(ID, now + BOUND);
        assert!(!mailbox.defers_release(ID));
        mailbox.finish_release(ID);
        let Intent::Release(Release::Planned, Some(_)) = mailbox.take(now + BOUND).intents[&ID] else {
            panic!()
        };
        mailbox.claim(ID, now + 2 * BOUND);
        mailbox.finish_release(ID);
        assert!(matches!(mailbox.take(now + BOUND).intents[&ID], Intent::Claim(_)));
        assert_eq!(mailbox.validity.end(ID), Some(now + 2 * BOUND));
    }

    #[test]
    fn a_release_at_once_replaces_a_deferred_one_and_is_not_deferred_by_it() {
        let (mailbox, now) = deferred();
        mailbox.release(ID, Release::Lost);
        mailbox.claim(ID, now + BOUND);
        mailbox.release_by(ID, now + BOUND);
        assert_eq!(mailbox.take(now).intents[&ID], Intent::Release(Release::Lost, None));
        assert!(mailbox.take(now + BOUND).intents.is_empty());
    }
}
