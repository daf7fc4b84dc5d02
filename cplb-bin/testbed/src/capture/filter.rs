//! The kernel's packet filter for captures.

use socket2::SockFilter;

use super::Travel;

/// Classic BPF, as in `linux/filter.h`: instructions, and the offsets at which the kernel presents a packet's metadata.
mod bpf {
    pub(super) const LOAD: u16 = 0x20;
    pub(super) const JUMP_IF_EQUAL: u16 = 0x15;
    pub(super) const RETURN: u16 = 0x06;
    pub(super) const PACKET_TYPE: u32 = 0xffff_f004;
    pub(super) const INTERFACE: u32 = 0xffff_f008;
    pub(super) const DROP: u32 = 0;
    pub(super) const ACCEPT: u32 = u32::MAX;
}

/// A filter that passes only frames of these interfaces, so that others do not fill the socket's buffer. The reader
/// discards frames that were queued before the filter was in place.
pub(super) fn filter(interfaces: impl Iterator<Item = usize>, only: Option<Travel>) -> Vec<SockFilter> {
    let end = |verdict| SockFilter::new(bpf::RETURN, 0, 0, verdict);
    let mut program = Vec::new();
    if let Some(only) = only {
        // In one of the two cases the jump also skips the next instruction, the one that drops.
        let (if_out, if_in) = if only == Travel::Out { (1, 0) } else { (0, 1) };
        program.push(SockFilter::new(bpf::LOAD, 0, 0, bpf::PACKET_TYPE));
        program.push(SockFilter::new(bpf::JUMP_IF_EQUAL, if_out, if_in, super::PACKET_OUTGOING.into()));
        program.push(end(bpf::DROP));
    }
    program.push(SockFilter::new(bpf::LOAD, 0, 0, bpf::INTERFACE));
    for interface in interfaces {
        // Interface indices are small positive integers.
        let interface = u32::try_from(interface).unwrap_or_default();
        program.push(SockFilter::new(bpf::JUMP_IF_EQUAL, 0, 1, interface));
        program.push(end(bpf::ACCEPT));
    }
    program.push(end(bpf::DROP));
    program
}
