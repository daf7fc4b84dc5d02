//! The netlink requests for building and watching a LAN.

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures::TryStreamExt;
use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, CacheInfo},
    link::{BridgeStpState, InfoData, InfoKind, InfoVeth},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteMessage, RouteScope},
};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::{Error, netns::Netns};

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The prefix length.
    pub prefix_len: u8,
    /// The index of its interface.
    pub interface: u32,
    /// The remaining valid lifetime; `None` for ever. Whole seconds, as the kernel reports them.
    pub valid: Option<Duration>,
    /// The remaining preferred lifetime; `None` for ever.
    pub preferred: Option<Duration>,
    /// The address is a secondary (IPv4) or temporary (IPv6) one.
    pub secondary: bool,
    /// Duplicate address detection is still running or has failed.
    pub tentative: bool,
}

/// An entry of a node's neighbour (ARP or NDP) cache.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Neighbour {
    /// The hardware address, if it is known.
    pub mac: Option<Mac>,
    /// The kernel's name of the entry's state, such as `Reachable`.
    pub state: String,
}

/// One end of a veth pair.
#[derive(Debug, Clone)]
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Option<Mac>,
}

/// Runs netlink requests in a namespace.
pub(crate) fn request<T, F, W>(netns: &Netns, what: impl Into<String>, work: W) -> Result<T, Error>
where
    T: Send,
    F: Future<Output = Result<T, rtnetlink::Error>>,
    W: FnOnce(Handle) -> F + Send,
{
    let what = what.into();
    let outcome = netns.block_on(|| async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let result = work(handle).await;
        connection.abort();
        Ok::<_, io::Error>(result)
    });
    match outcome {
        Ok(Ok(result)) => result.map_err(|source| Error::Netlink { what, source }),
        Ok(Err(source)) | Err(source) => Err(Error::System { what, source }),
    }
}

/// Returns whether the kernel refused with this error number.
pub(crate) fn is_errno(error: &rtnetlink::Error, errno: nix::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -(errno as i32))
}

pub(crate) async fn index(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await?.ok_or(rtnetlink::Error::RequestFailed)?;
    Ok(link.header.index)
}

/// Creates a bridge that forwards at once and floods multicast, as an unmanaged switch does.
pub(crate) async fn add_bridge(handle: &Handle, name: &str, mac: Mac) -> Result<u32, rtnetlink::Error> {
    let bridge = LinkBridge::new(name)
        .address(mac.0.to_vec())
        .stp_state(BridgeStpState::Disabled)
        .forward_delay(0)
        .mcast_snooping(false)
        .up()
        .build();
    handle.link().add(bridge).execute().await?;
    index(handle, name).await
}

/// Creates a veth pair with one end here and the other in `namespace`.
pub(crate) async fn add_veth(
    handle: &Handle,
    here: End<'_>,
    there: End<'_>,
    namespace: &Netns,
) -> Result<u32, rtnetlink::Error> {
    let mut peer =
        LinkMessageBuilder::<LinkUnspec>::new().name(there.name.to_owned()).setns_by_fd(namespace.raw_fd());
    if let Some(mac) = there.mac {
        peer = peer.address(mac.0.to_vec());
    }
    let mut veth = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(here.name.to_owned())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
    if let Some(mac) = here.mac {
        veth = veth.address(mac.0.to_vec());
    }
    handle.link().add(veth.build()).execute().await?;
    index(handle, here.name).await
}

pub(crate) async fn set_controller(handle: &Handle, index: u32, bridge: u32) -> Result<(), rtnetlink::Error> {
    handle.link().set(LinkUnspec::new_with_index(index).controller(bridge).up().build()).execute().await
}

pub(crate) async fn set_up(handle: &Handle, index: u32) -> Result<(), rtnetlink::Error> {
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await
}

pub(crate) async fn set_down(handle: &Handle, index: u32) -> Result<(), rtnetlink::Error> {
    handle.link().set(LinkUnspec::new_with_index(index).down().build()).execute().await
}

/// Adds an address without duplicate address detection, for `lifetime` or for ever.
pub(crate) async fn add_address(
    handle: &Handle,
    index: u32,
    ip: IpAddr,
    prefix_len: u8,
    lifetime: Option<Duration>,
) -> Result<(), rtnetlink::Error> {
    let mut request = handle.address().add(index, ip, prefix_len).replace();
    let message = request.message_mut();
    if ip.is_ipv6() {
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    if let Some(lifetime) = lifetime {
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(FOREVER);
        let mut cache = CacheInfo::default();
        cache.ifa_valid = seconds;
        cache.ifa_preferred = seconds;
        message.attributes.push(AddressAttribute::CacheInfo(cache));
    }
    request.execute().await
}

pub(crate) async fn addresses(handle: &Handle) -> Result<Vec<Address>, rtnetlink::Error> {
    let messages: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    Ok(messages.iter().filter_map(address).collect())
}

/// Deletes this address from all interfaces; `Ok` if it was absent.
pub(crate) async fn delete_address(handle: &Handle, ip: IpAddr) -> Result<(), rtnetlink::Error> {
    let messages: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    for message in messages {
        if address(&message).is_some_and(|address| address.ip == ip) {
            handle.address().del(message).execute().await?;
        }
    }
    Ok(())
}

/// Adds a route to a destination, through a gateway or the interface's link.
pub(crate) async fn add_route(
    handle: &Handle,
    (destination, prefix_len): (IpAddr, u8),
    gateway: Option<IpAddr>,
    interface: Option<u32>,
) -> Result<(), rtnetlink::Error> {
    handle.route().add(route(destination, prefix_len, gateway, interface)).replace().execute().await
}

/// The cache entry for `ip` on any interface.
pub(crate) async fn neighbour(handle: &Handle, ip: IpAddr) -> Result<Option<Neighbour>, rtnetlink::Error> {
    let entries = neighbour_messages(handle).await?;
    Ok(entries.iter().find(|entry| neighbour_ip(entry) == Some(ip)).map(|entry| Neighbour {
        mac: entry.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(Mac),
            _ => None,
        }),
        state: format!("{:?}", entry.header.state),
    }))
}

/// Deletes all cache entries except permanent ones.
pub(crate) async fn flush_neighbours(handle: &Handle) -> Result<(), rtnetlink::Error> {
    for entry in neighbour_messages(handle).await? {
        if !matches!(entry.header.state, NeighbourState::Permanent | NeighbourState::Noarp) {
            delete_neighbour_entry(handle, entry).await?;
        }
    }
    Ok(())
}

/// Deletes the cache entry for `ip` on one interface; `Ok` if there was none.
pub(crate) async fn delete_neighbour(
    handle: &Handle,
    interface: u32,
    ip: IpAddr,
) -> Result<(), rtnetlink::Error> {
    let mut entry = NeighbourMessage::default();
    entry.header.ifindex = interface;
    entry.header.family = match ip {
        IpAddr::V4(_) => netlink_packet_route::AddressFamily::Inet,
        IpAddr::V6(_) => netlink_packet_route::AddressFamily::Inet6,
    };
    entry.attributes.push(NeighbourAttribute::Destination(match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }));
    delete_neighbour_entry(handle, entry).await
}

const FOREVER: u32 = u32::MAX;

pub(crate) fn address(message: &AddressMessage) -> Option<Address> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    let lifetimes = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::CacheInfo(cache) => Some((cache.ifa_valid, cache.ifa_preferred)),
        _ => None,
    });
    let (valid, preferred) = lifetimes.unwrap_or((FOREVER, FOREVER));
    let finite = |seconds: u32| (seconds != FOREVER).then(|| Duration::from_secs(seconds.into()));
    Some(Address {
        ip: find(true).or_else(|| find(false))?,
        prefix_len: message.header.prefix_len,
        interface: message.header.index,
        valid: finite(valid),
        preferred: finite(preferred),
        secondary: message.header.flags.contains(AddressHeaderFlags::Secondary),
        tentative: message
            .header
            .flags
            .intersects(AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed),
    })
}

fn route(
    destination: IpAddr,
    prefix_len: u8,
    gateway: Option<IpAddr>,
    interface: Option<u32>,
) -> RouteMessage {
    let mut message = match destination {
        IpAddr::V4(ip) => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, prefix_len);
            if let Some(IpAddr::V4(gateway)) = gateway {
                builder = builder.gateway(gateway);
            }
            builder.build()
        }
        IpAddr::V6(ip) => {
            let mut builder = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, prefix_len);
            if let Some(IpAddr::V6(gateway)) = gateway {
                builder = builder.gateway(gateway);
            }
            builder.build()
        }
    };
    if gateway.is_none() {
        message.header.scope = RouteScope::Link;
    }
    if let Some(interface) = interface {
        message.attributes.push(netlink_packet_route::route::RouteAttribute::Oif(interface));
    }
    message
}

async fn neighbour_messages(handle: &Handle) -> Result<Vec<NeighbourMessage>, rtnetlink::Error> {
    handle.neighbours().get().execute().try_collect().await
}

fn neighbour_ip(entry: &NeighbourMessage) -> Option<IpAddr> {
    entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}

async fn delete_neighbour_entry(handle: &Handle, entry: NeighbourMessage) -> Result<(), rtnetlink::Error> {
    match handle.neighbours().del(entry).execute().await {
        Err(error) if is_errno(&error, nix::Error::ENOENT) => Ok(()),
        result => result,
    }
}
