//! The socket for events, apart from the one for requests so that a flood of events never delays an answer.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, Socket, SocketAddr, TokioSocket};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce};
use rtnetlink::MulticastGroup;

use crate::wire::decode::{DecodeError, NetEvent, decode_events};

/// Events come in reads of up to a page, links with many attributes in more.
const READ_SIZE: usize = 32 * 1024;

/// Result of one read.
pub(crate) enum Notification {
    /// Something was decoded.
    Event(NetEvent),
    /// Something happened that cannot be read.
    Unreadable(DecodeError),
    /// Events were dropped because we did not keep up.
    Overrun,
}

/// A subscribed socket.
pub(crate) struct Listener {
    socket: TokioSocket,
    buffer: Vec<u8>,
    routes: bool,
}

impl Listener {
    /// Subscribes to links and addresses. `buffer` is the receive buffer in bytes, which the kernel doubles; beyond
    /// `net.core.rmem_max` it needs CAP_NET_ADMIN in the initial user namespace, otherwise it is cut to it.
    /// To be called within a runtime.
    pub(crate) fn open(buffer: usize) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let inner: &mut Socket = socket.socket_mut();
        if setsockopt(inner, RcvBufForce, &buffer).is_err() {
            setsockopt(inner, RcvBuf, &buffer)?;
        }
        inner.bind(&SocketAddr::new(0, 0))?;
        for group in [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr] {
            inner.add_membership(group as u32)?;
        }
        Ok(Self { socket, buffer: vec![0; READ_SIZE], routes: false })
    }

    /// Subscribes to routes, or no longer: on a router they change all the time. Returns whether that is a change.
    pub(crate) fn watch_routes(&mut self, wanted: bool) -> io::Result<bool> {
        if self.routes == wanted {
            return Ok(false);
        }
        let socket = self.socket.socket_mut();
        for group in [MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route] {
            if wanted {
                socket.add_membership(group as u32)?;
            } else {
                socket.drop_membership(group as u32)?;
            }
        }
        self.routes = wanted;
        Ok(true)
    }

    /// Waits for something to read, and reads it. Nothing is lost if the future is dropped before it is ready.
    pub(crate) async fn wait(&mut self, take: impl FnMut(Notification)) {
        let Self { socket, buffer, .. } = self;
        let read = poll_fn(|cx| {
            let mut free = &mut buffer[..];
            let result = std::task::ready!(socket.poll_recv(cx, &mut free));
            Poll::Ready(result.map(|()| READ_SIZE - free.len()))
        });
        let result = read.await;
        interpret(buffer, result, take);
    }

    /// One read without waiting. Returns whether there was something.
    pub(crate) fn read(&mut self, take: impl FnMut(Notification)) -> bool {
        let result = self.socket.socket_ref().recv(&mut &mut self.buffer[..], 0);
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            return false;
        }
        interpret(&self.buffer, result, take);
        true
    }
}

fn interpret(buffer: &[u8], result: io::Result<usize>, mut take: impl FnMut(Notification)) {
    match result {
        Ok(length) => {
            for event in decode_events(&buffer[..length.min(buffer.len())]) {
                take(event.map_or_else(Notification::Unreadable, Notification::Event));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        // ENOBUFS is how the kernel says that it dropped events. Other errors are not documented for this socket;
        // whatever they mean, a resync is the answer.
        Err(_) => take(Notification::Overrun),
    }
}
