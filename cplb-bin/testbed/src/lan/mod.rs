//! The LAN: a switch, controllers and clients.

mod build;
mod cut;
mod impair;
mod plug;
mod sweep;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::Mutex,
    thread,
};

use tempfile::TempDir;

pub use build::LanBuilder;
pub use cut::Direction;
pub use impair::Impairment;

use crate::{Error, Node, log::Journal};

/// A switch with controllers and clients. Dropping it ends every process in it and frees the namespaces; on a panic,
/// all output of its processes is printed first.
#[derive(Debug)]
pub struct Lan {
    // Drop order: first the nodes, then the directory that their processes write to.
    controllers: Vec<Node>,
    clients: Vec<Node>,
    routed: Vec<Node>,
    switch: Node,
    cuts: Mutex<BTreeSet<cut::Cut>>,
    journal: Journal,
    v4: Option<Network<Ipv4Addr>>,
    v6: Option<Network<Ipv6Addr>>,
    back: Option<Network<Ipv4Addr>>,
    directory: TempDir,
}

/// The network of one family.
#[derive(Debug, Clone, Copy)]
struct Network<A> {
    address: A,
    prefix_len: u8,
}

impl Lan {
    /// Returns a builder of a LAN; see [`LanBuilder`] for the defaults.
    pub fn builder() -> LanBuilder {
        LanBuilder::default()
    }

    /// All controllers, `c1` first.
    #[must_use]
    pub fn controllers(&self) -> &[Node] {
        &self.controllers
    }

    /// All clients on the switch, `client1` first.
    #[must_use]
    pub fn clients(&self) -> &[Node] {
        &self.clients
    }

    /// All clients behind a controller, `pod1` first.
    #[must_use]
    pub fn routed_clients(&self) -> &[Node] {
        &self.routed
    }

    /// The controller with this index, from 0.
    ///
    /// # Panics
    /// If there is no such controller.
    #[must_use]
    pub fn controller(&self, index: usize) -> &Node {
        &self.controllers[index]
    }

    /// The client with this index, from 0.
    ///
    /// # Panics
    /// If there is no such client.
    #[must_use]
    pub fn client(&self, index: usize) -> &Node {
        &self.clients[index]
    }

    /// The namespace of the switch, which has the bridge and the gateway's addresses. Every frame passes it.
    #[must_use]
    pub fn switch(&self) -> &Node {
        &self.switch
    }

    /// Every node except the switch.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.controllers.iter().chain(&self.clients).chain(&self.routed)
    }

    /// The node of this name.
    ///
    /// # Errors
    /// [`Error::NoSuchNode`].
    pub fn node(&self, name: &str) -> Result<&Node, Error> {
        self.nodes().find(|node| node.name() == name).ok_or_else(|| Error::NoSuchNode(name.to_owned()))
    }

    /// The IPv4 address with this host number, 100 is `10.9.0.100`. Nodes have 1 … (controllers), 101 … (clients)
    /// and 254 (gateway).
    ///
    /// # Panics
    /// If the LAN has no IPv4.
    #[must_use]
    pub fn v4(&self, host: u8) -> Ipv4Addr {
        let Some(network) = self.v4 else { panic!("this LAN has no IPv4") };
        network.host(host)
    }

    /// The IPv6 address with this host number in decimal digits, 100 is `fd09::100`. Nodes have the same numbers
    /// as in IPv4.
    ///
    /// # Panics
    /// If the LAN has no IPv6.
    #[must_use]
    pub fn v6(&self, host: u8) -> Ipv6Addr {
        let Some(network) = self.v6 else { panic!("this LAN has no IPv6") };
        network.host(host)
    }

    /// The address with this host number on the second link of controllers, 1 is `10.8.0.1`.
    ///
    /// # Panics
    /// If the controllers have no second link.
    #[must_use]
    pub fn back_v4(&self, host: u8) -> Ipv4Addr {
        let Some(network) = self.back else { panic!("this LAN has no second link") };
        network.host(host)
    }

    /// The prefix lengths of the IPv4 and the IPv6 network.
    #[must_use]
    pub fn prefix_lengths(&self) -> (u8, u8) {
        (self.v4.map_or(0, |network| network.prefix_len), self.v6.map_or(0, |network| network.prefix_len))
    }

    /// A directory on a tmpfs, removed with the LAN. It contains a directory per node with the logs of its processes.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// All lines of all processes of this LAN, in chronological order.
    #[must_use]
    pub fn report(&self) -> String {
        self.journal.report()
    }

    /// The controllers that have this address now.
    ///
    /// # Panics
    /// If addresses cannot be listed.
    #[must_use]
    pub fn owners(&self, ip: impl Into<IpAddr>) -> Vec<&Node> {
        let ip = ip.into();
        self.controllers.iter().filter(|node| node.has_address(ip)).collect()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the processes of this LAN wrote ---\n{}--- end ---", self.report());
        }
        let namespaces =
            self.nodes().chain([&self.switch]).filter_map(|node| node.netns().inode().ok()).collect();
        sweep::end_processes_in(&namespaces, &self.journal);
    }
}

impl Network<Ipv4Addr> {
    fn host(self, number: u8) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() + u32::from(number))
    }
}

impl Network<Ipv6Addr> {
    fn host(self, number: u8) -> Ipv6Addr {
        let (hundreds, tens, ones) = (number / 100, number / 10 % 10, number % 10);
        let digits = u128::from(hundreds) << 8 | u128::from(tens) << 4 | u128::from(ones);
        Ipv6Addr::from_bits(self.address.to_bits() + digits)
    }
}
