//! A LAN of controllers in network namespaces, for cplb's tests, benchmarks and demonstration.
//!
//! The crate does not need root. [`enter`] (called by [`main`] for test binaries) moves the process into its own
//! namespaces, once, while it has a single thread; after that [`Lan`] builds switches, controllers and clients as
//! network namespaces joined by a bridge. Real processes run in them, captures record their frames, probes measure the
//! service that a client gets, and cuts partition the network.
//!
//! All processes are in one PID namespace whose init is the entered process: when that process ends, whatever the
//! cause, the kernel ends all others with it, and frees the namespaces, mounts and files.
//!
//! A test target has `harness = false` and a `main` such as this one:
//!
//! ```no_run
//! use std::{process::{Command, ExitCode}, time::Duration};
//! use testbed::{AddressWatch, Backend, Direction, Lan, Probe, Signal, Test, Tool, eventually};
//!
//! fn main() -> ExitCode {
//!     testbed::main(vec![Test::new("the_vip_moves", the_vip_moves).needs([Tool::Nft])])
//! }
//!
//! fn the_vip_moves() {
//!     let lan = Lan::builder().controllers(3).clients(1).build().expect("a LAN");
//!     let (vip, second) = (lan.v4(100), Duration::from_secs(1));
//!     let _apis: Vec<Backend> =
//!         lan.controllers().iter().map(|node| Backend::tls(node, node.name(), 6443).expect("an API server")).collect();
//!     let daemons = lan.controllers().iter().map(|node| {
//!         let mut command = Command::new("/path/to/cplb");
//!         command.args(["run", "--config", "k0s.yaml", "--state-dir"]).arg(node.directory());
//!         node.spawn("cplb", command).expect("a daemon")
//!     });
//!     let daemons: Vec<_> = daemons.collect();
//!     eventually("one controller holds the VIP", 5 * second, || lan.owners(vip).len() == 1);
//!     let active = lan.controllers().iter().position(|node| node.has_address(vip)).expect("an owner");
//!     let (capture, watch) = (lan.capture().expect("frames"), AddressWatch::on(lan.controller(active)).expect("changes"));
//!     let probe = Probe::to((vip, 6443).into()).fresh_neighbour().start(lan.client(0)).expect("a probe");
//!     probe.wait_until_stable(second / 5, 5 * second).expect("the VIP answers");
//!     let killed = daemons[active].signal(Signal::SIGKILL).expect("a running daemon");
//!     lan.cut(lan.controller(active), Direction::Both).expect("a cut");
//!     watch.wait_for_loss(vip, 4 * second).expect("the lease ends by itself");
//!     probe.wait_for_success(killed, 10 * second).expect("another controller takes over");
//!     println!("blackout {:?}", probe.report().blackout_since(killed).duration());
//!     println!("by {:?}", capture.announcements(vip).last().and_then(|(_, it)| lan.node_with_mac(it.mac)));
//! }
//! ```
//!
//! Functions that the demonstration uses return [`Error`]; the few helpers that only tests use panic with the expected
//! condition as the message, as their documentation states.

pub mod api;
mod backend;
mod capture;

mod error;
mod freeze;
pub mod guest;
mod harness;
mod keepalived;
mod lan;
mod listen;
mod log;
mod namespaces;
mod netlink;
mod netns;
mod node;
mod probe;
mod process;
mod scheduler;
mod tool;
mod urgency;
mod wait;
mod watch;

pub use backend::{Backend, BackendStats, Behaviour, Readiness, peer_certificate};
pub use capture::{Announcement, AnnouncementKind, Capture, Frame, TcpSegment, Travel, VrrpAdvert};
pub use error::Error;
pub use freeze::FrozenThreads;
pub use harness::{Test, main};
pub use keepalived::{Keepalived, KeepalivedState, VrrpInstance};
pub use lan::{Direction, Impairment, Lan, LanBuilder};
pub use log::{Line, Log, Stream};
pub use namespaces::{EnterError, Entered, enter, is_initial_root};
pub use netlink::{Address, Mac, Neighbour};
pub use netns::Thread;
pub use node::Node;
pub use probe::{Failure, Gap, Probe, ProbeBuilder, ProbeReport, Sample, SessionState, Sessions};
pub use process::{Process, Signal};
pub use tool::Tool;
pub use wait::{TimedOut, eventually, wait_until};
pub use watch::{AddressChange, AddressEvent, AddressPeriod, AddressWatch};
