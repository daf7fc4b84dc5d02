//! The balancer on loopback: failover, relay, balancing, reconfiguration, limits.
//!
//! Tests that count the descriptors of their process, limit them or stop its threads run in a process of their own:
//! this program again, with the name of one ignored test.

mod balance;
mod exhaustion;
mod failover;
mod heartbeat;
mod leaks;
mod lifecycle;
mod linger;
mod reconfigure;
mod relay;
mod reset;
mod stall;
mod support;
