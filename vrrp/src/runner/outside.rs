//! The parts that carry out the outputs of a router.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Instant;

use super::limiter::Limiter;
use super::link::Link;
use super::status::PastTransition;
use super::{InstanceId, RunnerEvent, SocketOperation, VipKeeper, link_layer, socket};
use crate::announce::{gratuitous_arp, unsolicited_na};
use crate::hmac;
use crate::packet::{Advertisement, PseudoHeader};
use crate::router::{Claim, Discard, Release, Warning, Watch};
use crate::types::{Family, MacAddr};

/// The interfaces, the keeper and the owner's event callback.
pub(super) struct Outside {
    pub(super) links: BTreeMap<u32, Link>,
    keeper: Box<dyn VipKeeper>,
    events: Box<dyn Fn(RunnerEvent) + Send>,
    limiter: Limiter<Kind>,
    message: Vec<u8>,
}

/// The kinds of events that are reported at most once a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Warning(InstanceId, &'static str),
    Discarded(InstanceId, Discard),
    Socket(u32, SocketOperation),
}

impl Outside {
    pub(super) fn new(keeper: Box<dyn VipKeeper>, events: Box<dyn Fn(RunnerEvent) + Send>) -> Self {
        Self { links: BTreeMap::new(), keeper, events, limiter: Limiter::new(), message: Vec::new() }
    }

    /// Sends an advertisement from the first of the addresses to the second, once with each trailer; the error has
    /// been reported.
    pub(super) fn advertise(
        &mut self,
        link: u32,
        advertisement: &Advertisement,
        trailers: &[[u8; hmac::TRAILER_LEN]],
        addresses: (IpAddr, IpAddr),
        now: Instant,
    ) -> Result<(), ()> {
        let mut message = std::mem::take(&mut self.message);
        message.clear();
        let sent = self.try_advertise(link, advertisement, trailers, addresses, &mut message);
        self.message = message;
        sent.map_err(|error| self.socket_error(link, SocketOperation::Advertise, error, now))
    }

    fn try_advertise(
        &self,
        link: u32,
        advertisement: &Advertisement,
        trailers: &[[u8; hmac::TRAILER_LEN]],
        (source, destination): (IpAddr, IpAddr),
        message: &mut Vec<u8>,
    ) -> io::Result<()> {
        let link = self.links.get(&link).ok_or(io::ErrorKind::NotConnected)?;
        let fd = link.sender(Family::of(source)).ok_or(io::ErrorKind::NotConnected)?;
        let pseudo = PseudoHeader::new(source, destination).ok_or(io::ErrorKind::InvalidInput)?;
        advertisement.encode(&pseudo, message);
        if trailers.is_empty() {
            return socket::send(fd, link.index, source, destination, message);
        }
        let len = message.len();
        for trailer in trailers {
            hmac::append(message, len, trailer, &pseudo);
            socket::send(fd, link.index, source, destination, message)?;
        }
        Ok(())
    }

    /// Announces one virtual address; the error has been reported.
    pub(super) fn announce(
        &mut self,
        link: u32,
        mac: MacAddr,
        address: IpAddr,
        now: Instant,
    ) -> Result<(), ()> {
        let frame = match address {
            IpAddr::V4(address) => gratuitous_arp(mac, address),
            IpAddr::V6(address) => unsolicited_na(mac, address),
        };
        let sent = match self.links.get(&link).and_then(Link::announcer) {
            Some(fd) => link_layer::send(fd.as_fd(), &frame),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        sent.map_err(|error| self.socket_error(link, SocketOperation::Announce, error, now))
    }

    /// Starts or stops watching for announcements on behalf of a router.
    pub(super) fn watch(&mut self, link: u32, id: InstanceId, watch: Watch, now: Instant) {
        let Some(target) = self.links.get_mut(&link) else { return };
        if let Err(error) = target.set_watching(id, watch) {
            self.socket_error(link, SocketOperation::Watch, error, now);
        }
    }

    pub(super) fn claim(&self, id: InstanceId, claim: Claim) {
        self.keeper.claim(id, claim);
    }

    pub(super) fn extend(&self, id: InstanceId, valid_until: Instant) {
        self.keeper.extend(id, valid_until);
    }

    pub(super) fn release(&self, id: InstanceId, release: Release) {
        self.keeper.release(id, release);
    }

    pub(super) fn report(&self, event: RunnerEvent) {
        (self.events)(event);
    }

    pub(super) fn transition(&self, id: InstanceId, past: PastTransition) {
        self.report(RunnerEvent::Transition { id, past });
    }

    pub(super) fn warning(&mut self, id: InstanceId, warning: Warning, now: Instant) {
        if let Some(suppressed) = self.limiter.pass(Kind::Warning(id, kind_of(&warning)), now) {
            self.report(RunnerEvent::Warning { id, warning, suppressed });
        }
    }

    pub(super) fn discarded(&mut self, id: InstanceId, reason: Discard, source: IpAddr, now: Instant) {
        tracing::trace!(%id, %reason, %source, "advertisement discarded");
        if let Some(suppressed) = self.limiter.pass(Kind::Discarded(id, reason), now) {
            self.report(RunnerEvent::Discarded { id, reason, source, suppressed });
        }
    }

    pub(super) fn socket_error(
        &mut self,
        link: u32,
        operation: SocketOperation,
        error: io::Error,
        now: Instant,
    ) {
        let interface = match self.links.get_mut(&link) {
            Some(link) => {
                link.status.errors += 1;
                link.name.clone()
            }
            None => format!("interface {link}"),
        };
        if let Some(suppressed) = self.limiter.pass(Kind::Socket(link, operation), now) {
            self.report(RunnerEvent::SocketError { interface, operation, error, suppressed });
        }
    }

    /// Drops the rate limits of an interface that is gone; its index may never be used again.
    pub(super) fn forget_link(&mut self, link: u32) {
        self.limiter.retain(|kind| !matches!(kind, Kind::Socket(of, _) if *of == link));
    }

    /// Drops the rate limits of a router that is gone.
    pub(super) fn forget(&mut self, id: InstanceId) {
        self.limiter.retain(|kind| match kind {
            Kind::Warning(of, _) | Kind::Discarded(of, _) => *of != id,
            Kind::Socket(..) => true,
        });
    }
}

const fn kind_of(warning: &Warning) -> &'static str {
    match warning {
        Warning::Conflict { .. } => "conflict",
        Warning::OtherGroup { .. } => "other_group",
        Warning::Stranger { .. } => "stranger",
        Warning::AnnouncedElsewhere { .. } => "announced_elsewhere",
        Warning::AddressListMismatch { .. } => "address_list_mismatch",
        Warning::IntervalMismatch { .. } => "interval_mismatch",
        Warning::Contended { .. } => "contended",
        Warning::Unheard { .. } => "unheard",
        Warning::FamilySplit { .. } => "family_split",
        Warning::Overslept { .. } => "overslept",
        Warning::ClockDiffers { .. } => "clock_differs",
        Warning::ClockStepped { .. } => "clock_stepped",
    }
}
