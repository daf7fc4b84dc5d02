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
        let intent = match letters.intents.get(&id) {
            Some(Intent::Release(release, _)) => Intent::Release(*release, Some(claim)),
            _ => Intent::Claim(claim),
        };
        letters.intents.insert(id, intent);
        drop(letters);
        self.notify.notify_one();
    }

    pub(crate) fn release(&self, id: GroupId, release: Release) {
        self.validity.withdraw(id);
        lock(&self.letters).intents.insert(id, Intent::Release(release, None));
        self.notify.notify_one();
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

    /// Empties the box.
    pub(crate) fn take(&self) -> Letters {
        std::mem::take(&mut *lock(&self.letters))
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
        let (id, until) = (GroupId(1), Instant::now() + Duration::from_secs(1));
        mailbox.claim(id, until);
        mailbox.claim(id, until + Duration::from_secs(1));
        let letters = mailbox.take();
        let Intent::Claim(claim) = letters.intents[&id] else { panic!() };
        assert_eq!(claim.valid_until, until + Duration::from_secs(1));
        assert!(mailbox.take().intents.is_empty());

        mailbox.claim(id, until);
        mailbox.release(id, Release::Lost);
        assert_eq!(mailbox.take().intents[&id], Intent::Release(Release::Lost, None));

        mailbox.release(id, Release::Planned);
        mailbox.claim(id, until);
        let Intent::Release(Release::Planned, Some(claim)) = mailbox.take().intents[&id] else { panic!() };
        assert_eq!(claim.valid_until, until);
    }
}
