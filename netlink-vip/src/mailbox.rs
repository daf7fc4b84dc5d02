//! How other threads reach the keeper: a slot per group for what the election last said, a queue for the rest.
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
    /// A release, and the claim that followed it, if one did before the keeper looked: the release still counts.
    Release(Release, Option<Claim>),
}

/// Rare changes.
#[derive(Debug)]
pub(crate) enum Order {
    Add(Box<Registered>),
    Update(Box<Registered>),
    Remove(GroupId),
    Warn(Option<GroupId>, Warning),
    Shutdown,
}

/// Everything that arrived since the last look.
#[derive(Debug, Default)]
pub(crate) struct Letters {
    pub(crate) orders: VecDeque<Order>,
    pub(crate) intents: BTreeMap<GroupId, Intent>,
    /// Planned releases that wait to be finished, and when they are due without it. They stay in the box until then.
    deferred: BTreeMap<GroupId, Instant>,
}

/// Shared by the keeper and its handles.
#[derive(Default)]
pub(crate) struct Mailbox {
    letters: Mutex<Letters>,
    validity: Arc<Validity>,
    status: Mutex<Arc<Status>>,
    /// Since when somebody waits for a sign of life.
    asked: Mutex<Option<Instant>>,
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
        let mut letters = lock(&self.letters);
        let deferred = letters.deferred.remove(&id).map(|_| Release::Planned);
        let intent = match letters.intents.get(&id) {
            Some(Intent::Release(release, _)) => Intent::Release(*release, Some(claim)),
            _ => deferred.map_or(Intent::Claim(claim), |release| Intent::Release(release, Some(claim))),
        };
        letters.intents.insert(id, intent);
        drop(letters);
        self.notify.notify_one();
    }

    pub(crate) fn release(&self, id: GroupId, release: Release) {
        self.validity.withdraw(id);
        let mut letters = lock(&self.letters);
        letters.deferred.remove(&id);
        letters.intents.insert(id, Intent::Release(release, None));
        drop(letters);
        self.notify.notify_one();
    }

    /// A planned release at `deadline`, unless it is finished before, or a claim comes.
    pub(crate) fn release_by(&self, id: GroupId, deadline: Instant) {
        self.validity.withdraw(id);
        let mut letters = lock(&self.letters);
        if let Some(Intent::Release(release, _)) = letters.intents.remove(&id) {
            letters.intents.insert(id, Intent::Release(release, None));
        } else {
            let due = letters.deferred.entry(id).or_insert(deadline);
            *due = deadline.min(*due);
        }
        drop(letters);
        self.notify.notify_one();
    }

    /// Makes a release that is deferred due now; without one, nothing happens.
    pub(crate) fn finish_release(&self, id: GroupId) {
        let mut letters = lock(&self.letters);
        if letters.deferred.remove(&id).is_some() {
            letters.intents.insert(id, Intent::Release(Release::Planned, None));
        }
        drop(letters);
        self.notify.notify_one();
    }

    pub(crate) fn defers_release(&self, id: GroupId) -> bool {
        lock(&self.letters).deferred.contains_key(&id)
    }

    /// When the next deferred release is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        lock(&self.letters).deferred.values().min().copied()
    }

    pub(crate) fn order(&self, order: Order) {
        lock(&self.letters).orders.push_back(order);
        self.notify.notify_one();
    }

    /// Asks for a sign of life, and says for how long the question before is unanswered.
    pub(crate) fn ask(&self) -> Duration {
        let now = Instant::now();
        let since = *lock(&self.asked).get_or_insert(now);
        self.notify.notify_one();
        now.saturating_duration_since(since)
    }

    /// The keeper is at work.
    pub(crate) fn answer(&self) {
        *lock(&self.asked) = None;
    }

    /// Orders that are carried out together, without a claim in between: an address that changes its group is
    /// deleted in the name of the former one, which must not meet it under the next one's lease.
    pub(crate) fn order_all(&self, orders: impl Iterator<Item = Order>) {
        lock(&self.letters).orders.extend(orders);
        self.notify.notify_one();
    }

    /// Empties the box, but for deferred releases that are not yet due.
    pub(crate) fn take(&self, now: Instant) -> Letters {
        let mut letters = lock(&self.letters);
        let Letters { orders, mut intents, deferred } = std::mem::take(&mut *letters);
        let (due, later) = deferred.into_iter().partition::<BTreeMap<_, _>, _>(|(_, at)| *at <= now);
        letters.deferred = later;
        intents.extend(due.into_keys().map(|id| (id, Intent::Release(Release::Planned, None))));
        Letters { orders, intents, ..Letters::default() }
    }

    /// Waits for something to arrive.
    pub(crate) async fn arrival(&self) {
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
    fn silence_lasts_from_the_first_unanswered_question() {
        let mailbox = Mailbox::default();
        assert_eq!(mailbox.ask(), Duration::ZERO);
        std::thread::sleep(Duration::from_millis(2));
        let first = mailbox.ask();
        assert!(first >= Duration::from_millis(2) && mailbox.ask() >= first);
        mailbox.answer();
        assert_eq!(mailbox.ask(), Duration::ZERO);
    }

    #[test]
    fn only_the_last_word_counts_but_a_release_is_never_lost() {
        let mailbox = Mailbox::default();
        let (id, now) = (GroupId(1), Instant::now());
        let until = now + Duration::from_secs(1);
        mailbox.claim(id, until);
        mailbox.claim(id, until + Duration::from_secs(1));
        let letters = mailbox.take(now);
        let Intent::Claim(claim) = letters.intents[&id] else { panic!() };
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
