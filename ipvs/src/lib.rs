//! The complete typed client for IPVS, the Linux kernel's layer-4 load balancer (the "Linux Virtual Server", LVS).
//!
//! - **The whole family.** Services by address and by firewall mark, of TCP, UDP and SCTP, over IPv4 and IPv6, with any
//!   scheduler and persistence; destinations with every forwarding method, tunnel and threshold; statistics, sync
//!   daemons, timeouts.
//! - **Types that say what the kernel says.** Attributes that this crate does not know survive, names need not be
//!   known, and what older kernels leave out may be missing.
//! - **[`wire`] needs no socket, [`reconcile`] needs no kernel**: without the default feature `client`, the model, the
//!   codec and the planner remain, without dependencies to speak of.
//! - **The client is fast and patient.** Independent commands share datagrams. The family is looked for when it is
//!   needed, so that the module may be loaded later and again. Lost answers and interrupted dumps are asked for again,
//!   every request has a time limit, and errors tell what the kernel meant.
//!
#![cfg_attr(feature = "client", doc = "```no_run")]
#![cfg_attr(not(feature = "client"), doc = "```ignore")]
//! use ipvs::{Client, Destination, DestinationKey, ForwardMethod, SchedulerName, Service, ServiceKey, Weight};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::spawn()?;
//! println!("IPVS {}", client.info().await?.version);
//!
//! let key = ServiceKey::tcp([10, 0, 0, 100].into(), 6443);
//! client.add_service(&Service::new(key, SchedulerName::WLC)).await?;
//! for server in [[10, 0, 0, 11], [10, 0, 0, 12]] {
//!     let server = DestinationKey::new(server.into(), 6443);
//!     let destination = Destination::new(server, ForwardMethod::DIRECT_ROUTE).with_weight(Weight(5));
//!     client.add_destination(&key, &destination).await?;
//! }
//! for entry in client.destinations(&key).await? {
//!     println!("{}: {} connections", entry.destination.key, entry.stats().connections);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A desired table, whatever the kernel has now, is described as [`reconcile::Desired`] and established by
//! `Client::reconcile`.
//!
//! # Privileges
//!
//! Every command, reading included, needs CAP_NET_ADMIN in the *initial* user namespace; being root in a user namespace
//! of one's own does not suffice. Each network namespace has a table of its own; a client works on that of the thread
//! that opened it.

#[cfg(feature = "client")]
mod client;
mod model;
pub mod reconcile;
#[cfg(test)]
mod testing;
pub mod wire;

#[cfg(feature = "client")]
pub use client::{
    Client, CommandError, Connection, DaemonError, DestinationError, RequestError, ServiceError,
};
pub use model::*;
