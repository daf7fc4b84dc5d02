//! The state of a cluster through reports of its API.

use std::net::IpAddr;

use lb_proxy::health::{Credentials, Names, Trust};

use super::*;

fn servers(hosts: &[u8]) -> BTreeSet<SocketAddr> {
    hosts.iter().map(|host| SocketAddr::from(([10, 0, 0, *host], 6443))).collect()
}

fn is_fit(server: SocketAddr) -> Result<SocketAddr, Unfit> {
    match (server.ip(), server.port()) {
        (ip, _) if ip == IpAddr::from([10, 0, 0, 100]) => Err(Unfit::VirtualIp),
        (_, 6444) => Err(Unfit::Proxy),
        _ => Ok(server),
    }
}

fn identity() -> ClusterIdentity {
    let authority = testbed::api::Authority::new("cluster").unwrap();
    let trust = Trust::new([authority.der()], Names::AnyOf(Vec::new()), Credentials::default()).unwrap();
    ClusterIdentity { trust, host: "api.example.com".to_owned() }
}

#[test]
fn known_servers_are_retained_until_the_api_lists_usable_ones() {
    let mut known = ClusterState::from_disk(Some(servers(&[11, 12])));
    known.update(Report::State(State::Failing("refused".into())), is_fit);
    assert_eq!((known.source, known.servers.len(), known.interruption.is_some()), (Source::Disk, 2, true));
    known.update(Report::Servers(servers(&[100]), identity()), is_fit);
    assert_eq!((known.source, known.servers.len(), known.interruption.is_some()), (Source::Disk, 2, false));
    assert!(known.list_fault.as_ref().unwrap().contains("only virtual IPs"));
    known.update(Report::Servers(servers(&[11, 100, 13]), identity()), is_fit);
    assert_eq!((known.source, &known.servers, &known.list_fault), (Source::Api, &servers(&[11, 13]), &None));
    known.update(Report::Servers(BTreeSet::new(), identity()), is_fit);
    assert_eq!((known.source, &known.servers), (Source::Api, &servers(&[11, 13])));
    assert!(known.list_fault.is_some());
}

#[test]
fn a_list_of_proxies_changes_nothing_and_is_a_fault() {
    let mut known = ClusterState::from_disk(Some(servers(&[11, 12])));
    let proxies: BTreeSet<_> = (11..15).map(|host| SocketAddr::from(([10, 0, 0, host], 6444))).collect();
    known.update(Report::Servers(proxies.clone(), identity()), is_fit);
    assert_eq!((known.source, &known.servers, known.refused.len()), (Source::Disk, &servers(&[11, 12]), 4));
    assert_eq!(
        known.list_fault.as_deref(),
        Some(
            "the API lists nothing that can be a backend: \
             10.0.0.11:6444 is where a proxy of this configuration listens, on every node; \
             10.0.0.12:6444 is where a proxy of this configuration listens, on every node; \
             10.0.0.13:6444 is where a proxy of this configuration listens, on every node; and 1 more"
        )
    );
    let mixed = proxies.into_iter().chain(servers(&[13])).collect();
    known.update(Report::Servers(mixed, identity()), is_fit);
    assert_eq!((known.source, &known.servers, &known.list_fault), (Source::Api, &servers(&[13]), &None));
    known.update(Report::Servers(servers(&[13]), identity()), is_fit);
    assert!(known.refused.is_empty());
}

#[test]
fn discovered_servers_are_capped_at_256() {
    let mut known = ClusterState::default();
    let many = (0..10_000u32).map(|n| SocketAddr::from(((0x0a01_0000 + n).to_be_bytes(), 6443)));
    known.update(Report::Servers(many.collect(), identity()), is_fit);
    assert_eq!(known.servers.len(), MAX_SERVERS);
    assert!(known.list_fault.unwrap().contains("10000 servers, of which 256"));
}
