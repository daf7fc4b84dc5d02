//! The relay: every byte arrives in order and once; an end stays an end and a reset a reset.

use std::hash::{BuildHasher, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use lb_proxy::RelayMode;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sha2::{Digest, Sha256};
use socket2::SockRef;

use crate::support::{Balancer, PATIENCE, end_of, loopback, wait_until};

const MODES: [RelayMode; 3] = [RelayMode::Auto, RelayMode::Copy, RelayMode::Splice];

/// A balancer with this test as its only backend, which gives it both ends of each session.
struct Bench {
    balancer: Balancer,
    listener: TcpListener,
}

impl Bench {
    fn new(mode: RelayMode) -> Self {
        let listener = TcpListener::bind(loopback()).unwrap();
        let addr = listener.local_addr().unwrap();
        let balancer = Balancer::start(&[addr], |options, _| options.relay = mode).checked();
        // The check's connection.
        listener.accept().unwrap();
        Bench { balancer, listener }
    }

    /// A client and the backend's connection for it.
    fn pair(&self) -> [TcpStream; 2] {
        let client = TcpStream::connect(self.balancer.addr).unwrap();
        let (server, _) = self.listener.accept().unwrap();
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
        }
        [client, server]
    }

    fn wait_for_the_end(&self) {
        wait_until("the session has ended", || self.balancer.sessions() == 0);
    }
}

/// An endless stream of bytes that differ by seed and position (xorshift64*).
struct Stream(u64);

impl Stream {
    fn new(seed: u64) -> Self {
        Stream(seed.wrapping_mul(2).wrapping_add(1))
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            chunk.copy_from_slice(&self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()[..chunk.len()]);
        }
    }
}

fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Stream::new(seed).fill(&mut bytes);
    bytes
}

/// The behaviour of one side.
#[derive(Clone, Debug)]
struct Side {
    /// Lengths of its writes.
    writes: Vec<usize>,
    /// Pause after this number of writes.
    pause_after: Option<usize>,
    ends_with_reset: bool,
    /// Bytes of each read.
    read_size: usize,
    /// Pause before the first read and after this number of bytes, so that buffers fill up.
    reads_late: bool,
}

fn side() -> impl Strategy<Value = Side> {
    let write = prop_oneof![4 => 1..2000_usize, 3 => 10_000..100_000_usize, 1 => 500_000..3_000_000_usize];
    let writes = prop::collection::vec(write, 0..8);
    let read_size = prop_oneof![Just(1 << 16), 100..5000_usize, Just(1 << 20)];
    (writes, prop::option::of(0..4_usize), prop::bool::weighted(0.25), read_size, any::<bool>()).prop_map(
        |(writes, pause_after, ends_with_reset, read_size, reads_late)| Side {
            writes,
            pause_after,
            ends_with_reset,
            read_size,
            reads_late,
        },
    )
}

/// The observations of one side: the bytes, and the error with which its stream ended, if any.
type Seen = (Vec<u8>, Option<ErrorKind>);

/// Returns the error of a write, if any.
fn send(side: &Side, mut stream: &TcpStream, seed: u64) -> Option<ErrorKind> {
    let bytes = content(seed, side.writes.iter().sum());
    let mut rest = &bytes[..];
    for (i, length) in side.writes.iter().enumerate() {
        if side.pause_after == Some(i) {
            thread::sleep(Duration::from_millis(2));
        }
        let (now, later) = rest.split_at(*length);
        if let Err(error) = stream.write_all(now) {
            return Some(error.kind());
        }
        rest = later;
    }
    if side.ends_with_reset {
        SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
    } else {
        let _ = stream.shutdown(Shutdown::Write);
    }
    None
}

fn receive(side: &Side, mut stream: &TcpStream) -> Seen {
    let mut seen = Vec::new();
    let mut buffer = vec![0; side.read_size];
    if side.reads_late {
        thread::sleep(Duration::from_millis(10));
    }
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (seen, None),
            Ok(n) => seen.extend_from_slice(&buffer[..n]),
            Err(error) => return (seen, Some(error.kind())),
        }
    }
}

/// Plays both sides. Returns the observations of each.
fn play(bench: &Bench, sides: &[Side; 2]) -> [Seen; 2] {
    let [client, server] = bench.pair();
    let run = |i: usize, stream: TcpStream| {
        let side = &sides[i];
        thread::scope(|scope| {
            // A side that resets reads nothing: its socket must close while bytes are under way.
            let reader = (!side.ends_with_reset).then(|| scope.spawn(|| receive(side, &stream)));
            let failed = send(side, &stream, i as u64);
            let (seen, error) = reader.map_or((Vec::new(), None), |reader| reader.join().unwrap());
            // The kernel reports an error once, to the write or to the read; then the read sees an end.
            (seen, error.or(failed))
        })
    };
    thread::scope(|scope| {
        let client = scope.spawn(|| run(0, client));
        let server = run(1, server);
        [client.join().unwrap(), server]
    })
}

fn check(sides: &[Side; 2], seen: &[Seen; 2]) {
    for (i, (bytes, error)) in seen.iter().enumerate() {
        let (own, other) = (&sides[i], &sides[1 - i]);
        if own.ends_with_reset {
            continue;
        }
        let sent = content(1 - i as u64, other.writes.iter().sum());
        if other.ends_with_reset {
            assert!(error.is_some(), "side {i} read a reset as an end after {} bytes", bytes.len());
            assert_ne!(*error, Some(ErrorKind::WouldBlock), "side {i} saw no reset");
            assert!(sent.starts_with(bytes), "side {i} got other bytes");
        } else {
            assert_eq!(*error, None, "side {i} after {} of {} bytes", bytes.len(), sent.len());
            assert!(*bytes == sent, "side {i} got {} of {} bytes, or others", bytes.len(), sent.len());
        }
    }
}

fn play_generated(mode: RelayMode) {
    let bench = Bench::new(mode);
    let config = Config { cases: 200, max_shrink_iters: 50, failure_persistence: None, ..Config::default() };
    let seed = match std::env::var("RELAY_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => std::hash::RandomState::new().build_hasher().finish(),
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed.to_le_bytes(); 4].concat());
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&[side(), side()], |sides| {
        check(&sides, &play(&bench, &sides));
        bench.wait_for_the_end();
        Ok(())
    });
    // The message has the shrunken case; timing is not part of the seed.
    result.unwrap_or_else(|error| panic!("{mode:?}, again with RELAY_SEED={seed}: {error}"));
}

#[test]
fn generated_sessions_are_exact_when_adapting() {
    play_generated(RelayMode::Auto);
}

#[test]
fn generated_sessions_are_exact_when_copying() {
    play_generated(RelayMode::Copy);
}

#[test]
fn generated_sessions_are_exact_when_splicing() {
    play_generated(RelayMode::Splice);
}

/// Sends `length` bytes and the end of the stream. Returns their hash.
fn send_hashed(mut stream: &TcpStream, seed: u64, length: u64) -> Vec<u8> {
    let (mut bytes, mut hash, mut content) = (vec![0; 1 << 18], Sha256::new(), Stream::new(seed));
    let mut left = length;
    while left > 0 {
        let chunk = left.min(bytes.len() as u64) as usize;
        content.fill(&mut bytes[..chunk]);
        hash.update(&bytes[..chunk]);
        stream.write_all(&bytes[..chunk]).unwrap();
        left -= chunk as u64;
    }
    stream.shutdown(Shutdown::Write).unwrap();
    hash.finalize().to_vec()
}

fn receive_hashed(mut stream: &TcpStream) -> (u64, Vec<u8>) {
    let (mut bytes, mut hash, mut length) = (vec![0; 1 << 18], Sha256::new(), 0);
    loop {
        let n = stream.read(&mut bytes).unwrap();
        if n == 0 {
            return (length, hash.finalize().to_vec());
        }
        hash.update(&bytes[..n]);
        length += n as u64;
    }
}

fn transfer_both_ways(mode: RelayMode, length: u64) {
    let bench = Bench::new(mode);
    let streams = bench.pair();
    thread::scope(|scope| {
        let senders: Vec<_> = (0..2)
            .map(|i| {
                scope.spawn({
                    let s = &streams[i];
                    move || send_hashed(s, i as u64, length)
                })
            })
            .collect();
        let receivers: Vec<_> = (0..2)
            .map(|i| {
                scope.spawn({
                    let s = &streams[1 - i];
                    move || receive_hashed(s)
                })
            })
            .collect();
        for (sender, receiver) in senders.into_iter().zip(receivers) {
            let (received, hash) = receiver.join().unwrap();
            assert_eq!(received, length);
            assert_eq!(hash, sender.join().unwrap(), "{mode:?}");
        }
    });
    bench.wait_for_the_end();
    let backend = &bench.balancer.backends()[0];
    assert_eq!((backend.bytes_in, backend.bytes_out), (length, length));
}

#[test]
fn auto_relay_transfers_a_gibibyte_each_way() {
    transfer_both_ways(RelayMode::Auto, 1 << 30);
}

#[test]
fn copy_and_splice_relays_transfer_a_quarter_gibibyte_each_way() {
    transfer_both_ways(RelayMode::Copy, 1 << 28);
    transfer_both_ways(RelayMode::Splice, 1 << 28);
}

#[test]
fn a_half_closed_session_continues_in_the_other_direction() {
    for mode in MODES {
        let bench = Bench::new(mode);
        let [mut client, mut server] = bench.pair();
        client.write_all(b"request").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut request = Vec::new();
        server.read_to_end(&mut request).unwrap();
        assert_eq!(request, b"request");
        for i in 0..200_u8 {
            server.write_all(&[i; 1000]).unwrap();
            let mut answer = [0; 1000];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(answer, [i; 1000]);
        }
        drop(server);
        assert_eq!(end_of(&mut client), None);
        bench.wait_for_the_end();
    }
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

#[test]
fn a_reset_is_noticed_although_the_other_side_is_silent() {
    for mode in MODES {
        let bench = Bench::new(mode);
        for half_closed_first in [false, true] {
            for by_client in [false, true] {
                let [client, server] = bench.pair();
                let (one, mut other) = if by_client { (client, server) } else { (server, client) };
                if half_closed_first {
                    one.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(other.read(&mut [0]).unwrap(), 0);
                }
                reset(one);
                bench.wait_for_the_end();
                if half_closed_first {
                    // Later reads would report the end of the stream again.
                    wait_until("the reset arrives", || other.write_all(b"x").is_err());
                } else {
                    assert_eq!(end_of(&mut other), Some(ErrorKind::ConnectionReset));
                }
            }
        }
    }
}

#[test]
fn a_reset_is_noticed_while_its_bytes_are_blocked() {
    for mode in MODES {
        let bench = Bench::new(mode);
        let [mut client, mut server] = bench.pair();
        // This fills all buffers up to the server, which does not read.
        client.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        while client.write(&[1; 1 << 16]).is_ok() {}
        reset(client);
        bench.wait_for_the_end();
        assert_eq!(end_of(&mut server), Some(ErrorKind::ConnectionReset));
    }
}

#[test]
fn bytes_before_a_reset_of_the_backend_are_delivered() {
    for mode in MODES {
        let bench = Bench::new(mode);
        let [mut client, mut server] = bench.pair();
        client.write_all(b"never read").unwrap();
        wait_until("it has arrived", || server.peek(&mut [0; 64]).unwrap() == 10);
        server.write_all(b"go away").unwrap();
        // Closing with unread bytes sends a reset.
        drop(server);
        let mut answer = [0; 7];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"go away");
        assert_eq!(end_of(&mut client), Some(ErrorKind::ConnectionReset));
    }
}

#[test]
fn small_messages_stay_prompt_after_bulk() {
    for mode in MODES {
        let bench = Bench::new(mode);
        let [mut client, mut server] = bench.pair();
        let turns = Mutex::new(Vec::new());
        for round in 0..20 {
            let bytes = content(round, 300_000);
            thread::scope(|scope| {
                scope.spawn(|| client.write_all(&bytes).unwrap());
                let mut got = vec![0; bytes.len()];
                server.read_exact(&mut got).unwrap();
                assert!(got == bytes);
            });
            let start = std::time::Instant::now();
            for _ in 0..20 {
                server.write_all(b"ping").unwrap();
                client.read_exact(&mut [0; 4]).unwrap();
                client.write_all(b"pong").unwrap();
                server.read_exact(&mut [0; 4]).unwrap();
            }
            turns.lock().unwrap().push(start.elapsed() / 40);
        }
        let mut turns = turns.into_inner().unwrap();
        turns.sort();
        // A delayed segment costs 40 to 200 ms.
        assert!(turns[turns.len() / 2] < Duration::from_millis(10), "{mode:?}: {turns:?}");
    }
}
