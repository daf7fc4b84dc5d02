//! Connections of a node that is no longer a real server.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use netlink_vip::sessions::SessionsError;
use testbed::guest::{load_module, unload_module};
use testbed::{Lan, Node};

use crate::fixture::{SOON, Server, config, ip, lan, vips};

/// A client that goes straight to one server, as a director would send it, and the server's end.
struct Session {
    client: TcpStream,
    server: TcpStream,
}

impl Session {
    fn through(lan: &Lan, node: &Node, vip: IpAddr, listener: &TcpListener) -> Self {
        ip(lan.client(0), &format!("neigh replace {vip} lladdr {} dev eth0 nud permanent", node.mac()));
        let connect = || TcpStream::connect_timeout(&(vip, 6443).into(), SOON);
        let client = lan.client(0).run(connect).expect("a connection");
        client.set_read_timeout(Some(SOON)).expect("a timeout");
        let (server, _) = listener.accept().expect("the connection");
        let session = Self { client, server };
        session.assert_alive();
        session
    }

    fn assert_alive(&self) {
        (&self.client).write_all(b"?").expect("an open connection");
        let mut byte = [0];
        (&self.server).read_exact(&mut byte).expect("a byte");
        (&self.server).write_all(b"!").expect("an open connection");
        (&self.client).read_exact(&mut byte).expect("an answer");
        assert_eq!(&byte, b"!");
    }

    fn assert_reset(&self, since: Instant) {
        let error = (&self.client).read(&mut [0]).expect_err("no end and no data");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    }
}

pub(crate) fn reset() {
    let lan = lan(1);
    let node = lan.controller(0);
    let [v4, v6] = vips(&lan)[..] else { unreachable!() };
    let listener = node.run(|| TcpListener::bind("[::]:6443")).expect("a listener");
    let session = |vip| Session::through(&lan, node, vip, &listener);
    let mut server = Server::with(node, config(&lan, node));
    let own = lan.client(0).run(|| TcpStream::connect((node.v4(), 6443))).expect("a connection");
    let own = Session { client: own, server: listener.accept().expect("the connection").0 };

    // Only sessions of the removed VIPs.
    let sessions = [v4, v6].map(session);
    let mut fewer = config(&lan, node);
    fewer.vips = vec![v6];
    let start = Instant::now();
    let report = server.change(fewer).expect("a real server");
    assert_eq!(report.unreset, None);
    sessions[0].assert_reset(start);
    sessions[1].assert_alive();
    // To another link.
    let mut moved = config(&lan, node);
    moved.dummy = "dummyvip1".into();
    server.change(moved).expect("a real server");
    sessions[1].assert_alive();
    let sessions = [session(v4), session(v6)];
    let start = Instant::now();
    let recovery = server.remove().expect("everything can be taken back");
    assert_eq!(recovery.unreset, None);
    sessions.iter().for_each(|session| session.assert_reset(start));
    own.assert_alive();
}

/// The node keeps the VIPs as a real server.
pub(crate) fn kept() {
    let lan = lan(1);
    let node = lan.controller(0);
    let [v4, v6] = vips(&lan)[..] else { unreachable!() };
    let listener = node.run(|| TcpListener::bind("[::]:6443")).expect("a listener");
    let mut server = Server::with(node, config(&lan, node));
    ip(node, &format!("addr add {v4}/32 dev eth0 valid_lft 30 preferred_lft 30"));
    let sessions = [v4, v6].map(|vip| Session::through(&lan, node, vip, &listener));
    let start = Instant::now();
    server.remove().expect("everything can be taken back");
    sessions[0].assert_alive();
    sessions[1].assert_reset(start);
}

/// Sessions that cannot be reset do not delay the release of the VIPs.
pub(crate) fn unsupported() {
    let lan = lan(1);
    let node = lan.controller(0);
    let listener = node.run(|| TcpListener::bind("[::]:6443")).expect("a listener");
    let mut server = Server::with(node, config(&lan, node));
    let _sessions: Vec<_> =
        vips(&lan).into_iter().map(|vip| Session::through(&lan, node, vip, &listener)).collect();
    unload_module("tcp_diag").expect("nothing uses it");
    let mut fewer = config(&lan, node);
    fewer.vips.truncate(1);
    let report = server.change(fewer).expect("a real server");
    assert_eq!(report.unreset, Some(SessionsError::Unsupported));
    assert_eq!(server.reconcile().unreset, None, "it is reported once");
    let recovery = server.remove().expect("everything can be taken back");
    assert_eq!(recovery.unreset, Some(SessionsError::Unsupported));
    assert!(!ip(node, "link show").contains("dummyvip0"));
    load_module("tcp_diag").expect("it is there");
}
