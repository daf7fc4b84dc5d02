//! The thread of a backend.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use socket2::{SockFilter, SockRef, Socket};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{mpsc::UnboundedReceiver, watch},
};

use super::{Behaviour, Command, PendingCommand, Protocol, Shared, http};
use crate::listen::listen;
use crate::urgency::{self, Urgency};

pub(super) struct Server {
    address: SocketAddr,
    protocol: Protocol,
    shared: Arc<Shared>,
    requests: UnboundedReceiver<PendingCommand>,
    listener: Option<TcpListener>,
    /// Control of the open connections.
    control: watch::Sender<Control>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Control {
    resets: u64,
    silent: bool,
}

/// A classic BPF program of one instruction, "return 0": it drops every packet.
const DROP_ALL: [(u16, u32); 1] = [(0x06, 0)];

impl Server {
    pub(super) fn new(
        address: SocketAddr,
        protocol: Protocol,
        shared: Arc<Shared>,
        requests: UnboundedReceiver<PendingCommand>,
    ) -> Self {
        Self { address, protocol, shared, requests, listener: None, control: watch::Sender::default() }
    }

    pub(super) fn run(mut self) {
        urgency::claim(Urgency::Serve);
        // Without a runtime no request is answered, and the backend reports that it has ended.
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            loop {
                tokio::select! {
                    biased;
                    request = self.requests.recv() => {
                        let Some(request) = request else { return };
                        let result = self.handle_command(request.command);
                        let _ = request.done.send(result);
                        if matches!(request.command, Command::Stop) {
                            return;
                        }
                    }
                    stream = accept(self.listener.as_ref()) => self.dispatch(stream).await,
                }
            }
        });
    }

    fn handle_command(&mut self, command: Command) -> io::Result<()> {
        match command {
            Command::Listen => {
                if let Some(listener) = &self.listener {
                    let _ = SockRef::from(listener).detach_filter();
                } else {
                    self.listener = Some(TcpListener::from_std(listen(self.address)?)?);
                }
                self.control.send_modify(|control| control.silent = false);
            }
            Command::Refuse | Command::Stop => self.listener = None,
            Command::Blackhole => {
                if let Some(listener) = &self.listener {
                    drop_packets(&SockRef::from(listener))?;
                }
                self.control.send_modify(|control| control.silent = true);
            }
            Command::ResetAll => self.control.send_modify(|control| control.resets += 1),
        }
        Ok(())
    }

    async fn dispatch(&self, stream: io::Result<TcpStream>) {
        let Ok(stream) = stream else {
            // Out of descriptors: pause, rather than spin.
            tokio::time::sleep(Duration::from_millis(10)).await;
            return;
        };
        self.shared.accepted.fetch_add(1, Ordering::Relaxed);
        let (protocol, shared, control) =
            (self.protocol.clone(), Arc::clone(&self.shared), self.control.subscribe());
        tokio::spawn(async move {
            serve_until_reset(stream, protocol, &shared, control).await;
            shared.closed.fetch_add(1, Ordering::Relaxed);
        });
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

/// Serves a connection until it ends or is reset.
async fn serve_until_reset(
    stream: TcpStream,
    protocol: Protocol,
    shared: &Shared,
    mut control: watch::Receiver<Control>,
) {
    // A second descriptor of the socket, because the TLS session takes ownership of the first one.
    let Ok(socket) = SockRef::from(&stream).try_clone() else { return };
    let resets = control.borrow().resets;
    let serving = serve(stream, protocol, shared);
    tokio::pin!(serving);
    loop {
        tokio::select! {
            _ = &mut serving => return,
            changed = control.changed() => {
                let now = *control.borrow_and_update();
                if changed.is_err() || now.resets != resets {
                    let _ = socket.set_linger(Some(Duration::ZERO));
                    return;
                }
                let _ = if now.silent { drop_packets(&socket) } else { socket.detach_filter() };
            }
        }
    }
}

async fn serve(mut stream: TcpStream, protocol: Protocol, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let behaviour = shared.settings().behaviour;
    match behaviour {
        Behaviour::Serve => {}
        Behaviour::Close => return Ok(()),
        Behaviour::Hang => return std::future::pending().await,
    }
    let (acceptor, certified) = match protocol {
        Protocol::Tls(acceptor) => (acceptor, false),
        Protocol::Certified(acceptor) => (acceptor, true),
        Protocol::Echo => {
            stream.write_all(format!("{}\n", shared.name).as_bytes()).await?;
            return echo(stream).await;
        }
    };
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] == TLS_HANDSHAKE {
        let session = acceptor.accept(stream).await?;
        shared.handshakes.fetch_add(1, Ordering::Relaxed);
        let authenticated = !certified || session.get_ref().1.peer_certificates().is_some();
        return http::serve(session, shared, authenticated).await;
    }
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    (&mut stream).take(MAX_LINE).read_until(b'\n', &mut line).await?;
    shared.requests.fetch_add(1, Ordering::Relaxed);
    stream.write_all(format!("{}\n", shared.name).as_bytes()).await?;
    echo(stream).await
}

/// The content type that a TLS connection begins with (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 22;
const MAX_LINE: u64 = 4096;

async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..n]).await?;
        stream.flush().await?;
    }
}

/// Makes the kernel drop all packets that arrive for a socket; accepted connections inherit the filter from their
/// listener.
fn drop_packets(socket: &Socket) -> io::Result<()> {
    socket.attach_filter(&DROP_ALL.map(|(code, k)| SockFilter::new(code, 0, 0, k)))
}
