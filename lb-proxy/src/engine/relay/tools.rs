//! The buffer and the pipes that all relays of one worker share.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::pipe::Pool;
use crate::engine::config::RelayMode;

/// Bytes of the buffer that the pairs of one worker share.
const SCRATCH: usize = 16 * 1024;

/// The buffer and the pipes that all pairs of one worker share.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(super) mode: RelayMode,
    pub(super) scratch: RefCell<Box<[u8]>>,
    pub(super) pipes: RefCell<Pool>,
    /// Set after a large splice. The worker then yields its processor once before it sleeps, so that a peer on the same
    /// host can read the bytes first, which saves a sleep and a wake-up; without bulk traffic that gains nothing.
    pub(super) bulk: Arc<AtomicBool>,
}

impl Tools {
    /// The tools of a worker that may open this number of pipes.
    pub(crate) fn new(mode: RelayMode, pipes: usize, bulk: Arc<AtomicBool>) -> Self {
        let scratch = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
        Tools { mode, scratch, pipes: RefCell::new(Pool::new(pipes)), bulk }
    }

    /// Closes pipes that are not in use.
    pub(crate) fn close_idle_pipes(&self) {
        self.pipes.borrow_mut().clear();
    }
}
