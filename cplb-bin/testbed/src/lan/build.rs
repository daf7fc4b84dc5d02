//! Building a LAN.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::Mutex,
    time::Duration,
};

use super::{Lan, Network};
use crate::{
    Address, Error, Mac, Node,
    log::Journal,
    namespaces,
    netlink::{self, End},
    netns::{self, Netns},
    node::{INTERFACE, Inner, Interface},
    wait_until,
};

/// The layout of a LAN. The defaults are three controllers and one client, 10.9.0.0/24 and fd09::/64.
///
/// Controllers are configured as Kubernetes nodes: they forward packets, have a default route (through the switch), and
/// drop the secondaries of a deleted primary address, which is the kernel's default.
#[derive(Debug, Clone)]
#[must_use]
pub struct LanBuilder {
    controllers: u8,
    clients: u8,
    routed: Vec<u8>,
    v4: Option<Network<Ipv4Addr>>,
    v6: Option<Network<Ipv6Addr>>,
    promote_secondaries: bool,
    lease: Option<Duration>,
    back: Option<Network<Ipv4Addr>>,
}

impl Default for LanBuilder {
    fn default() -> Self {
        Self {
            controllers: 3,
            clients: 1,
            routed: Vec::new(),
            v4: Some(Network { address: Ipv4Addr::new(10, 9, 0, 0), prefix_len: 24 }),
            v6: Some(Network { address: Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 0), prefix_len: 64 }),
            promote_secondaries: false,
            lease: None,
            back: None,
        }
    }
}

/// Host numbers; see [`Lan::v4`].
const FIRST_CONTROLLER: u8 = 1;
const FIRST_CLIENT: u8 = 101;
const GATEWAY: u8 = 254;
const MAX_CONTROLLERS: u8 = 99;
const MAX_CLIENTS: u8 = 99;
const MAX_PREFIX_LEN_V4: u8 = 24;
const MAX_PREFIX_LEN_V6: u8 = 112;

/// The networks of routed clients, one host in each, and the gateway address that Calico assigns.
const POD_V4: [u8; 2] = [10, 244];
const POD_V6: u16 = 0xfd44;
const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The bridge in the namespace of the switch.
const BRIDGE: &str = "br0";

/// The second link of controllers, and its bridge.
const BACK_INTERFACE: &str = "eth1";
const BACK_BRIDGE: &str = "br1";

/// Longest time until link-local addresses appear.
const LINK_LOCAL_TIMEOUT: Duration = Duration::from_secs(5);

impl LanBuilder {
    /// Sets the number of controllers, at most 99.
    pub fn controllers(mut self, count: u8) -> Self {
        self.controllers = count;
        self
    }

    /// Sets the number of clients on the switch, at most 99.
    pub fn clients(mut self, count: u8) -> Self {
        self.clients = count;
        self
    }

    /// Adds a client behind an interface of the controller with this index that has no IPv4 address, as Calico connects
    /// pods: `pod1` has 10.244.1.2 and fd44:1::2, its interface on the controller is `cali1`.
    pub fn routed_client(mut self, controller: u8) -> Self {
        self.routed.push(controller);
        self
    }

    /// Sets the IPv4 network, instead of 10.9.0.0/24; at least a /24, with 0 as its last octet.
    pub fn network_v4(mut self, address: Ipv4Addr, prefix_len: u8) -> Self {
        self.v4 = Some(Network { address, prefix_len });
        self
    }

    /// Sets the IPv6 network, instead of `fd09::/64`; at least a /112, with 0 as its last two octets.
    pub fn network_v6(mut self, address: Ipv6Addr, prefix_len: u8) -> Self {
        self.v6 = Some(Network { address, prefix_len });
        self
    }

    /// Omits IPv4 addresses.
    pub fn without_v4(mut self) -> Self {
        self.v4 = None;
        self
    }

    /// Omits IPv6 addresses except link-local ones.
    pub fn without_v6(mut self) -> Self {
        self.v6 = None;
        self
    }

    /// Makes controllers keep the secondaries of a deleted primary address (`promote_secondaries=1`).
    pub fn promote_secondaries(mut self) -> Self {
        self.promote_secondaries = true;
        self
    }

    /// Makes the controllers' own addresses expire after `lifetime`, as those from DHCP do. They are not renewed.
    pub fn leased_addresses(mut self, lifetime: Duration) -> Self {
        self.lease = Some(lifetime);
        self
    }

    /// Adds a second link, `eth1`, to all controllers, on a separate switch, with 10.8.0.0/24.
    pub fn back_link(mut self) -> Self {
        self.back = Some(Network { address: Ipv4Addr::new(10, 8, 0, 0), prefix_len: 24 });
        self
    }

    /// Builds the LAN.
    ///
    /// # Errors
    /// [`Error::NotEntered`] outside of the namespaces that [`crate::enter`] makes; otherwise the kernel's error.
    pub fn build(self) -> Result<Lan, Error> {
        if !namespaces::is_inside() {
            return Err(Error::NotEntered);
        }
        if self.controllers > MAX_CONTROLLERS || self.clients > MAX_CLIENTS {
            return Err(Error::Misuse("a LAN has at most 99 controllers and 99 clients".into()));
        }
        let too_small = self.v4.is_some_and(|network| network.prefix_len > MAX_PREFIX_LEN_V4)
            || self.v6.is_some_and(|network| network.prefix_len > MAX_PREFIX_LEN_V6);
        if too_small {
            return Err(Error::Misuse("the networks of a LAN must be at least a /24 and a /112".into()));
        }
        if self.routed.iter().any(|&controller| controller >= self.controllers) {
            return Err(Error::Misuse("a routed client needs an existing controller".into()));
        }
        let directory =
            tempfile::Builder::new().prefix("lan-").tempdir_in("/run").map_err(Error::file("/run"))?;
        let journal = Journal::new();
        let maker = Maker { plan: &self, directory: directory.path(), journal: &journal };
        let switch = maker.switch()?;
        let nodes = |kind: &str, first: u8, count: u8| -> Result<Vec<Node>, Error> {
            (0..count).map(|i| maker.node(&switch, &format!("{kind}{}", i + 1), first + i)).collect()
        };
        let controllers = nodes("c", FIRST_CONTROLLER, self.controllers)?;
        if let Some(network) = self.back {
            maker.back_link(network, &switch, &controllers)?;
        }
        let clients = nodes("client", FIRST_CLIENT, self.clients)?;
        let routed = (1u8..)
            .zip(&self.routed)
            .map(|(number, &controller)| maker.pod(&switch, &controllers[usize::from(controller)], number))
            .collect::<Result<Vec<_>, _>>()?;
        let (v4, v6, back) = (self.v4, self.v6, self.back);
        let cuts = Mutex::default();
        let lan = Lan { controllers, clients, routed, switch, cuts, journal, v4, v6, back, directory };
        lan.wait_for_link_local()?;
        Ok(lan)
    }

    /// The addresses of a host on the switch, IPv4 first.
    fn addresses(&self, host: u8) -> Vec<(IpAddr, u8)> {
        let v4 = self.v4.map(|network| (network.host(host).into(), network.prefix_len));
        let v6 = self.v6.map(|network| (network.host(host).into(), network.prefix_len));
        v4.into_iter().chain(v6).collect()
    }
}

struct Maker<'a> {
    plan: &'a LanBuilder,
    directory: &'a Path,
    journal: &'a Journal,
}

impl Maker<'_> {
    fn switch(&self) -> Result<Node, Error> {
        let interface = Interface {
            mac: mac(0, GATEWAY),
            addresses: self.plan.addresses(GATEWAY),
            lifetime: None,
            gateways: Vec::new(),
        };
        let switch = self.namespace("switch", interface)?;
        set_sysctls(&switch, &[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
        // With br_netfilter, bridged packets would pass the inet hooks of the switch.
        for table in ["iptables", "ip6tables", "arptables"] {
            let _ = switch.set_sysctl(&format!("net.bridge.bridge-nf-call-{table}"), "0");
        }
        let (mac, addresses) = (switch.mac(), self.plan.addresses(GATEWAY));
        netlink::request(switch.netns(), switch.doing("make a bridge"), |handle| async move {
            let bridge = netlink::add_bridge(&handle, BRIDGE, mac).await?;
            for (ip, prefix_len) in addresses {
                netlink::add_address(&handle, bridge, ip, prefix_len, None).await?;
            }
            Ok(())
        })?;
        Ok(switch)
    }

    /// Creates a node and connects it to the switch.
    fn node(&self, switch: &Node, name: &str, host: u8) -> Result<Node, Error> {
        let plan = self.plan;
        let controller = host < FIRST_CLIENT;
        let interface = Interface {
            mac: mac(0, host),
            addresses: plan.addresses(host),
            lifetime: plan.lease.filter(|_| controller),
            gateways: plan.addresses(GATEWAY).into_iter().map(|(ip, _)| ip).collect(),
        };
        let node = self.namespace(name, interface)?;
        let on = |yes: bool| if yes { "1" } else { "0" };
        set_sysctls(
            &node,
            &[
                ("net.ipv4.ip_forward", on(controller)),
                ("net.ipv6.conf.all.forwarding", on(controller)),
                ("net.ipv4.conf.all.promote_secondaries", on(plan.promote_secondaries)),
                ("net.ipv4.conf.default.promote_secondaries", on(plan.promote_secondaries)),
            ],
        )?;
        let (mac, namespace) = (node.mac(), node.netns());
        netlink::request(switch.netns(), switch.doing(&format!("plug {name} in")), |handle| async move {
            let bridge = netlink::index(&handle, BRIDGE).await?;
            let (here, there) = (End { name, mac: None }, End { name: INTERFACE, mac: Some(mac) });
            let port = netlink::add_veth(&handle, here, there, namespace).await?;
            netlink::set_controller(&handle, port, bridge).await
        })?;
        node.configure()?;
        Ok(node)
    }

    /// Creates a second switch, for controllers only.
    fn back_link(
        &self,
        network: Network<Ipv4Addr>,
        switch: &Node,
        controllers: &[Node],
    ) -> Result<(), Error> {
        netlink::request(switch.netns(), switch.doing("make a second bridge"), |handle| async move {
            let bridge = netlink::add_bridge(&handle, BACK_BRIDGE, mac(2, GATEWAY)).await?;
            for (host, node) in (FIRST_CONTROLLER..).zip(controllers) {
                let port = format!("{}-back", node.name());
                let here = End { name: &port, mac: None };
                let there = End { name: BACK_INTERFACE, mac: Some(mac(2, host)) };
                let port = netlink::add_veth(&handle, here, there, node.netns()).await?;
                netlink::set_controller(&handle, port, bridge).await?;
            }
            Ok(())
        })?;
        for (host, node) in (FIRST_CONTROLLER..).zip(controllers) {
            netlink::request(node.netns(), node.doing("configure the second link"), |handle| async move {
                let index = netlink::index(&handle, BACK_INTERFACE).await?;
                netlink::set_up(&handle, index).await?;
                netlink::add_address(&handle, index, network.host(host).into(), network.prefix_len, None)
                    .await
            })?;
        }
        Ok(())
    }

    /// Creates a client behind a controller, on a point-to-point link whose near end has no IPv4 address.
    fn pod(&self, switch: &Node, controller: &Node, number: u8) -> Result<Node, Error> {
        let [a, b] = POD_V4;
        let v4 = Ipv4Addr::new(a, b, number, 2);
        let v6 = Ipv6Addr::new(POD_V6, number.into(), 0, 0, 0, 0, 0, 2);
        let (name, near) = (format!("pod{number}"), format!("cali{number}"));
        let interface = Interface {
            mac: mac(1, number),
            addresses: vec![(v4.into(), 32), (v6.into(), 128)],
            lifetime: None,
            gateways: vec![POD_GATEWAY.into(), POD_GATEWAY_V6.into()],
        };
        let pod = self.namespace(&name, interface)?;
        let (near, mac, namespace) = (near.as_str(), pod.mac(), pod.netns());
        netlink::request(
            controller.netns(),
            controller.doing(&format!("connect {name}")),
            |handle| async move {
                let (here, there) = (End { name: near, mac: None }, End { name: INTERFACE, mac: Some(mac) });
                let index = netlink::add_veth(&handle, here, there, namespace).await?;
                netlink::set_up(&handle, index).await?;
                netlink::add_address(&handle, index, POD_GATEWAY_V6.into(), 64, None).await?;
                netlink::add_route(&handle, (v4.into(), 32), None, Some(index)).await?;
                netlink::add_route(&handle, (v6.into(), 128), None, Some(index)).await
            },
        )?;
        controller.set_sysctl(&format!("net.ipv4.conf.{near}.proxy_arp"), "1")?;
        controller.set_sysctl(&format!("net.ipv4.neigh.{near}.proxy_delay"), "0")?;
        pod.configure()?;
        let via = controller.own_ips();
        netlink::request(switch.netns(), switch.doing(&format!("route to {name}")), |handle| async move {
            for gateway in via {
                let target = if gateway.is_ipv4() { (v4.into(), 32) } else { (v6.into(), 128) };
                netlink::add_route(&handle, target, Some(gateway), None).await?;
            }
            Ok(())
        })?;
        Ok(pod)
    }

    /// Creates a namespace with sysctls but without links.
    fn namespace(&self, name: &str, interface: Interface) -> Result<Node, Error> {
        let refused =
            |step| move |source: io::Error| Error::Namespace { step, node: name.to_owned(), source };
        let netns = Netns::create().map_err(refused("make a network namespace"))?;
        netns
            .run(netns::loopback_up_here)
            .and_then(|result| result)
            .map_err(refused("bring the loopback interface up"))?;
        let directory = self.directory.join(name);
        fs::create_dir(&directory).map_err(Error::file(&directory))?;
        let node = Node::new(Inner::new(name.to_owned(), netns, interface, directory, self.journal.clone()));
        set_sysctls(&node, COMMON_SYSCTLS)?;
        Ok(node)
    }
}

/// Sysctls of every node: addresses are usable at once, router advertisements are ignored, and the port range suffices
/// for a probe every 2 ms.
const COMMON_SYSCTLS: &[(&str, &str)] = &[
    ("net.ipv6.conf.all.disable_ipv6", "0"),
    ("net.ipv6.conf.default.disable_ipv6", "0"),
    ("net.ipv6.conf.default.addr_gen_mode", "0"),
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv6.conf.all.accept_ra", "0"),
    ("net.ipv6.conf.default.accept_ra", "0"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv4.ip_local_port_range", "10000 65535"),
];

impl Lan {
    /// Waits for the link-local addresses, which the kernel adds soon after the link is up; IPv6 VRRP needs them.
    fn wait_for_link_local(&self) -> Result<(), Error> {
        for node in self.controllers.iter().chain(&self.clients) {
            let own = IpAddr::V6(node.link_local());
            wait_until(format!("{} has a link-local address", node.name()), LINK_LOCAL_TIMEOUT, || {
                let usable = |address: &Address| address.ip == own && !address.tentative;
                node.addresses().is_ok_and(|addresses| addresses.iter().any(usable))
            })?;
        }
        Ok(())
    }
}

/// A locally administered address that contains the node's number.
fn mac(kind: u8, number: u8) -> Mac {
    Mac([0x02, 0, 0, 0x09, kind, number])
}

fn set_sysctls(node: &Node, settings: &[(&str, &str)]) -> Result<(), Error> {
    settings.iter().try_for_each(|(name, value)| node.set_sysctl(name, value))
}
