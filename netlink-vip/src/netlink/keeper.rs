//! The kernel as the keeper sees it.

use std::net::IpAddr;
use std::time::Instant;

use nix::errno::Errno;

use super::{NetlinkKernel, tolerate};
use crate::kernel::Kernel;
use crate::plan::Step;
use crate::sessions::SessionsError;
use crate::socket::KernelError;
use crate::types::full_prefix;
use crate::wire::PROTOCOL;
use crate::wire::decode::{LinkUpdate, NetEvent, ObservedAddress, ObservedLabel, ObservedRoute};
use crate::wire::diag::SocketId;
use crate::wire::encode::{self, Lifetime};

impl NetlinkKernel {
    /// Returns whether the process may change addresses, found by asking for a change that cannot be made.
    pub(crate) fn check_privilege(&mut self) -> Result<(), KernelError> {
        let nowhere = encode::delete_address(u32::MAX >> 1, IpAddr::from([192, 0, 2, 1]), 32);
        match self.write(nowhere) {
            Err(error) if error.refused() == Some(Errno::EPERM) => Err(error),
            _ => Ok(()),
        }
    }
}

impl Kernel for NetlinkKernel {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn links(&mut self) -> Result<Vec<LinkUpdate>, KernelError> {
        self.links()
    }

    fn addresses(&mut self, index: u32) -> Result<Vec<ObservedAddress>, KernelError> {
        self.addresses(index)
    }

    fn default_routes(&mut self) -> Result<Vec<ObservedRoute>, KernelError> {
        self.default_routes()
    }

    fn marked_routes(&mut self) -> Result<Vec<ObservedRoute>, KernelError> {
        self.routes(Some(PROTOCOL), |route| route.protocol == PROTOCOL)
    }

    fn labels(&mut self) -> Result<Vec<ObservedLabel>, KernelError> {
        self.dump(encode::dump_labels, |event| match event {
            NetEvent::Label(label) => Some(label),
            _ => None,
        })
    }

    fn apply(&mut self, step: &Step) -> Result<(), KernelError> {
        match *step {
            Step::PutAddress { index, ip, lease, scope } => {
                self.write(encode::put_address(index, ip, Lifetime::Lease(lease), scope))
            }
            Step::MoveAddress { index, ip, .. } => {
                self.apply(&Step::DeleteAddress { index, ip, prefix_len: full_prefix(ip) })?;
                self.apply(&step.again())
            }
            Step::DeleteAddress { index, ip, prefix_len } => self.delete_address(index, ip, prefix_len),
            Step::PutRoute { index, prefix } => {
                tolerate(self.write(encode::put_route(index, prefix)), &[Errno::EEXIST])
            }
            Step::DeleteRoute { index, prefix } => {
                tolerate(self.write(encode::delete_route(index, prefix)), &[Errno::ESRCH, Errno::ENODEV])
            }
            Step::PutLabel { ip, label } => {
                tolerate(self.write(encode::put_label(ip, label)), &[Errno::EEXIST])
            }
            Step::DeleteLabel { ip, label } => {
                tolerate(self.write(encode::delete_label(ip, label)), &[Errno::ESRCH])
            }
        }
    }

    fn sessions(&mut self, ips: &[IpAddr]) -> Result<Vec<SocketId>, SessionsError> {
        self.diag()?.list(ips)
    }

    fn end_sessions(&mut self, sessions: &[SocketId]) -> Result<usize, SessionsError> {
        self.diag()?.end(sessions)
    }

    fn marks_addresses(&self) -> bool {
        self.marks_addresses()
    }
}
