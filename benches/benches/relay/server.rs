//! The backend: the first byte of each request selects the operation.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::Result;

pub(crate) const ROLE: &str = "--as-server";

/// Number of addresses that the server listens on, all with the same port: the port of a closed connection stays in use
/// for a while, and an address has 28,000 of them.
pub(crate) const ADDRESSES: [Ipv4Addr; 4] = [
    Ipv4Addr::new(127, 0, 0, 11),
    Ipv4Addr::new(127, 0, 0, 12),
    Ipv4Addr::new(127, 0, 0, 13),
    Ipv4Addr::new(127, 0, 0, 14),
];

/// Below the ephemeral range, like the port of an API server: for a port of that range the proxy has to check more.
const PORTS: std::ops::Range<u16> = 6443..6543;

/// Bytes of a request and of its answer, as in a small API call.
pub(crate) const REQUEST: usize = 128;
pub(crate) const ANSWER: usize = 1024;
/// Bytes of one read or write of bulk.
pub(crate) const CHUNK: usize = 256 * 1024;

/// Operation: answer.
pub(crate) const ASK: u8 = b'a';
/// Operation: send until the connection breaks.
pub(crate) const DOWNLOAD: u8 = b'd';
/// Operation: receive until the end.
pub(crate) const UPLOAD: u8 = b'u';

/// Serves until the standard input ends.
pub(crate) fn run() -> Result<()> {
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (port, listeners) = listen().await?;
        for listener in listeners {
            tokio::spawn(accept(listener));
        }
        println!("{}", SocketAddr::from((ADDRESSES[0], port)));
        std::future::pending::<()>().await;
        Ok(())
    })
}

/// Listens on the first port that is free on all addresses.
async fn listen() -> Result<(u16, Vec<TcpListener>)> {
    'ports: for port in PORTS {
        let mut listeners = Vec::new();
        for address in ADDRESSES {
            match TcpListener::bind((address, port)).await {
                Ok(listener) => listeners.push(listener),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue 'ports,
                Err(error) => return Err(error.into()),
            }
        }
        return Ok((port, listeners));
    }
    Err("no free port for the server".into())
}

async fn accept(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        // A client that has finished may reset its connection.
        tokio::spawn(async move { drop(serve(stream).await) });
    }
    eprintln!("server: cannot accept any more");
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut request = [0; REQUEST];
    loop {
        stream.read_exact(&mut request).await?;
        match request[0] {
            DOWNLOAD => return Box::pin(send(stream)).await,
            UPLOAD => return Box::pin(receive(stream)).await,
            _ => stream.write_all(&[0; ANSWER]).await?,
        }
    }
}

async fn send(mut stream: TcpStream) -> io::Result<()> {
    let chunk = vec![0; CHUNK];
    loop {
        stream.write_all(&chunk).await?;
    }
}

async fn receive(mut stream: TcpStream) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while stream.read(&mut chunk).await? > 0 {}
    Ok(())
}
