//! What the keeper asks of the kernel, as a trait: the real one speaks netlink, the tests have a model.

use std::net::IpAddr;
use std::time::Instant;

use nix::errno::Errno;

use crate::plan::Step;
use crate::sessions::SessionsError;
use crate::wire::decode::{LinkUpdate, ObservedAddress, ObservedLabel, ObservedRoute};
use crate::wire::diag::SocketId;
use crate::wire::{PERMANENT_PROTOCOL, PROTOCOL, address_flag};

/// The kernel, seen from the keeper. Every call is done when it returns.
pub(crate) trait Kernel {
    /// The clock; it is read again after each write.
    fn now(&self) -> Instant;
    /// All links.
    fn links(&mut self) -> Result<Vec<LinkUpdate>, KernelError>;
    /// The addresses of one interface, 0 for all.
    fn addresses(&mut self, index: u32) -> Result<Vec<ObservedAddress>, KernelError>;
    /// The default routes of the main table, of both families.
    fn default_routes(&mut self) -> Result<Vec<ObservedRoute>, KernelError>;
    /// The routes that carry our mark.
    fn marked_routes(&mut self) -> Result<Vec<ObservedRoute>, KernelError>;
    /// The address labels.
    fn labels(&mut self) -> Result<Vec<ObservedLabel>, KernelError>;
    /// Carries out one step.
    fn apply(&mut self, step: &Step) -> Result<(), KernelError>;
    /// The TCP sessions whose local address is one of `ips`.
    fn sessions(&mut self, ips: &[IpAddr]) -> Result<Vec<SocketId>, SessionsError>;
    /// Ends sessions, with a RST to their peers as long as their address is there. Returns how many there still were.
    fn end_sessions(&mut self, sessions: &[SocketId]) -> Result<usize, SessionsError>;
    /// Whether the kernel keeps `IFA_PROTO`.
    fn marks_addresses(&self) -> bool;
}

/// What the kernel answered instead of doing what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// It refused, perhaps with a sentence.
    #[error("the kernel refused: {errno}{}", .message.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// The error number.
        errno: Errno,
        /// The kernel's own words, if it sent any.
        message: Option<String>,
    },
    /// The socket failed.
    #[error("netlink socket: {0}")]
    Socket(Errno),
    /// No complete answer came.
    #[error("no usable answer from the kernel")]
    NoAnswer,
}

impl KernelError {
    /// The error number, if the kernel refused.
    pub fn refused(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// Whether an observed address can be one that we put there: installed whole, and marked. A kernel without marks
/// shows what others hardly give: a lease together with our flags.
pub(crate) fn is_ours(address: &ObservedAddress, kernel_marks: bool) -> bool {
    if address.prefix_len != crate::types::full_prefix(address.ip) {
        return false;
    }
    match address.protocol {
        Some(protocol) => protocol == PROTOCOL,
        None if kernel_marks => false,
        None => address.valid.is_some() && looks_like_ours(address),
    }
}

/// Whether an observed address can be one without end that we gave to a link of ours. A kernel without marks shows
/// flags that others hardly give.
pub(crate) fn is_our_permanent(address: &ObservedAddress, kernel_marks: bool) -> bool {
    if address.prefix_len != crate::types::full_prefix(address.ip) || address.valid.is_some() {
        return false;
    }
    match address.protocol {
        Some(protocol) => protocol == PERMANENT_PROTOCOL,
        None => !kernel_marks && looks_like_ours(address),
    }
}

fn looks_like_ours(address: &ObservedAddress) -> bool {
    let v6_only = address_flag::NODAD | address_flag::DEPRECATED;
    let ours = address_flag::NOPREFIXROUTE | if address.ip.is_ipv6() { v6_only } else { 0 };
    address.flags & ours == ours
}
