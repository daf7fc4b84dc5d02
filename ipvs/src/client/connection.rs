//! The socket and the future that serves it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::channel::mpsc::UnboundedReceiver;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_proto::sys::protocols::NETLINK_GENERIC;
use netlink_proto::sys::{AsyncSocket, SocketAddr, TokioSocket};
use netlink_proto::{ConnectionHandle, NetlinkCodec, from_socket_with_codec};
use tokio::sync::watch;

use super::raw::Raw;

/// Serves the socket of a [`Client`](super::Client): requests make progress while it is polled, and it ends when all
/// clients are gone or the socket fails.
#[must_use = "requests are not sent unless the connection is polled"]
pub struct Connection(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// A client's part of its connection. The order of the fields is that in which they are dropped: the end of the
/// requests makes the connection look, and it must then find that no receiver of overruns is left.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    /// Number of losses of answers so far.
    pub(super) overruns: watch::Receiver<u64>,
    pub(super) requests: ConnectionHandle<Raw>,
    /// Size of the socket's receive buffer, in bytes.
    pub(super) receive_buffer: usize,
}

/// Opens a socket in the network namespace of the calling thread.
pub(super) fn open() -> io::Result<(Handle, Connection)> {
    let mut socket = <TokioSocket as AsyncSocket>::new(NETLINK_GENERIC)?;
    let inner = socket.socket_mut();
    inner.bind_auto()?;
    // This only saves room in the receive buffer: refusals then come without the request.
    let _ = inner.set_cap_ack(true);
    Ok(serve(socket))
}

/// Serves any socket; the tests have one with a model of the kernel behind it.
pub(super) fn serve<S: AsyncSocket + Send + 'static>(socket: S) -> (Handle, Connection) {
    let receive_buffer = socket.socket_ref().get_rx_buf_sz().unwrap_or(0);
    let (mut inner, requests, unsolicited) = from_socket_with_codec::<Raw, S, NetlinkCodec>(socket);
    inner.set_forward_ack(true);
    inner.set_forward_done(true);
    let (lost, overruns) = watch::channel(0);
    let served = Served { inner, unsolicited, lost };
    (Handle { overruns, requests, receive_buffer }, Connection(Box::pin(served)))
}

struct Served<S> {
    inner: netlink_proto::Connection<Raw, S>,
    unsolicited: UnboundedReceiver<(NetlinkMessage<Raw>, SocketAddr)>,
    lost: watch::Sender<u64>,
}

impl<S: AsyncSocket> Future for Served<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let done = Pin::new(&mut self.inner).poll(context);
        // Nothing but the poll above can have added to the queue, so there is no need to be woken for it.
        while let Ok((message, _)) = self.unsolicited.try_recv() {
            if matches!(message.payload, NetlinkPayload::Overrun(_)) {
                self.lost.send_modify(|lost| *lost += 1);
            }
        }
        if self.lost.is_closed() { Poll::Ready(()) } else { done }
    }
}
