//! The nftables table, and other tests that need a network of their own, on a real kernel, in network namespaces that
//! the test makes; no root needed.
//!
//! No default harness: it has threads, and a process with threads cannot enter a user namespace.

mod checks;
mod directors;
mod faults;
mod ns;
mod reach;
mod silence;
mod traffic;
mod watch;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::num::{NonZeroU16, NonZeroU32};
use std::process::ExitCode;

use lb_proxy::MARK;
use lb_proxy::nft::{Delivery, Nft, Table, TableName};
use libtest_mimic::{Arguments, Trial};

/// VIPs of both families, 6443 → 6444.
fn table() -> Table {
    Table {
        name: TableName::default(),
        vips: ["10.0.0.100", "fd00::100"].map(ns::ip).into(),
        redirects: redirects(&[(6443, 6444)]),
        mark: NonZeroU32::new(MARK),
        ..Table::default()
    }
}

/// A test that runs in every mode.
type InMode = (&'static str, fn(Mode));

/// Delivery of packets from other hosts to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Transparent,
    Dnat,
}

impl Mode {
    const BOTH: [Self; 2] = [Self::Transparent, Self::Dnat];

    fn table(self) -> Table {
        let delivery = match self {
            Self::Transparent => Delivery::default(),
            Self::Dnat => Delivery::Dnat,
        };
        Table { delivery, ..table() }
    }

    fn listen(self, port: u16) -> TcpListener {
        match self {
            Self::Transparent => ns::listen_transparent(port),
            Self::Dnat => ns::listen(port),
        }
    }

    /// The local address of the proxy's socket for a connection of another host to this address.
    fn arrival(self, vip: SocketAddr, bind_port: u16) -> SocketAddr {
        match self {
            Self::Transparent => vip,
            Self::Dnat => SocketAddr::new(vip.ip(), bind_port),
        }
    }
}

fn redirects(ports: &[(u16, u16)]) -> BTreeMap<NonZeroU16, NonZeroU16> {
    let port = |number| NonZeroU16::new(number).unwrap();
    ports.iter().map(|(from, to)| (port(*from), port(*to))).collect()
}

fn find() -> Nft {
    Nft::find().unwrap_or_else(|missing| panic!("{missing}"))
}

/// Runs `future` on a runtime of the calling thread, so that nft is started in its namespace.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(faults::PROBE) {
        return faults::probe();
    }
    let arguments = Arguments::from_args();
    if let Err(why) = ns::enter() {
        eprintln!("{why}");
        return ExitCode::FAILURE;
    }
    let tests: Vec<(&str, fn())> = [
        traffic::ONCE,
        directors::TESTS,
        watch::TESTS,
        faults::TESTS,
        checks::TESTS,
        silence::TESTS,
        reach::TESTS,
    ]
    .concat();
    let once = tests.into_iter().map(|(name, test)| trial(name.to_owned(), test));
    let twice = [traffic::TESTS, reach::IN_BOTH_MODES].concat().into_iter().flat_map(|(name, test)| {
        Mode::BOTH.map(|mode| trial(format!("{name} {mode:?}").to_lowercase(), move || test(mode)))
    });
    let trials = once.chain(twice);
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn trial(name: String, test: impl Fn() + Send + Sync + 'static) -> Trial {
    Trial::test(name, move || {
        ns::isolated(&test);
        Ok(())
    })
}
