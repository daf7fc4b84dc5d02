//! A thread that opens and closes sockets for the runner.
//!
//! Joining or leaving a group waits for the kernel's global network lock, binding or closing a packet socket for a
//! grace period on every CPU: milliseconds either way, in which the runner could miss the deadlines of every other
//! interface.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread::JoinHandle;

use thiserror::Error;

use super::link_layer;
use super::socket::{self, Binding, Messages};
use crate::types::Family;

/// The sockets that the routers of an interface need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Needs {
    pub(super) v4: FamilyNeeds,
    pub(super) v6: FamilyNeeds,
}

/// The sockets of one family that the routers of an interface need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum FamilyNeeds {
    /// No socket.
    #[default]
    Nothing,
    /// A socket for messages to our own addresses.
    Unicast,
    /// The same, and membership of the group.
    Multicast,
}

impl Needs {
    pub(super) const fn of(self, family: Family) -> FamilyNeeds {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// The needs that cover both.
    pub(super) fn union(self, other: Self) -> Self {
        Self { v4: self.v4.max(other.v4), v6: self.v6.max(other.v6) }
    }

    pub(super) fn covers(self, other: Self) -> bool {
        self.union(other) == self
    }
}

/// The sockets of one interface.
#[derive(Debug)]
pub(super) struct OpenSockets {
    /// The needs that they were opened for.
    pub(super) needs: Needs,
    pub(super) v4: Option<FamilySockets>,
    pub(super) v6: Option<FamilySockets>,
    pub(super) announcer: OwnedFd,
}

/// The receiving sockets of one family.
#[derive(Debug)]
pub(super) struct FamilySockets {
    pub(super) messages: Messages,
    pub(super) watcher: OwnedFd,
}

/// Why the sockets of an interface could not be opened.
#[derive(Debug, Error)]
#[error("{what}: {source}")]
pub(super) struct OpenError {
    pub(super) what: &'static str,
    pub(super) source: io::Error,
}

/// The answer to [`Opener::open`].
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) index: u32,
    /// The request that this answers.
    pub(super) ticket: u64,
    pub(super) result: Result<OpenSockets, OpenError>,
}

enum Job {
    Open { index: u32, needs: Needs, ticket: u64 },
    Close(#[expect(dead_code, reason = "dropping it is the job")] Vec<OwnedFd>),
}

/// The runner's end of the thread.
pub(super) struct Opener {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Opener {
    /// Starts the thread in the caller's network namespace. Answers go to `answer`.
    pub(super) fn spawn(
        prepare: impl FnOnce() + Send + 'static,
        answer: impl Fn(Opened) + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let thread = std::thread::Builder::new().name("vrrp-sockets".into()).spawn(move || {
            prepare();
            for job in queue {
                if let Job::Open { index, needs, ticket } = job {
                    answer(Opened { index, ticket, result: open(index, needs) });
                }
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Asks for the sockets of interface `index`.
    pub(super) fn open(&self, index: u32, needs: Needs, ticket: u64) {
        self.send(Job::Open { index, needs, ticket });
    }

    /// Closes sockets without waiting for it.
    pub(super) fn close(&self, sockets: Vec<OwnedFd>) {
        self.send(Job::Close(sockets));
    }

    fn send(&self, job: Job) {
        // The thread ends only with this sender; if it died nevertheless, dropping the job here closes its sockets.
        let _undelivered = self.jobs.as_ref().map(|jobs| jobs.send(job));
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn open(index: u32, needs: Needs) -> Result<OpenSockets, OpenError> {
    let announcer =
        link_layer::open_sender(index).map_err(|source| OpenError { what: "announcement socket", source })?;
    Ok(OpenSockets {
        needs,
        v4: open_family(index, Family::V4, needs.v4)?,
        v6: open_family(index, Family::V6, needs.v6)?,
        announcer,
    })
}

fn open_family(index: u32, family: Family, needs: FamilyNeeds) -> Result<Option<FamilySockets>, OpenError> {
    let join = match needs {
        FamilyNeeds::Nothing => return Ok(None),
        FamilyNeeds::Unicast => false,
        FamilyNeeds::Multicast => true,
    };
    let messages = socket::open(Binding { index, family, join })
        .map_err(|source| OpenError { what: "advertisement socket", source })?;
    let watcher = link_layer::open_watcher(index, family)
        .map_err(|source| OpenError { what: "announcement watching socket", source })?;
    Ok(Some(FamilySockets { messages, watcher }))
}
