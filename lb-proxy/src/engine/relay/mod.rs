//! The relay between a client and its backend.
//!
//! Both directions are driven by the one task of the pair. Small traffic goes through a buffer that all pairs of a
//! worker share; a direction that turns out to be bulk moves whole pages through a pipe with `splice(2)` until it is
//! small again. A pair that waits for bytes holds neither. Half-closes are forwarded in each direction when all that
//! was sent before has been; a reset or any other error of one side resets the other.

mod direction;
mod pipe;
mod tools;

use std::io;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::engine::backend::SessionGuard;
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

    /// Ready when both directions have ended, or with the error of the side that broke. Must then be dropped, in the
    /// latter case after both sockets were set to reset.
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
            // What the server said before it reset is still delivered, but not an end.
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

    /// Gives pooled pipes back.
    pub(crate) fn release(&mut self, tools: &Tools) {
        self.up.release(tools);
        self.down.release(tools);
    }
}

/// Whether nobody waits for a socket, given the direction away from it and the one towards it, while it is still open
/// for writing. After that its end cannot be told from a reset.
fn is_unwatched(away: Step, towards: Step) -> bool {
    matches!(away, Step::Blocked | Step::Done) && towards == Step::Idle
}

/// Has the task woken when a socket breaks that it would otherwise not look at: because its bytes have nowhere to go,
/// or because it has ended its direction and the other side is silent.
///
/// A broken socket reports itself writable. Forgetting that this one is writable lets the task wait for that; writes
/// do not ask for readiness before they are refused, so they are not held up.
fn watch(stream: &TcpStream, cx: &mut Context<'_>) -> io::Result<()> {
    clear_readiness(stream, Interest::WRITABLE);
    if stream.poll_write_ready(cx)?.is_ready() {
        return Err(stream.take_error()?.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()));
    }
    Ok(())
}
