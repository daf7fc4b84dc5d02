//! The load balancer: accepting, choosing, connecting, relaying, and the handle of all of it.

mod accept;
mod admission;
mod backend;
mod balancer;
mod bind;
mod chooser;
mod clock;
mod command;
mod config;
mod connect;
mod connect_times;
mod error;
mod event;
mod guard;
mod health_change;
mod heartbeat;
mod lingering;
mod listener;
mod listeners;
mod local;
mod local_ports;
mod reconfigure;
mod relay;
mod service;
mod session;
mod shared;
mod snapshot;
mod socket;
mod ticket;
mod worker;
mod worker_thread;

pub use balancer::LoadBalancer;
pub use config::{Backend, Options, RelayMode, Service};
pub use connect_times::ConnectTimes;
pub use error::{HeartbeatError, InvalidService, ListenError, ReconfigureError, StartError};
pub use event::{Event, Failure, Refusal};
pub use snapshot::{
    BackendSnapshot, BackendState, Connection, ServiceSnapshot, ServingEvidence, Snapshot, WorkerSnapshot,
};
