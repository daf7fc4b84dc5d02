//! Resetting sessions of clients that connected to an address that this node is about to lose.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::support::{Balancer, Echo, block_on, connect, end_of, ping, wait_until};

#[test]
fn only_sessions_through_the_address_are_reset_on_both_sides() {
    let echo = Echo::start(1);
    let balancer =
        Balancer::start(&[echo.addr], |_, service| service.listen = vec!["[::]:0".parse().unwrap()]);
    let port = balancer.addr.port();
    let vip = Ipv4Addr::new(127, 0, 0, 77);
    let mut through_vip: Vec<_> = (0..30).map(|_| connect((vip, port).into()).unwrap().0).collect();
    through_vip.iter_mut().for_each(|stream| ping(stream).unwrap());
    let mut others: Vec<_> =
        (0..30).map(|_| connect((Ipv4Addr::LOCALHOST, port).into()).unwrap().0).collect();
    let v6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
    others.push(connect(v6).unwrap().0);

    let reset = block_on(balancer.lb.reset_sessions(&[IpAddr::V4(vip), "192.0.2.1".parse().unwrap()]));
    assert_eq!((reset, balancer.sessions()), (30, 31), "the sessions have ended when this returns");
    for stream in &mut through_vip {
        assert_eq!(end_of(stream), Some(ErrorKind::ConnectionReset));
    }
    wait_until("the backend's side is reset", || {
        let errors = echo.errors.lock().unwrap();
        errors.iter().filter(|kind| **kind == ErrorKind::ConnectionReset).count() == 30
    });
    others.iter_mut().for_each(|stream| ping(stream).unwrap());
    assert_eq!(block_on(balancer.lb.reset_sessions(&[v6.ip()])), 1);
    assert_eq!(block_on(balancer.lb.reset_sessions(&[])), 0);
    assert_eq!(balancer.sessions(), 30);
}

#[test]
fn open_connections_are_listed_with_both_ends() {
    let echo = Echo::start(1);
    let balancer =
        Balancer::start(&[echo.addr], |_, service| service.listen = vec!["[::]:0".parse().unwrap()]);
    let vip = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 77), balancer.addr.port()));
    assert_eq!(block_on(balancer.lb.connections()), []);
    // More than are listed at once.
    let mut streams: Vec<_> = (0..1200).map(|_| connect(vip).unwrap().0).collect();
    streams.iter_mut().for_each(|stream| ping(stream).unwrap());
    let listed = block_on(balancer.lb.connections());
    let clients: BTreeSet<SocketAddr> = listed.iter().map(|it| it.client).collect();
    assert_eq!(clients, streams.iter().map(|stream| stream.local_addr().unwrap()).collect());
    for connection in &listed {
        assert_eq!((connection.local, connection.backend), (vip, Some(echo.addr)));
    }
    streams.truncate(1);
    wait_until("the others have ended", || balancer.sessions() == 1);
    assert_eq!(block_on(balancer.lb.connections()).len(), 1);
}
