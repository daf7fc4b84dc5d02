//! VRRPv2/v3 codec, ARP/NDP announcements and a sans-IO election state machine, with an optional real-time runner.
//!
//! The crate has seven layers; each can be used without the ones below it in this list:
//!
//! * [`packet`]: VRRP messages as bytes and as values (RFC 3768 with the PASS field of RFC 2338, RFC 9568).
//! * [`hmac`]: signatures of messages, as keepalived 2.4 has them (`auth_hmac`).
//! * [`channel`]: what the controllers of a group tell each other beyond VRRP, as a sans-IO state machine.
//! * [`owners`]: the hosts that answer for virtual addresses without being Active, as a sans-IO state machine.
//! * [`announce`]: the Ethernet frames that move a virtual address in the neighbours' caches.
//! * [`router`]: [`VirtualRouter`], the election. It does no I/O and reads no clock: events and the time go in
//!   through `handle_*`, actions and the next deadline come out through `poll_*`.
//! * `runner` (feature `runner`, Linux): the sockets, the timer and the real-time thread that drive any number of
//!   virtual routers.
//!
//! A router without peers becomes Active after one Active_Down_Interval:
//!
//! ```
//! use std::time::Instant;
//! use vrrp::router::{InterfaceEvent, Output, StateName};
//! use vrrp::{AdvertInterval, Priority, RouterConfig, Version, VirtualRouter, Vrid};
//!
//! let vrid = Vrid::try_from(51)?;
//! let mut config = RouterConfig::new(vrid, Version::V3, Priority::new(100)?, AdvertInterval::DEFAULT);
//! config.addresses_v4 = vec!["192.0.2.100".parse()?];
//!
//! let now = Instant::now();
//! let mut router = VirtualRouter::new(config, now);
//! router.handle_interface(now, InterfaceEvent::Up { v4: Some("192.0.2.1".parse()?), v6: None });
//! while router.state() != StateName::Active {
//!     let (at, _) = router.poll_timeout().expect("a Backup always waits for something");
//!     router.handle_timeout(at);
//! }
//! let outputs: Vec<Output> = std::iter::from_fn(|| router.poll_output()).collect();
//! assert!(matches!(
//!     outputs[..],
//!     [Output::Transition(_), Output::Transition(_), Output::Advertise(_), Output::Claim(_), Output::Watch(_)]
//! ));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The vocabulary is that of RFC 9568: the router that holds the virtual addresses is the *Active* router (older
//! texts say Master), the others are *Backup* routers.

pub mod announce;
pub mod channel;
pub mod hmac;
pub mod owners;
pub mod packet;
pub mod router;
#[cfg(feature = "runner")]
pub mod runner;

mod prefix;
mod types;

pub use announce::{Announcement, gratuitous_arp, parse_announcement, unsolicited_na};
pub use packet::{Addresses, Advertisement, Auth, ChecksumPolicy, DecodeError, PseudoHeader};

pub use prefix::LinkPrefix;
pub use router::{RouterConfig, VirtualRouter};
pub use types::{
    AdvertInterval, AuthPass, AuthPassError, Family, HOP_LIMIT, IP_PROTOCOL, IntervalError, MULTICAST_V4,
    MULTICAST_V6, MacAddr, OutOfRange, Priority, Version, Vrid, WirePriority,
};
