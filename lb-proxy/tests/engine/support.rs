//! Well and badly behaved backends, and a balancer in front of them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lb_proxy::{Backend, BackendSnapshot, BackendState, Event, LoadBalancer, Options, Service};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

/// Time limit of waits, long enough for a loaded machine; no test succeeds by it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// A check interval longer than any test: the check runs once.
pub(crate) const ONCE: Duration = Duration::from_secs(3600);

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A free port that no outgoing connection gets, so that it can be closed and bound again.
pub(crate) fn quiet_port() -> u16 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // Linux picks ports for connections from 32768 on. Other runs of this program start elsewhere.
    let start = std::process::id() as usize * 97;
    loop {
        let port = 12_000 + ((start + NEXT.fetch_add(1, SeqCst)) % 20_000) as u16;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

/// Waits until a condition holds.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A backend that greets with one byte, its identity, and echoes.
pub(crate) struct Echo {
    pub(crate) addr: SocketAddr,
    /// Connections that sent bytes: checks do not.
    pub(crate) clients: Arc<AtomicUsize>,
    /// Connections open now.
    pub(crate) open: Arc<AtomicUsize>,
    /// The errors with which connections of those clients ended.
    pub(crate) errors: Arc<Mutex<Vec<io::ErrorKind>>>,
    stop_listening: Arc<Notify>,
    /// Set if later clients get no answer instead of a refusal.
    keeps_port: Arc<AtomicBool>,
    stop: Arc<Notify>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Echo {
    pub(crate) fn start(identity: u8) -> Self {
        Self::start_at(identity, loopback())
    }

    pub(crate) fn start_at(identity: u8, addr: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&addr.into()).unwrap();
        socket.listen(4096).unwrap();
        socket.set_nonblocking(true).unwrap();
        let listener = TcpListener::from(socket);
        let addr = listener.local_addr().unwrap();
        let mut echo = Echo {
            addr,
            clients: Arc::default(),
            open: Arc::default(),
            errors: Arc::default(),
            stop_listening: Arc::default(),
            keeps_port: Arc::default(),
            stop: Arc::default(),
            thread: None,
        };
        let (stop_listening, stop) = (Arc::clone(&echo.stop_listening), Arc::clone(&echo.stop));
        let (clients, open, errors) =
            (Arc::clone(&echo.clients), Arc::clone(&echo.open), Arc::clone(&echo.errors));
        let keeps_port = Arc::clone(&echo.keeps_port);
        let serve = async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = stop_listening.notified() => break,
                    () = stop.notified() => return,
                };
                let Ok((stream, _)) = accepted else {
                    // A test has taken all descriptors.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let (clients, open, errors) = (Arc::clone(&clients), Arc::clone(&open), Arc::clone(&errors));
                tokio::spawn(async move {
                    open.fetch_add(1, SeqCst);
                    let mut counted = false;
                    if let Err(error) = echo_one(stream, identity, &clients, &mut counted).await
                        && counted
                    {
                        errors.lock().unwrap().push(error.kind());
                    }
                    open.fetch_sub(1, SeqCst);
                });
            }
            if keeps_port.load(SeqCst) {
                // The next connection fills the queue.
                SockRef::from(&listener).listen(0).unwrap();
                stop.notified().await;
                return;
            }
            drop(listener);
            stop.notified().await;
        };
        echo.thread = Some(thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve);
        }));
        echo
    }

    /// Answers no further connects; open connections continue.
    pub(crate) fn fall_silent(&self) {
        self.keeps_port.store(true, SeqCst);
        self.stop_listening.notify_one();
    }

    pub(crate) fn count(&self) -> usize {
        self.clients.load(SeqCst)
    }

    /// Stops listening; open connections continue.
    pub(crate) fn close_listener(&self) {
        self.stop_listening.notify_one();
        wait_until("the listener is closed", || TcpStream::connect(self.addr).is_err());
    }

    /// Ends like a killed process: resets connections that have unread bytes, and closes the others.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.end();
    }
}

async fn echo_one(
    mut stream: tokio::net::TcpStream,
    identity: u8,
    clients: &AtomicUsize,
    counted: &mut bool,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(&[identity]).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return stream.shutdown().await;
        }
        if !std::mem::replace(counted, true) {
            clients.fetch_add(1, SeqCst);
        }
        stream.write_all(&buffer[..n]).await?;
    }
}

/// An address where connects are refused, reserved against other sockets.
pub(crate) struct Refusing(
    pub(crate) SocketAddr,
    #[expect(dead_code, reason = "dropping it frees the address")] Socket,
);

impl Refusing {
    pub(crate) fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&loopback().into()).unwrap();
        Refusing(socket.local_addr().unwrap().as_socket().unwrap(), socket)
    }
}

/// A listener that answers one connect, the first check's, and after [`BlackHole::swallow`] no SYN: its queue is full.
pub(crate) struct BlackHole {
    pub(crate) addr: SocketAddr,
    listener: Socket,
    queued: Vec<Socket>,
}

impl BlackHole {
    pub(crate) fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&loopback().into()).unwrap();
        listener.listen(128).unwrap();
        let addr = listener.local_addr().unwrap().as_socket().unwrap();
        BlackHole { addr, listener, queued: Vec::new() }
    }

    pub(crate) fn swallow(&mut self) {
        self.listener.listen(0).unwrap();
        let target = SockAddr::from(self.addr);
        loop {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let answered = socket.connect_timeout(&target, Duration::from_millis(300)).is_ok();
            self.queued.push(socket);
            if !answered {
                break;
            }
            assert!(self.queued.len() < 1000, "the queue does not fill");
        }
    }
}

/// A balancer on loopback with all its events.
pub(crate) struct Balancer {
    pub(crate) lb: LoadBalancer,
    pub(crate) addr: SocketAddr,
    pub(crate) events: Arc<Mutex<Vec<Event>>>,
}

impl Balancer {
    /// One service `api`; checks are made once unless the caller changes that.
    pub(crate) fn start(backends: &[SocketAddr], change: impl FnOnce(&mut Options, &mut Service)) -> Self {
        let mut options = Options { workers: 2, ..Options::default() };
        let mut service = service(backends);
        change(&mut options, &mut service);
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let sink = Arc::clone(&events);
        let lb = LoadBalancer::start(
            options,
            vec![service],
            Box::new(move |event| sink.lock().unwrap().push(event)),
        );
        let lb = lb.unwrap();
        let addr = lb.snapshot().services[0].listen[0];
        Balancer { lb, addr, events }
    }

    /// Waits until each backend was checked.
    pub(crate) fn checked(self) -> Self {
        wait_until("all backends are checked", || {
            self.backends().iter().all(|backend| backend.state != BackendState::Unknown)
        });
        self
    }

    pub(crate) fn backends(&self) -> Vec<BackendSnapshot> {
        self.lb.snapshot().services.swap_remove(0).backends
    }

    pub(crate) fn backend(&self, addr: SocketAddr) -> BackendSnapshot {
        self.backends().into_iter().find(|backend| backend.addr == addr).unwrap()
    }

    pub(crate) fn sessions(&self) -> usize {
        self.lb.snapshot().workers.iter().map(|worker| worker.sessions).sum()
    }

    pub(crate) fn has_event(&self, matches: impl Fn(&Event) -> bool) -> bool {
        self.events.lock().unwrap().iter().any(matches)
    }
}

pub(crate) fn service(backends: &[SocketAddr]) -> Service {
    let backends = backends.iter().copied().map(Backend::new).collect();
    let mut service = Service::new("api", vec![loopback()], backends);
    service.health.interval = ONCE;
    service
}

/// Connects and reads the greeting.
pub(crate) fn connect(addr: SocketAddr) -> io::Result<(TcpStream, u8)> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut identity = [0];
    stream.read_exact(&mut identity)?;
    Ok((stream, identity[0]))
}

/// The result of a connect; `None` if the balancer reset the connection before `connect` returned.
pub(crate) fn unless_reset<T>(connected: io::Result<T>) -> Option<T> {
    match connected {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
        other => Some(other.unwrap()),
    }
}

/// Sends a message and reads its echo.
pub(crate) fn ping(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"ping");
    Ok(())
}

/// Makes one whole connection. Returns the identity of the backend.
pub(crate) fn visit(addr: SocketAddr) -> io::Result<u8> {
    let (mut stream, identity) = connect(addr)?;
    ping(&mut stream)?;
    Ok(identity)
}

/// Returns the error with which a connection ends; `None` for an orderly end.
pub(crate) fn end_of(stream: &mut TcpStream) -> Option<io::ErrorKind> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) => return Some(error.kind()),
        }
    }
}

/// Runs `job` in this number of threads. Returns their results.
pub(crate) fn in_threads<T: Send>(threads: usize, job: impl Fn(usize) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|i| {
                scope.spawn({
                    let job = &job;
                    move || job(i)
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

/// The variable with the backend of the parent, for a test in a process of its own.
const BACKEND: &str = "ENGINE_TEST_BACKEND";

/// Starts an ignored test of this program in a process of its own.
pub(crate) fn spawn_test(name: &str, backend: Option<&Echo>) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .envs(backend.map(|echo| (BACKEND, echo.addr.to_string())))
        .args([name, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs an ignored test of this program in a process of its own to its end.
pub(crate) fn run_test(name: &str, backend: Option<&Echo>) {
    let output = spawn_test(name, backend).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{name}: {text}");
}

/// The backend that the parent of this process runs.
pub(crate) fn parents_backend() -> SocketAddr {
    std::env::var(BACKEND).expect("run by its parent").parse().unwrap()
}

/// A runtime for the asynchronous methods of the balancer.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Returns the files of this process's descriptors.
pub(crate) fn descriptors() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.map(|link| link.display().to_string()).collect()
}

pub(crate) fn pipes() -> usize {
    descriptors().iter().filter(|link| link.starts_with("pipe:")).count()
}
