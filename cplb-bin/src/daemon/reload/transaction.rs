//! A change to several parts: each is staged in order, then all are committed, or those that were staged are rolled back.

use crate::exit::Failure;

/// A part of the daemon that a reload changes, in the order of staging.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// The lock that keeps other daemons out of the network namespace.
    HostLock,
    /// Discovery.
    Backends,
    /// The load balancer.
    Proxy,
    /// The bridge between the election and the keeper, which learns of new instances.
    Bridge,
    /// The nftables table and the keeper, which get the virtual IPs of both configurations in a task.
    Kernel,
    /// The election.
    Election,
}

/// The parts that are staged without waiting.
pub(super) const AT_ONCE: [Part; 5] =
    [Part::HostLock, Part::Backends, Part::Proxy, Part::Bridge, Part::Kernel];

/// Carries out what a [`Transaction`] decides.
pub(super) trait Participants {
    /// Changes a part. After an error the part is unchanged.
    fn stage(&mut self, part: Part) -> Result<(), Failure>;

    /// Reverts the change of a part.
    fn roll_back(&mut self, part: Part);

    /// Makes the change of a part the one in use, which cannot fail.
    fn commit(&mut self, part: Part);
}

/// A change in progress.
#[derive(Debug, Default)]
#[must_use = "a change is committed or rolled back"]
pub(super) struct Transaction {
    /// The parts that are staged.
    staged: Vec<Part>,
}

impl Transaction {
    /// Stages parts in order. If one fails, those before it are rolled back, the last one first.
    pub(super) fn stage(
        mut self,
        parts: &[Part],
        participants: &mut impl Participants,
    ) -> Result<Self, Failure> {
        for part in parts {
            if let Err(failure) = participants.stage(*part) {
                self.roll_back(participants);
                return Err(failure);
            }
            self.staged.push(*part);
        }
        Ok(self)
    }

    /// Reverts all staged changes, the last one first.
    pub(super) fn roll_back(self, participants: &mut impl Participants) {
        self.staged.into_iter().rev().for_each(|part| participants.roll_back(part));
    }

    /// Commits all staged changes, the last one first, so that the election has its instances before the rest adapts to
    /// them.
    pub(super) fn commit(self, participants: &mut impl Participants) {
        self.staged.into_iter().rev().for_each(|part| participants.commit(part));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Kind;

    /// Logs the calls, and fails to stage one part.
    #[derive(Debug, Default)]
    struct Fake {
        fails: Option<Part>,
        log: Vec<(&'static str, Part)>,
    }

    impl Participants for Fake {
        fn stage(&mut self, part: Part) -> Result<(), Failure> {
            if self.fails == Some(part) {
                return Err(Failure::new(Kind::System, format_args!("{part:?}")));
            }
            self.log.push(("stage", part));
            Ok(())
        }

        fn roll_back(&mut self, part: Part) {
            self.log.push(("roll back", part));
        }

        fn commit(&mut self, part: Part) {
            self.log.push(("commit", part));
        }
    }

    impl Fake {
        fn parts(&self, step: &str) -> Vec<Part> {
            self.log.iter().filter(|(found, _)| *found == step).map(|(_, part)| *part).collect()
        }
    }

    /// The sequence of a reload: the parts staged at once, the result of the task, then the election.
    fn reload(fake: &mut Fake, is_task_done: bool) -> Result<(), Failure> {
        let transaction = Transaction::default().stage(&AT_ONCE, fake)?;
        if !is_task_done {
            transaction.roll_back(fake);
            return Err(Failure::new(Kind::System, "the task"));
        }
        transaction.stage(&[Part::Election], fake)?.commit(fake);
        Ok(())
    }

    #[test]
    fn a_failed_part_rolls_back_exactly_the_parts_before_it() {
        let all: Vec<Part> = AT_ONCE.into_iter().chain([Part::Election]).collect();
        for (index, part) in all.iter().enumerate() {
            let mut fake = Fake { fails: Some(*part), ..Fake::default() };
            let failure = reload(&mut fake, true).unwrap_err();
            assert_eq!(failure.message(), format!("{part:?}"));
            let before: Vec<Part> = all[..index].to_vec();
            assert_eq!(fake.parts("stage"), before);
            assert_eq!(fake.parts("roll back"), before.into_iter().rev().collect::<Vec<_>>(), "{part:?}");
            assert_eq!(fake.parts("commit"), []);
        }
    }

    #[test]
    fn a_failed_task_rolls_back_all_parts_staged_before() {
        let mut fake = Fake::default();
        reload(&mut fake, false).unwrap_err();
        assert_eq!(fake.parts("roll back"), AT_ONCE.into_iter().rev().collect::<Vec<_>>());
        assert_eq!(fake.parts("commit"), []);
    }

    #[test]
    fn each_part_is_committed_once_with_the_election_first() {
        let mut fake = Fake::default();
        reload(&mut fake, true).unwrap();
        assert_eq!(fake.parts("commit").first(), Some(&Part::Election));
        let mut committed = fake.parts("commit");
        committed.sort();
        assert_eq!(committed, fake.parts("stage"));
        assert_eq!(fake.parts("roll back"), []);
    }
}
