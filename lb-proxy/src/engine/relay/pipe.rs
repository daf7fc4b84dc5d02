//! A bounded pool of pipes for `splice(2)`.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::resource::{Resource, getrlimit};
use tokio::net::TcpStream;

/// Requested capacity in bytes. The kernel counts slots of a page, and a slot may hold more than a page, so this bounds
/// the filling of a pipe, not its content.
pub(crate) const PIPE_SIZE: usize = 1 << 20;
/// The capacity requested where the user's pipe memory does not allow [`PIPE_SIZE`]; the default of 64 KiB if not even
/// this.
const SMALLER_SIZE: usize = 1 << 18;
/// Idle pipes kept by each worker.
const POOL_SIZE: usize = 64;
/// Limit on the pipes of each worker. A peer that does not read leaves up to [`PIPE_SIZE`] in one; copying leaves much
/// less.
const PIPES_MAX: usize = 256;
/// Of this many descriptors that the process may open, one pipe may use two: a session needs two as well, and without a
/// pipe it is only slower.
const DESCRIPTORS_PER_PIPE: u64 = 8;

/// Returns the number of pipes for each of `workers` workers, by the soft limit of descriptors (`RLIMIT_NOFILE`).
pub(crate) fn pipes_allowed(workers: usize) -> usize {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    let all = usize::try_from(soft / DESCRIPTORS_PER_PIPE).unwrap_or(usize::MAX);
    (all / workers.max(1)).clamp(1, PIPES_MAX)
}

/// A pipe and the number of bytes in it.
#[derive(Debug)]
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    filled: usize,
    _count: OpenCount,
}

/// An open pipe in the count of its pool; dropping it removes it.
#[derive(Debug)]
struct OpenCount(Rc<Cell<usize>>);

impl OpenCount {
    fn new(open: &Rc<Cell<usize>>) -> Self {
        open.set(open.get() + 1);
        OpenCount(Rc::clone(open))
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Pipe {
    fn open(count: OpenCount) -> nix::Result<Self> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        for size in [PIPE_SIZE, SMALLER_SIZE] {
            if fcntl(&write, FcntlArg::F_SETPIPE_SZ(i32::try_from(size).unwrap_or(i32::MAX))).is_ok() {
                break;
            }
        }
        Ok(Pipe { read, write, filled: 0, _count: count })
    }

    pub(crate) fn filled(&self) -> usize {
        self.filled
    }

    /// Moves bytes of `from` into the pipe, which must be empty: only then `EAGAIN` means that `from` has nothing.
    pub(crate) fn fill(&mut self, from: &TcpStream) -> nix::Result<usize> {
        debug_assert_eq!(self.filled, 0);
        let moved = splice(from, None, &self.write, None, PIPE_SIZE, flags())?;
        self.filled = moved;
        Ok(moved)
    }

    /// Moves the bytes of the pipe, which must not be empty, to `to`. `EAGAIN` means that `to` has no room.
    pub(crate) fn empty(&mut self, to: &TcpStream) -> nix::Result<usize> {
        debug_assert_ne!(self.filled, 0);
        let moved = splice(&self.read, None, to, None, self.filled, flags())?;
        self.filled -= moved.min(self.filled);
        Ok(moved)
    }
}

/// The flags of a splice, without `SPLICE_F_MORE`: it would delay the last segment by 200 ms.
fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

/// The pipes of one worker.
#[derive(Debug)]
pub(crate) struct Pool {
    #[expect(clippy::vec_box, reason = "a direction without a pipe is one pointer small")]
    idle: Vec<Box<Pipe>>,
    /// The number of pipes, idle and in use.
    open: Rc<Cell<usize>>,
    allowed: usize,
}

impl Pool {
    pub(crate) fn new(allowed: usize) -> Self {
        Pool { idle: Vec::new(), open: Rc::default(), allowed }
    }

    /// Takes a pipe; `None` when as many as allowed are in use, or no descriptors are left: payload is copied then.
    pub(crate) fn take(&mut self) -> Option<Box<Pipe>> {
        if let Some(pipe) = self.idle.pop() {
            return Some(pipe);
        }
        if self.open.get() >= self.allowed {
            return None;
        }
        Pipe::open(OpenCount::new(&self.open)).ok().map(Box::new)
    }

    /// Returns a pipe to the pool. One with bytes in it is closed: they belong to another connection.
    pub(crate) fn put(&mut self, pipe: Box<Pipe>) {
        if pipe.filled == 0 && self.idle.len() < POOL_SIZE {
            self.idle.push(pipe);
        }
    }

    /// Closes all idle pipes.
    pub(crate) fn clear(&mut self) {
        self.idle.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_bounded_and_keeps_no_filled_pipe() {
        let mut pool = Pool::new(POOL_SIZE + 5);
        let mut pipes: Vec<_> = (0..POOL_SIZE + 5).map(|_| pool.take().unwrap()).collect();
        pipes[0].filled = 1;
        for pipe in pipes.drain(..3) {
            pool.put(pipe);
        }
        assert_eq!(pool.idle.len(), 2);
        pipes.into_iter().for_each(|pipe| pool.put(pipe));
        assert_eq!(pool.idle.len(), POOL_SIZE);
        assert_eq!(pool.open.get(), POOL_SIZE);
        pool.clear();
        assert_eq!(pool.open.get(), 0);
    }

    #[test]
    fn no_more_pipes_than_allowed_and_one_that_is_closed_makes_room() {
        let mut pool = Pool::new(3);
        let mut pipes: Vec<_> = (0..3).map(|_| pool.take().unwrap()).collect();
        assert!(pool.take().is_none());
        pipes[0].filled = 1;
        pipes.remove(0);
        pipes.push(pool.take().unwrap());
        assert!(pool.take().is_none());
        pool.put(pipes.remove(0));
        assert!(pool.take().is_some(), "an idle one counts as open already");
    }

    #[test]
    fn all_workers_together_use_a_quarter_of_the_descriptors_at_most() {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        for workers in [1, 2, 64] {
            let allowed = pipes_allowed(workers);
            assert!((1..=PIPES_MAX).contains(&allowed));
            assert!(allowed == 1 || 2 * (workers * allowed) as u64 <= soft / 4, "{workers}: {allowed}");
        }
        assert_eq!(pipes_allowed(usize::MAX), 1);
    }
}
