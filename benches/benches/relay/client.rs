//! The load generator: one thread, with the number of connections that the measurement sets.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::{IpBindAddressNoPort, TcpCongestion};
use nix::sys::socket::{getsockopt, setsockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::Result;
use crate::server::{ANSWER, ASK, CHUNK, DOWNLOAD, REQUEST, UPLOAD};

/// Concurrent connections when counting requests and connections.
pub(crate) const ABREAST: usize = 32;
/// Requests on each kept connection before the measurement.
const WARM_UP_REQUESTS: u32 = 20;
/// Client addresses, to have enough ports; see [`crate::server::ADDRESSES`].
const SOURCES: u64 = 32;
/// A measured operation that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The direction of bulk data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Down,
    Up,
}

/// The end of a measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Time(Duration),
    /// After this many bytes, requests or connections.
    Count(u64),
}

/// The work that was done, and its duration.
#[derive(Debug)]
pub(crate) struct Done {
    pub count: u64,
    pub elapsed: Duration,
    /// The latency of each request, unordered.
    pub latencies: Vec<Duration>,
}

impl Done {
    pub(crate) fn rate(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency that one request in a hundred exceeds.
    pub(crate) fn p99(&mut self) -> Duration {
        let Some(last) = self.latencies.len().checked_sub(1) else { return Duration::ZERO };
        *self.latencies.select_nth_unstable(last * 99 / 100).1
    }
}

#[derive(Debug)]
pub(crate) struct Client {
    runtime: Runtime,
}

/// State that the connections of one measurement share.
#[derive(Debug)]
struct Budget {
    addresses: Vec<SocketAddr>,
    deadline: Option<Instant>,
    left: AtomicU64,
    /// Numbers connections, to spread them over addresses.
    number: AtomicU64,
}

impl Budget {
    fn new(addresses: &[SocketAddr], until: Until) -> Arc<Self> {
        let (deadline, left) = match until {
            Until::Time(time) => (Some(Instant::now() + time), u64::MAX),
            Until::Count(count) => (None, count),
        };
        let (left, number) = (AtomicU64::new(left), AtomicU64::new(0));
        Arc::new(Budget { addresses: addresses.to_vec(), deadline, left, number })
    }

    /// Returns whether one more operation is to be done.
    fn take(&self) -> bool {
        if let Some(deadline) = self.deadline {
            return Instant::now() < deadline;
        }
        self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let number = self.number.fetch_add(1, Relaxed);
        let address = self.addresses[number as usize % self.addresses.len()];
        let source = Ipv4Addr::new(127, 0, 1, 1 + (number / self.addresses.len() as u64 % SOURCES) as u8);
        let socket = TcpSocket::new_v4()?;
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind((source, 0).into())?;
        socket.set_nodelay(true)?;
        socket.connect(address).await
    }
}

impl Client {
    pub(crate) fn new() -> Result<Self> {
        Ok(Client { runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()? })
    }

    /// The congestion control of a connection on this machine; it is left at its default, so that all have the same.
    pub(crate) fn congestion(&self, addresses: &[SocketAddr]) -> Result<String> {
        self.bounded(async {
            let stream = Budget::new(addresses, Until::Count(0)).connect().await?;
            Ok(getsockopt(&stream, TcpCongestion)?.to_string_lossy().trim_end_matches('\0').to_owned())
        })
    }

    /// Transfers one stream of bulk data. `started` is called after `warm_up`, when the measurement begins.
    pub(crate) fn bulk<T>(
        &self,
        addresses: &[SocketAddr],
        direction: Direction,
        warm_up: Duration,
        until: Until,
        started: impl FnOnce() -> T,
    ) -> Result<(Done, T)> {
        self.bounded(async {
            let mut stream = Budget::new(addresses, until).connect().await?;
            let first = if direction == Direction::Down { DOWNLOAD } else { UPLOAD };
            stream.write_all(&request(first)).await?;
            let mut chunk = vec![0; CHUNK];
            transfer(&mut stream, direction, &mut chunk, Until::Time(warm_up)).await?;
            let mark = started();
            let done = transfer(&mut stream, direction, &mut chunk, until).await?;
            Ok((done, mark))
        })
    }

    /// Sends requests on kept connections.
    pub(crate) fn requests(&self, addresses: &[SocketAddr], until: Until) -> Result<Done> {
        self.bounded(async {
            let opening = Budget::new(addresses, until);
            let mut streams = Vec::new();
            for _ in 0..ABREAST {
                let mut stream = opening.connect().await?;
                for _ in 0..WARM_UP_REQUESTS {
                    ask(&mut stream).await?;
                }
                streams.push(stream);
            }
            let budget = Budget::new(addresses, until);
            let started = Instant::now();
            let mut tasks = JoinSet::new();
            for mut stream in streams {
                let budget = Arc::clone(&budget);
                tasks.spawn(async move {
                    let mut latencies = Vec::with_capacity(4096);
                    while budget.take() {
                        let asked = Instant::now();
                        ask(&mut stream).await?;
                        latencies.push(asked.elapsed());
                    }
                    io::Result::Ok(latencies)
                });
            }
            let latencies = collect(tasks).await?;
            Ok(Done { count: latencies.len() as u64, elapsed: started.elapsed(), latencies })
        })
    }

    /// Opens connections with one request each; the client closes them.
    pub(crate) fn connections(&self, addresses: &[SocketAddr], until: Until) -> Result<Done> {
        self.bounded(async {
            let budget = Budget::new(addresses, until);
            let started = Instant::now();
            let mut tasks = JoinSet::new();
            for _ in 0..ABREAST {
                let budget = Arc::clone(&budget);
                tasks.spawn(async move {
                    let mut count = 0;
                    while budget.take() {
                        ask(&mut budget.connect().await?).await?;
                        count += 1;
                    }
                    io::Result::Ok([count])
                });
            }
            let count = collect(tasks).await?.into_iter().sum();
            Ok(Done { count, elapsed: started.elapsed(), latencies: Vec::new() })
        })
    }

    /// Opens connections that are used once and then stay idle.
    pub(crate) fn idle(&self, addresses: &[SocketAddr], count: usize) -> Result<Vec<TcpStream>> {
        self.bounded(async {
            let budget = Budget::new(addresses, Until::Count(count as u64));
            let mut tasks = JoinSet::new();
            for _ in 0..ABREAST {
                let budget = Arc::clone(&budget);
                tasks.spawn(async move {
                    let mut streams = Vec::new();
                    while budget.take() {
                        let mut stream = budget.connect().await?;
                        ask(&mut stream).await?;
                        streams.push(stream);
                    }
                    io::Result::Ok(streams)
                });
            }
            collect(tasks).await
        })
    }

    fn bounded<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, work).await.map_err(|_| "a measurement hangs")?
        })
    }
}

async fn collect<T: Send + 'static, C: IntoIterator<Item = T> + Send + 'static>(
    mut tasks: JoinSet<io::Result<C>>,
) -> Result<Vec<T>> {
    let mut all = Vec::new();
    while let Some(task) = tasks.join_next().await {
        all.extend(task??);
    }
    Ok(all)
}

fn request(first: u8) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    request[0] = first;
    request
}

async fn ask(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&request(ASK)).await?;
    let mut answer = [0; ANSWER];
    stream.read_exact(&mut answer).await?;
    Ok(())
}

/// Reads or writes as fast as possible.
async fn transfer(
    stream: &mut TcpStream,
    direction: Direction,
    chunk: &mut [u8],
    until: Until,
) -> Result<Done> {
    let started = Instant::now();
    let mut count = 0;
    loop {
        let over = match until {
            Until::Time(time) => started.elapsed() >= time,
            Until::Count(bytes) => count >= bytes,
        };
        if over {
            return Ok(Done { count, elapsed: started.elapsed(), latencies: Vec::new() });
        }
        count += match direction {
            Direction::Down => stream.read(chunk).await?,
            Direction::Up => stream.write(chunk).await?,
        } as u64;
    }
}
