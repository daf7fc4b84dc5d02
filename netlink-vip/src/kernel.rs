//! The requests of the keeper to the kernel, as a trait: the real one speaks netlink, the tests have a fake.

use std::net::IpAddr;
use std::time::Instant;

use crate::plan::Step;
use crate::sessions::SessionsError;
use crate::socket::KernelError;
use crate::wire::decode::{LinkUpdate, ObservedAddress, ObservedLabel, ObservedRoute};
use crate::wire::diag::SocketId;

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
    /// Returns whether the kernel keeps `IFA_PROTO`.
    fn marks_addresses(&self) -> bool;
}
