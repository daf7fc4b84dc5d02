//! Zero-copy TCP load balancer: accept, pick, connect, relay by splice, check health, drain, and the nftables table that feeds it.

mod config;
pub mod health;
pub mod nft;

pub use config::{Backend, Balance, HealthCheck, HealthKind, Options, RelayMode, Service};
