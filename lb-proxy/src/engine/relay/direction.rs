//! One direction of a pair: bytes from a source socket to a destination socket, then the end of the stream.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::pipe::Pipe;
use super::tools::Tools;
use crate::engine::config::RelayMode;

/// Reads or splices before other tasks get their turn.
const ROUNDS: usize = 16;
/// Full reads in a row after which a direction counts as bulk.
const FULL_READS: u8 = 2;
/// Splices below this number of bytes are small.
const SMALL: usize = 4096;
/// Small splices in a row after which a direction no longer counts as bulk.
const SMALL_SPLICES: u8 = 4;
/// A splice of this many bytes makes the thread yield before it sleeps; see [`Tools::bulk`].
const BULK: usize = 1 << 16;

/// The reason for which a direction stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It waits for bytes from the source, and holds neither buffer nor pipe.
    Idle,
    /// It waits for room at the destination.
    Blocked,
    /// It has more to do, and lets other tasks run first.
    Yielded,
    /// It has forwarded the end of the stream.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// The source has ended; not yet forwarded.
    Seen,
    Forwarded,
}

/// The bytes that were read and not yet written.
#[derive(Debug)]
enum Unwritten {
    Nothing,
    Rest(Box<Rest>),
    Pipe(Box<Pipe>),
}

#[derive(Debug)]
struct Rest {
    bytes: Box<[u8]>,
    written: usize,
}

/// The state of one direction. Call [`Direction::pump`] whenever the task is woken.
#[derive(Debug)]
pub(crate) struct Direction {
    unwritten: Unwritten,
    end: End,
    splicing: bool,
    /// The last write found no room, so readiness must be awaited before the next.
    blocked: bool,
    /// Full reads in a row while copying, small ones while splicing.
    streak: u8,
    /// Set if the other direction met an error of this one's source, which reports the error once and afterwards an end
    /// of stream.
    broken: bool,
}

impl Direction {
    pub(crate) fn new(mode: RelayMode) -> Self {
        Direction {
            unwritten: Unwritten::Nothing,
            end: End::Open,
            splicing: mode == RelayMode::Splice,
            blocked: false,
            streak: 0,
            broken: false,
        }
    }

    /// Treats a later end of the source as the error that has been reported already.
    pub(crate) fn mark_source_broken(&mut self) {
        self.broken = true;
    }

    /// Moves bytes until the source has none, the destination has no room, or [`ROUNDS`] are used up. Leaves the task
    /// registered for what it waits for. An error means that one of the sockets is broken.
    pub(crate) fn pump(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        tools: &Tools,
        moved: &AtomicU64,
        cx: &mut Context<'_>,
    ) -> io::Result<Step> {
        for _ in 0..ROUNDS {
            if self.flush(to, moved, cx)?.is_pending() {
                return Ok(Step::Blocked);
            }
            match self.end {
                End::Forwarded => return Ok(Step::Done),
                End::Seen if self.broken => return Ok(Step::Idle),
                End::Seen => {
                    SockRef::from(to).shutdown(std::net::Shutdown::Write)?;
                    self.end = End::Forwarded;
                    self.release(tools);
                    return Ok(Step::Done);
                }
                End::Open => {}
            }
            if from.poll_read_ready(cx)?.is_pending() {
                self.release(tools);
                return Ok(Step::Idle);
            }
            if self.splicing && self.acquire(tools) {
                self.splice(from, tools)?;
            } else {
                self.release(tools);
                self.copy(from, to, tools, moved)?;
            }
        }
        Ok(Step::Yielded)
    }

    /// Returns an empty pipe to the pool. One that holds bytes stays.
    pub(crate) fn release(&mut self, tools: &Tools) {
        match std::mem::replace(&mut self.unwritten, Unwritten::Nothing) {
            Unwritten::Pipe(pipe) if pipe.filled() == 0 => tools.pipes.borrow_mut().put(pipe),
            unwritten => self.unwritten = unwritten,
        }
    }

    /// Takes a pipe if there is none yet. Returns whether there is one; without it this direction copies for a while.
    fn acquire(&mut self, tools: &Tools) -> bool {
        if matches!(self.unwritten, Unwritten::Nothing) {
            match tools.pipes.borrow_mut().take() {
                Some(pipe) => self.unwritten = Unwritten::Pipe(pipe),
                None => self.splicing = tools.mode == RelayMode::Splice,
            }
        }
        matches!(self.unwritten, Unwritten::Pipe(_))
    }

    /// Writes the bytes that were read before.
    fn flush(&mut self, to: &TcpStream, moved: &AtomicU64, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        loop {
            if self.blocked {
                if to.poll_write_ready(cx)?.is_pending() {
                    return Ok(Poll::Pending);
                }
                self.blocked = false;
            }
            let written = match &mut self.unwritten {
                Unwritten::Pipe(pipe) if pipe.filled() > 0 => pipe.empty(to),
                Unwritten::Rest(rest) => write(to, &rest.bytes[rest.written..]),
                Unwritten::Nothing | Unwritten::Pipe(_) => return Ok(Poll::Ready(())),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    moved.fetch_add(n as u64, Relaxed);
                    self.wrote(n);
                }
                Err(Errno::EAGAIN) => self.block(to),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn wrote(&mut self, n: usize) {
        if let Unwritten::Rest(rest) = &mut self.unwritten {
            rest.written += n;
            if rest.written == rest.bytes.len() {
                self.unwritten = Unwritten::Nothing;
            }
        }
    }

    /// Records that the destination has no room: the kernel reports when it is writable again.
    fn block(&mut self, to: &TcpStream) {
        self.blocked = true;
        clear_readiness(to, Interest::WRITABLE);
    }

    /// Reads once into the worker's buffer and writes as much as there is room for.
    fn copy(&mut self, from: &TcpStream, to: &TcpStream, tools: &Tools, moved: &AtomicU64) -> io::Result<()> {
        let scratch = &mut *tools.scratch.borrow_mut();
        let n = match nix::unistd::read(from, scratch) {
            Ok(0) => {
                self.end = End::Seen;
                return Ok(());
            }
            Ok(n) => n,
            Err(Errno::EAGAIN) => {
                clear_readiness(from, Interest::READABLE);
                return Ok(());
            }
            Err(Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if n < scratch.len() {
            // The source is drained: the kernel reports new bytes, and its end is remembered as such.
            clear_readiness(from, Interest::READABLE);
            self.streak = 0;
        } else {
            self.streak = self.streak.saturating_add(1);
            if tools.mode == RelayMode::Auto && self.streak >= FULL_READS {
                self.splicing = true;
                self.streak = 0;
            }
        }
        let written = match write(to, &scratch[..n]) {
            Ok(written) => written,
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        moved.fetch_add(written as u64, Relaxed);
        if written < n {
            self.unwritten =
                Unwritten::Rest(Box::new(Rest { bytes: scratch[written..n].into(), written: 0 }));
        }
        Ok(())
    }

    /// Fills the pipe once; the next [`Direction::flush`] empties it.
    fn splice(&mut self, from: &TcpStream, tools: &Tools) -> io::Result<()> {
        let Unwritten::Pipe(pipe) = &mut self.unwritten else { return Ok(()) };
        match pipe.fill(from) {
            Ok(0) => self.end = End::Seen,
            Ok(n) => {
                if n >= BULK {
                    tools.bulk.store(true, Relaxed);
                }
                self.streak = if n < SMALL { self.streak.saturating_add(1) } else { 0 };
                if tools.mode == RelayMode::Auto && self.streak >= SMALL_SPLICES {
                    self.splicing = false;
                    self.streak = 0;
                }
            }
            // Unambiguous only because the pipe was empty. A short count is not: the pipe may have been out of slots.
            Err(Errno::EAGAIN) => clear_readiness(from, Interest::READABLE),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }
}

fn write(to: &TcpStream, bytes: &[u8]) -> nix::Result<usize> {
    send(to.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)
}

/// Clears a readiness that tokio remembers and a call has just disproved. The end of a stream stays remembered.
pub(super) fn clear_readiness(stream: &TcpStream, interest: Interest) {
    let _ = stream.try_io(interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
}
