//! A descriptor that wakes the runner when it can be read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// An owned, non-blocking descriptor, registered for reading.
#[derive(Debug)]
pub(crate) struct Watched(AsyncFd<OwnedFd>);

impl Watched {
    /// Must be called within a tokio runtime with I/O enabled.
    #[expect(
        deprecated,
        reason = "its successor is an unsafe function; what that asks for, a descriptor that stays open and the same, \
                  holds for every `OwnedFd` by construction"
    )]
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        AsyncFd::with_interest(fd, Interest::READABLE).map(Self)
    }

    /// Ready while there may be something to read, until [`Watched::exhausted`] is called.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.0.poll_read_ready(cx) {
            Poll::Ready(Ok(mut guard)) => {
                guard.retain_ready();
                Poll::Ready(())
            }
            // The runtime is shutting down and would never wake the thread again, so it must not sleep.
            Poll::Ready(Err(_)) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }

    /// To be called when a read would have blocked: sleep until the kernel reports something new.
    ///
    /// A packet that arrives between that read and this call is reported by a new edge, which only a later iteration of
    /// the single-threaded runtime can deliver, so it is not lost.
    pub(crate) fn exhausted(&self) {
        let _would_block =
            self.0.try_io(Interest::READABLE, |_| Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock)));
    }

    /// Takes the descriptor back out of the runtime.
    pub(crate) fn into_inner(self) -> OwnedFd {
        self.0.into_inner()
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
