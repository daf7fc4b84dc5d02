//! Zero-copy TCP load balancer: accept, pick, connect, relay by splice, check health, drain, and the nftables table that feeds it.
//!
//! [`LoadBalancer::start`] runs services; everything else is a method of the handle it returns. [`health::Monitor`] and
//! [`nft::Nft`] also stand alone, by the features `health` and `nft`; `engine` is the balancer. Without features the
//! crate consists of the types of a configuration and has no dependency.
//!
//! # Threads
//!
//! Workers accept on listeners of their own (`SO_REUSEPORT`) and keep each session on one thread for its whole life, so
//! that relaying takes no lock. A worker with clearly more sessions than another hands a new one over. Another thread
//! runs the health checks. The handle only sends commands to the workers and reads atomics: it never waits for a
//! worker, except where a method says so, and then not for long.
//!
//! # Guarantees
//!
//! - A backend is connected before a byte of the client is read: while any backend can be connected, no client sees
//!   one that cannot.
//! - Every byte is relayed exactly once and in order. An end of stream is forwarded after all bytes before it, a reset
//!   as a reset; a reset is never taken for an end.
//! - An idle session holds two sockets and about 1.3 KiB, neither a buffer nor a pipe.
//! - Sessions leave a quarter of the descriptors, at most 1024, to the rest of the process. Clients beyond a limit are
//!   reset as soon as they are accepted; no backend is blamed for a lack of descriptors, ports or memory.
//! - Changes of the configuration end no session, and a removed listener goes on accepting for
//!   [`Options::linger`]. Failed health checks, [`LoadBalancer::reset_sessions`] and [`LoadBalancer::stop`] end
//!   sessions by a reset to both sides.
//!
//! `splice(2)` has no flag against `SIGPIPE`: the process must ignore the signal, as every Rust program does by
//! default.

mod balance;
mod check;
#[cfg(feature = "engine")]
mod engine;
#[cfg(feature = "health")]
pub mod health;
mod mark;
#[cfg(feature = "nft")]
pub mod nft;
#[cfg(feature = "health")]
mod shortage;
#[cfg(feature = "health")]
mod source;

pub use balance::Balance;
pub use check::{HealthCheck, HealthKind};
#[cfg(feature = "engine")]
pub use engine::{
    Backend, BackendSnapshot, BackendState, ConnectTimes, Connection, Event, Failure, HeartbeatError,
    InvalidService, ListenError, LoadBalancer, Options, ReconfigureError, Refusal, RelayMode, Service,
    ServiceSnapshot, ServingEvidence, Snapshot, StartError, WorkerSnapshot,
};
pub use mark::{MARK, director_marks};
#[cfg(feature = "health")]
pub use shortage::Shortage;
