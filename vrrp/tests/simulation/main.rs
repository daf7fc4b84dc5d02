//! The election on a simulated LAN: no I/O, virtual time, seeded faults.
//!
//! `random` drives many small LANs through arbitrary faults and checks what must always hold; `scenarios` are single
//! stories with exact expectations. A failing seed prints the command that replays it with a trace.

mod controls;
mod node;
mod random;
mod rng;
mod scenarios;
mod stranger;
mod world;
