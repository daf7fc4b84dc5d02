//! A session: the task of one client, from its acceptance to the end of its relay.

use std::future::Future;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::TcpStream;

use super::connect::{Connected, connect};
use super::relay::Relay;
use super::service::LiveService;
use super::socket::reset_on_close;
use super::ticket::Ticket;
use super::worker::Worker;

/// The task, as a future written by hand because every idle watch of every kubelet is one: its size is asserted below.
///
/// Unless it ends in order, dropping it resets its connections: that is how sessions are reset from outside.
struct Session {
    worker: Rc<Worker>,
    client: TcpStream,
    /// The key of its entry in the worker's table.
    key: u32,
    ended_cleanly: bool,
    phase: Phase,
}

enum Phase {
    /// Boxed because connecting needs much more room, and only briefly.
    Connecting(Pin<Box<dyn Future<Output = Option<Connected>>>>),
    Relaying(Relay),
}

/// Starts the session of an admitted client. Its load has been counted already.
pub(crate) fn start(worker: &Rc<Worker>, client: TcpStream, address: IpAddr, ticket: Ticket) {
    let service = Arc::clone(ticket.service());
    let key = worker.register(client.as_raw_fd(), ticket);
    let session = Session::new(Rc::clone(worker), key, client, address, service);
    let task = tokio::task::spawn_local(session);
    worker.set_abort_handle(key, task.abort_handle());
}

impl Session {
    fn new(
        worker: Rc<Worker>,
        key: usize,
        client: TcpStream,
        address: IpAddr,
        service: Arc<LiveService>,
    ) -> Self {
        let connecting = connect(Rc::clone(&worker), service, address);
        // Such a large table cannot exist: descriptors are 32-bit numbers.
        let key = u32::try_from(key).unwrap_or(u32::MAX);
        Session { worker, client, key, ended_cleanly: false, phase: Phase::Connecting(Box::pin(connecting)) }
    }
}

impl Future for Session {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Session { worker, client, key, ended_cleanly, phase } = &mut *self;
        loop {
            match phase {
                Phase::Connecting(connecting) => match std::task::ready!(connecting.as_mut().poll(cx)) {
                    Some(Connected { server, guard }) => {
                        worker.connected(*key as usize, guard.backend().id);
                        *phase = Phase::Relaying(Relay::new(server, guard, &worker.tools));
                    }
                    // The client is refused by the reset that dropping this sends.
                    None => return Poll::Ready(()),
                },
                Phase::Relaying(relay) => {
                    let ended = std::task::ready!(relay.poll(client, &worker.tools, cx));
                    *ended_cleanly = ended.is_ok();
                    return Poll::Ready(());
                }
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.ended_cleanly {
            reset_on_close(&self.client);
        }
        if let Phase::Relaying(relay) = &mut self.phase {
            relay.release(&self.worker.tools);
            if !self.ended_cleanly {
                reset_on_close(&relay.server);
            }
        }
        self.worker.ended(self.key as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_small() {
        assert!(size_of::<Session>() <= 152, "{}", size_of::<Session>());
    }
}
