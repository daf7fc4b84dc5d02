//! Frames as a host on the link sends them.

use std::os::fd::AsRawFd as _;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{MsgFlags, bind, send};
use socket2::{Domain, Socket, Type};

/// Sends whole frames through an interface of the current namespace.
pub(crate) struct Link(Socket);

impl Link {
    pub(crate) fn open(interface: &str) -> Self {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).expect("a packet socket");
        let mut found = getifaddrs().expect("the interfaces").filter(|it| it.interface_name == interface);
        let address = found.find_map(|it| it.address?.as_link_addr().copied()).expect("the interface exists");
        bind(socket.as_raw_fd(), &address).expect("it is bound");
        Self(socket)
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        send(self.0.as_raw_fd(), frame, MsgFlags::empty()).expect("it is sent");
    }
}
