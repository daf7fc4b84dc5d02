//! Zero-copy TCP load balancer: accept, pick, connect, relay by splice, check health, drain, and the nftables table that feeds it.

mod accept;
mod apply;
mod backend;
mod balance;
mod balancer;
mod config;
mod connect;
mod error;
mod event;
pub mod health;
mod heartbeat;
mod listener;
mod local;
pub mod nft;
mod relay;
mod service;
mod session;
mod shared;
mod snapshot;
mod socket;
mod verdict;
mod worker;

pub use balancer::LoadBalancer;
pub use config::{Backend, Balance, HealthCheck, HealthKind, Options, RelayMode, Service};
pub use error::{HeartbeatError, InvalidService, ReconfigureError, StartError};
pub use event::{Event, Failure};
pub use snapshot::{
    BackendSnapshot, BackendState, ServiceSnapshot, ServingEvidence, Snapshot, WorkerSnapshot,
};
