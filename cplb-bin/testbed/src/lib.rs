//! A LAN of controllers in network namespaces, for cplb's tests, benchmarks and demonstration.
//!
//! Nothing here needs root. [`enter`] (called by [`main`] for test binaries) moves the process into
//! namespaces of its own, once, while it has a single thread; after that [`Lan`] builds switches, controllers
//! and clients as network namespaces joined by a bridge. Real processes run in them, captures watch them,
//! probes measure what a client sees, and cuts take the network apart.
//!
//! Everything lives in one PID namespace whose init is the entered process: when that process ends, however
//! it ends, the kernel ends everything else with it, and the namespaces, mounts and files are gone.
//!
//! Functions that the demonstration uses return [`Error`]; the few helpers that only tests use panic with a
//! message that says what was expected, and say so in their documentation.

mod backend;
mod capture;
mod error;
mod freeze;
mod ground;
mod harness;
mod keepalived;
mod lan;
mod log;
mod netlink;
mod netns;
mod node;
mod probe;
mod process;
mod tool;
mod urgency;
mod wait;
mod watch;

pub use backend::{Backend, BackendStats, Behaviour, Readiness, peer_certificate};
pub use capture::{Announcement, AnnouncementKind, Capture, Frame, TcpSegment, Travel, VrrpAdvert};
pub use error::Error;
pub use freeze::FrozenThreads;
pub use ground::{EnterError, Ground, enter, is_initial_root};
pub use harness::{Test, main};
pub use keepalived::{Keepalived, KeepalivedState, VrrpInstance};
pub use lan::{Direction, Lan, LanBuilder};
pub use log::{Line, Log, Stream};
pub use netlink::{Address, Mac, Neighbour};
pub use netns::Thread;
pub use node::Node;
pub use probe::{Failure, Gap, Probe, ProbeBuilder, ProbeReport, Sample, SessionState, Sessions};
pub use process::{Process, Signal};
pub use tool::Tool;
pub use wait::{TimedOut, eventually, wait_until};
pub use watch::{AddressChange, AddressEvent, AddressWatch, Tenure};
