//! Pipes for `splice(2)`, kept for the next bulk transfer.

use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use tokio::net::TcpStream;

/// Capacity asked for, in bytes. The kernel counts slots of a page, and a slot may hold more than a page, so this
/// says how far a pipe may fill, not how much fits.
pub(crate) const PIPE_SIZE: usize = 1 << 20;
/// What is asked for when the user's pipe memory does not allow [`PIPE_SIZE`]; the default of 64 KiB if not even this.
const SMALLER_SIZE: usize = 1 << 18;
/// Idle pipes kept by each worker.
const POOL_SIZE: usize = 64;

/// A pipe with the number of bytes in it.
#[derive(Debug)]
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    filled: usize,
}

impl Pipe {
    fn open() -> nix::Result<Self> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        for size in [PIPE_SIZE, SMALLER_SIZE] {
            if fcntl(&write, FcntlArg::F_SETPIPE_SZ(i32::try_from(size).unwrap_or(i32::MAX))).is_ok() {
                break;
            }
        }
        Ok(Pipe { read, write, filled: 0 })
    }

    pub(crate) fn filled(&self) -> usize {
        self.filled
    }

    /// Moves what `from` has into the pipe, which must be empty: only then `EAGAIN` means that `from` has nothing.
    pub(crate) fn fill(&mut self, from: &TcpStream) -> nix::Result<usize> {
        debug_assert_eq!(self.filled, 0);
        let moved = splice(from, None, &self.write, None, PIPE_SIZE, flags())?;
        self.filled = moved;
        Ok(moved)
    }

    /// Moves what is in the pipe, which must not be empty, to `to`. `EAGAIN` means that `to` takes nothing now.
    pub(crate) fn empty(&mut self, to: &TcpStream) -> nix::Result<usize> {
        debug_assert_ne!(self.filled, 0);
        let moved = splice(&self.read, None, to, None, self.filled, flags())?;
        self.filled -= moved.min(self.filled);
        Ok(moved)
    }
}

/// Without `SPLICE_F_MORE`: it would hold the last segment back for 200 ms.
fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

/// Idle pipes of one worker. Boxed, so that a direction without one is a pointer smaller.
#[derive(Debug, Default)]
#[allow(clippy::vec_box)]
pub(crate) struct Pool(Vec<Box<Pipe>>);

impl Pool {
    /// A pipe, or `None` when there are no descriptors left: then payload is copied.
    pub(crate) fn take(&mut self) -> Option<Box<Pipe>> {
        self.0.pop().or_else(|| Pipe::open().ok().map(Box::new))
    }

    /// Takes a pipe back. One with bytes in it is closed: they belong to another connection.
    pub(crate) fn give(&mut self, pipe: Box<Pipe>) {
        if pipe.filled == 0 && self.0.len() < POOL_SIZE {
            self.0.push(pipe);
        }
    }

    /// Closes all idle pipes.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_bounded_and_takes_no_dirty_pipe() {
        let mut pool = Pool::default();
        let mut pipes: Vec<_> = (0..POOL_SIZE + 5).map(|_| pool.take().unwrap()).collect();
        pipes[0].filled = 1;
        for pipe in pipes.drain(..3) {
            pool.give(pipe);
        }
        assert_eq!(pool.0.len(), 2);
        pipes.into_iter().for_each(|pipe| pool.give(pipe));
        assert_eq!(pool.0.len(), POOL_SIZE);
    }
}
