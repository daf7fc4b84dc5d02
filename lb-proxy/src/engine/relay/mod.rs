//! The relay between a client and its backend.
//!
//! One task drives both directions of a pair. Small traffic goes through a buffer that all pairs of a worker share; a
//! direction that turns bulk moves whole pages through a pipe with `splice(2)` until its traffic is small again. A pair
//! that waits for bytes holds neither. A half-close is forwarded after all bytes before it; a reset or any other error
//! of one side resets the other.

mod direction;
mod pipe;
mod tools;

use std::io;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::engine::guard::SessionGuard;
use direction::{Direction, Step, clear_readiness};
pub(crate) use pipe::pipes_allowed;
pub(crate) use tools::Tools;

/// The backend side of a pair and the state of both directions.
#[derive(Debug)]
pub(crate) struct Relay {
    pub server: TcpStream,
    guard: SessionGuard,
    up: Direction,
    down: Direction,
}

impl Relay {
    pub(crate) fn new(server: TcpStream, guard: SessionGuard, tools: &Tools) -> Self {
        Relay { server, guard, up: Direction::new(tools.mode), down: Direction::new(tools.mode) }
    }

    /// Ready when both directions have ended, or with the error of the side that broke. The relay must then be dropped,
    /// in the latter case after both sockets were set to reset.
    pub(crate) fn poll(
        &mut self,
        client: &TcpStream,
        tools: &Tools,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let Relay { server, guard, up, down } = self;
        let (bytes_in, bytes_out) = (&guard.backend().bytes_in, &guard.backend().bytes_out);
        let up_step = up.pump(client, server, tools, bytes_in, cx);
        if up_step.is_err() {
            // Bytes that the server sent before its reset are still delivered, but not as the end of a stream.
            down.mark_source_broken();
        }
        let down_step = down.pump(server, client, tools, bytes_out, cx);
        let (up_step, down_step) = (up_step?, down_step?);
        match (up_step, down_step) {
            (Step::Done, Step::Done) => return Poll::Ready(Ok(())),
            (Step::Yielded, _) | (_, Step::Yielded) => cx.waker().wake_by_ref(),
            _ => {
                if is_unwatched(up_step, down_step) {
                    watch(client, cx)?;
                }
                if is_unwatched(down_step, up_step) {
                    watch(server, cx)?;
                }
            }
        }
        Poll::Pending
    }

    /// Returns the pipes to the pool.
    pub(crate) fn release(&mut self, tools: &Tools) {
        self.up.release(tools);
        self.down.release(tools);
    }
}

/// Returns whether neither direction waits for a socket that is still open for writing, given the direction away from
/// it and the one towards it. After it was shut down for writing its end cannot be distinguished from a reset.
fn is_unwatched(away: Step, towards: Step) -> bool {
    matches!(away, Step::Blocked | Step::Done) && towards == Step::Idle
}

/// Wakes the task when a socket breaks that neither direction waits for: because its bytes have nowhere to go, or
/// because it has ended its direction and the other side is silent.
///
/// A broken socket reports itself writable. Clearing that readiness lets the task wait for it; writes do not ask for
/// readiness before they are refused, so they are not delayed.
fn watch(stream: &TcpStream, cx: &mut Context<'_>) -> io::Result<()> {
    clear_readiness(stream, Interest::WRITABLE);
    if stream.poll_write_ready(cx)?.is_ready() {
        return Err(stream.take_error()?.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()));
    }
    Ok(())
}
