//! Replaces the configuration in use by another one: as a whole, or not at all.
//!
//! A file that was read goes through these steps, one file at a time:
//!
//! 1. Its names are resolved, in a task.
//! 2. Each part is staged: the network namespace is locked if need be, discovery follows the clusters of both files, the
//!    load balancer applies the new services with the former ports still open, and in a task the nftables table redirects
//!    the virtual IPs of both configurations and the keeper gets the new groups.
//! 3. All parts are committed, the election first. A removed instance hands its addresses over, as at a stop; only then
//!    are they removed from the table.
//!
//! If a part fails, those before it are rolled back ([`transaction`]).

mod answer;
mod staging;
mod transaction;

use std::collections::BTreeMap;

use cplb_config::Config;
use tokio::sync::oneshot;

use crate::control::Outcome;
use crate::exit::Failure;
use crate::logging::ANSWER;

use super::Daemon;
use super::backends::Answers;
use super::prepare::{self, Prepared, Reading};
use super::problems::Cause;
use super::sender::EventSender;
use super::vip::Election;

use answer::Waiting;
use staging::Staged;
pub(crate) use staging::Staging;

/// The reloads in progress.
#[derive(Default)]
pub(crate) struct Reloads {
    /// The number of reloads that were requested.
    requested: u64,
    reading: ReadingState,
    /// Files whose backend names are being resolved, by the number of the reload.
    unresolved: BTreeMap<u64, Candidate>,
    /// The file that waits for the one in progress.
    next: Option<(Candidate, Answers)>,
    staged: Option<Staged>,
    waiting: Waiting,
}

/// The state of reading the file, which may take long.
#[derive(Debug, Default, PartialEq, Eq)]
enum ReadingState {
    #[default]
    Idle,
    Reading,
    /// The file may have changed since reading began.
    ReadingOutdated,
}

/// A file that was read.
#[derive(Debug)]
struct Candidate {
    config: Config,
    /// The warnings about it.
    warnings: Vec<String>,
    /// The number of its reload.
    number: u64,
}

impl Reloads {
    /// Returns whether no file is staged.
    pub(super) fn is_idle(&self) -> bool {
        self.staged.is_none()
    }

    /// Takes the file of a reload whose names are resolved. Files before it are superseded, and dropped.
    fn take_resolved(&mut self, number: u64) -> Option<Candidate> {
        let later = self.unresolved.split_off(&(number + 1));
        let candidate = self.unresolved.remove(&number);
        self.unresolved = later;
        candidate
    }
}

impl Daemon {
    /// Reads the configuration again, and answers with the result.
    pub(super) fn reload_for(&mut self, reply: oneshot::Sender<Outcome>) {
        if self.stopping {
            let _ = reply.send(Outcome::refused("the daemon stops"));
            return;
        }
        self.reload();
        self.reloads.waiting.add(self.reloads.requested, reply);
    }

    /// Reads the configuration again. An invalid one changes nothing.
    pub(super) fn reload(&mut self) {
        if self.stopping {
            return;
        }
        self.reloads.requested += 1;
        if self.reloads.reading != ReadingState::Idle {
            self.reloads.reading = ReadingState::ReadingOutdated;
            return;
        }
        self.reloads.reading = ReadingState::Reading;
        prepare::start(self.args.clone(), EventSender::new(&self.channel));
    }

    /// Takes the progress of reading the file.
    pub(super) fn on_read(&mut self, reading: Reading) {
        let requested = self.reloads.requested;
        let Reading::Done(result) = reading else {
            return self.refuse(&prepare::slow_read(&self.args), requested);
        };
        let is_outdated = std::mem::take(&mut self.reloads.reading) == ReadingState::ReadingOutdated;
        if self.stopping {
            return;
        }
        if is_outdated {
            self.reloads.reading = ReadingState::Reading;
            return prepare::start(self.args.clone(), EventSender::new(&self.channel));
        }
        match *result {
            Ok(Prepared { config, warnings }) => {
                tracing::info!(target: ANSWER, "the configuration file is read again");
                let number = requested;
                self.backends.resolver.resolve_for_reload(&config, number);
                self.reloads.unresolved.insert(number, Candidate { config, warnings, number });
            }
            Err(failure) => self.refuse(&failure, requested),
        }
    }

    /// Reports that the reload with this number, and so all before it, have not changed the configuration.
    fn refuse(&mut self, failure: &Failure, number: u64) {
        let why = failure.summary();
        tracing::error!(target: ANSWER, "the configuration is not reloaded: {why}");
        // The first line is the summary; each further one is an error of the file.
        for line in failure.to_string().lines().skip(1).map(str::trim).filter(|line| !line.is_empty()) {
            tracing::error!(target: ANSWER, "the configuration is not reloaded: {line}");
        }
        let text = format!("the configuration is not reloaded, and the former one is in use: {why}");
        self.problems.raise(Cause::Reload, text);
        self.reloads.waiting.conclude(number, &answer::refused(failure));
    }

    /// Takes the resolved names of a reload's file.
    pub(super) fn on_resolved_for_reload(&mut self, number: u64, answers: Answers) {
        if let Some(candidate) = self.reloads.take_resolved(number) {
            self.reloads.next = Some((candidate, answers));
            self.begin_next();
        }
    }

    /// Stages the file that waits, once the one before is in effect.
    pub(super) fn begin_next(&mut self) {
        let removing = self.election.as_ref().is_some_and(Election::is_removing);
        if self.stopping || removing || self.reloads.staged.is_some() {
            return;
        }
        let Some((candidate, answers)) = self.reloads.next.take() else { return };
        let number = candidate.number;
        if let Err(failure) = self.stage(candidate, answers) {
            self.refuse(&failure, number);
        }
    }
}
