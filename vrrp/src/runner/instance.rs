//! One router and what it needs to act.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;

use super::followed::Followed;
use super::link::User;
use super::opener::{FamilyNeeds, Needs};
use super::outside::Outside;
use super::socket::Received;
use super::status::{ActivePeer, History, InstanceStatus, PastTransition, Traffic};
use super::{InstanceConfig, InstanceId, Interface, RunnerEvent, SocketOperation, Transport};
use crate::hmac::{self, AntiReplay, Authenticator, Now, Opened, VerifyError};
use crate::packet::{Advertisement, PseudoHeader};
use crate::router::{
    Command, Delivery, Discard, InterfaceEvent, Output, RxMeta, StateName, TimerName, Transition, VipEvent,
    VirtualRouter, Warning,
};
use crate::types::Family;

/// The most senders with another password or key that are remembered.
const MAX_REFUSED: usize = 16;

pub(super) struct Instance {
    pub(super) config: InstanceConfig,
    pub(super) router: VirtualRouter,
    /// Present if advertisements are signed or verified.
    authenticator: Option<Authenticator>,
    /// As last reported.
    pub(super) interface: Option<Interface>,
    /// The index of the link it takes part in.
    pub(super) link: Option<u32>,
    /// The router has been informed that its interface is up.
    pub(super) up: bool,
    /// It is to be dropped once it has stopped.
    pub(super) leaving: bool,
    /// The deadline under which the engine has it filed.
    pub(super) filed: Option<Instant>,
    traffic: Traffic,
    history: History,
    last_sent: Option<Instant>,
    /// The last advertisement of another router that counted.
    heard: Option<ActivePeer>,
    followed: Followed,
    /// Senders that have another password or key, and the time since which none of their advertisements was accepted.
    refused_since: BTreeMap<IpAddr, Instant>,
    /// The advertisement that is being sent was due then.
    due: Option<Instant>,
    /// The end of the claim as last reported to the keeper.
    claimed_until: Option<Instant>,
}

impl Instance {
    pub(super) fn new(config: InstanceConfig, now: Instant) -> Self {
        let config = normalised(config);
        Self {
            router: VirtualRouter::new(config.router.clone(), now),
            authenticator: config.router.hmac.clone().map(|hmac| Authenticator::new(hmac, both_clocks(now))),
            config,
            interface: None,
            link: None,
            up: false,
            leaving: false,
            filed: None,
            traffic: Traffic::default(),
            history: History::default(),
            last_sent: None,
            heard: None,
            followed: Followed::default(),
            refused_since: BTreeMap::new(),
            due: None,
            claimed_until: None,
        }
    }

    pub(super) const fn id(&self) -> InstanceId {
        self.config.id
    }

    /// The sockets that it needs of its interface.
    pub(super) fn needs(&self) -> Needs {
        let wanted = match self.config.transport {
            Transport::Multicast => FamilyNeeds::Multicast,
            Transport::Unicast { .. } => FamilyNeeds::Unicast,
        };
        let of = |absent: bool| if absent { FamilyNeeds::Nothing } else { wanted };
        let router = &self.config.router;
        Needs { v4: of(router.addresses_v4.is_empty()), v6: of(router.addresses_v6.is_empty()) }
    }

    /// The router as its link registers it.
    pub(super) fn user(&self) -> User {
        User { needs: self.needs(), addresses: self.addresses().collect() }
    }

    /// The families and identifiers of the messages that it receives.
    pub(super) fn routes(&self) -> impl Iterator<Item = (Family, u8)> + use<> {
        let needs = self.needs();
        let vrid = self.config.router.vrid.get();
        [Family::V4, Family::V6]
            .into_iter()
            .filter(move |f| needs.of(*f) != FamilyNeeds::Nothing)
            .map(move |f| (f, vrid))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.router.poll_timeout().map(|(at, _)| at)
    }

    pub(super) fn reconfigure(&mut self, config: InstanceConfig, now: Instant) {
        self.config = normalised(config);
        self.leaving = false;
        self.authenticator = match (self.authenticator.take(), self.config.router.hmac.clone()) {
            (Some(mut authenticator), Some(hmac)) => {
                authenticator.reconfigure(hmac);
                Some(authenticator)
            }
            (None, Some(hmac)) => Some(Authenticator::new(hmac, both_clocks(now))),
            (_, None) => None,
        };
        self.router.handle_command(now, Command::Reconfigure(Box::new(self.config.router.clone())));
    }

    pub(super) fn set_peers(&mut self, peers: Vec<IpAddr>, now: Instant) {
        if let Transport::Unicast { peers: current } = &mut self.config.transport {
            current.clone_from(&peers);
            self.config.router.peers.clone_from(&peers);
            self.router.handle_command(now, Command::Peers(peers));
        }
    }

    pub(super) fn command(&mut self, command: Command, now: Instant) {
        self.router.handle_command(now, command);
    }

    pub(super) fn vip(&mut self, event: VipEvent, now: Instant) {
        self.router.handle_vip(now, event);
    }

    /// Informs the router that its interface is usable, or has other addresses.
    pub(super) fn interface_up(&mut self, now: Instant) {
        let Some(interface) = &self.interface else { return };
        self.up = true;
        self.router.handle_link_prefixes(interface.prefixes.clone());
        self.router.handle_interface(now, InterfaceEvent::Up { v4: interface.v4, v6: interface.v6 });
    }

    pub(super) fn interface_down(&mut self, now: Instant) {
        self.up = false;
        self.router.handle_interface(now, InterfaceEvent::Down);
    }

    /// Handles the earliest deadline.
    pub(super) fn expire(&mut self, now: Instant) {
        let Some((at, name)) = self.router.poll_timeout() else { return };
        let late = Instant::now().saturating_duration_since(at);
        self.traffic.latest_deadline = self.traffic.latest_deadline.max(late);
        if name == TimerName::Advertise {
            self.due = Some(at);
        }
        self.router.handle_timeout(now);
    }

    /// Takes a message for this router's identifier.
    pub(super) fn receive(&mut self, received: &Received<'_>, outside: &mut Outside, now: Instant) {
        if !self.is_addressed(received) {
            return;
        }
        if let Err(reason) = self.try_receive(received, outside, now)
            && !self.may_be_copy(reason, received.source, now)
        {
            outside.discarded(self.id(), reason, received.source, now);
        }
    }

    /// Returns whether the sender may repeat its advertisements for routers that have another password or key already:
    /// that is to be reported only if no other copy is accepted for Active_Down_Interval.
    fn may_be_copy(&mut self, reason: Discard, source: IpAddr, now: Instant) -> bool {
        if !matches!(reason, Discard::Password | Discard::UnknownKey) {
            return false;
        }
        if self.refused_since.len() >= MAX_REFUSED && !self.refused_since.contains_key(&source) {
            self.refused_since.clear();
        }
        let since = *self.refused_since.entry(source).or_insert(now);
        now.saturating_duration_since(since) < self.router.down_interval()
    }

    /// Returns whether the packet is for routers like this one. A unicast packet may be for an address of another
    /// interface; its source must be a peer all the same.
    fn is_addressed(&self, received: &Received<'_>) -> bool {
        let destination = received.destination;
        let group = Family::of(destination).multicast();
        self.interface.is_some() && (destination == group || !destination.is_multicast())
    }

    fn try_receive(
        &mut self,
        received: &Received<'_>,
        outside: &mut Outside,
        now: Instant,
    ) -> Result<(), Discard> {
        // Some bonds and switches return sent frames.
        let own = self.interface.as_ref().map(|interface| interface.mac);
        if received.mac.is_some() && received.mac == own {
            return Err(self.router.handle_unusable(Discard::Reflected));
        }
        let pseudo = PseudoHeader::new(received.source, received.destination).ok_or(Discard::Family)?;
        let by_both = both_clocks(now);
        let Opened { message, signature } = self.open(received, outside, by_both)?;
        let advertisement =
            Advertisement::decode_signed(message, received.message, &pseudo, self.config.checksum)
                .map_err(|error| self.router.handle_unusable(error))?;
        self.traffic.received += 1;
        let delivery =
            if received.destination.is_multicast() { Delivery::Multicast } else { Delivery::Unicast };
        let signed = signature.is_some();
        let (source, hop_limit) = (received.source, received.hop_limit);
        let meta = RxMeta { source, hop_limit, delivery, signed };
        if signature.is_some_and(|signature| signature.is_copy) {
            self.router.handle_copy();
        } else {
            self.router.handle_advertisement(now, &meta, &advertisement)?;
            self.accepted(&advertisement, source, outside, now);
        }
        if let (Some(authenticator), Some(signature)) = (&mut self.authenticator, &signature) {
            authenticator.accept(by_both, signature);
        }
        Ok(())
    }

    fn accepted(&mut self, advertisement: &Advertisement, source: IpAddr, outside: &Outside, now: Instant) {
        self.refused_since.remove(&source);
        // A Backup follows one router; advertisements of others do not show that it is alive.
        let is_backup = self.router.state() == StateName::Backup;
        let beside = is_backup && self.router.active_source() != Some(source);
        if advertisement.family() != self.config.router.deciding_family() || beside {
            return;
        }
        let heard = ActivePeer { source, priority: advertisement.priority, heard: now };
        let former = self.heard.replace(heard);
        if is_backup {
            let silence = self.router.down_interval() / 2;
            if let Some((change, suppressed)) = self.followed.follow(now, source, former, silence) {
                outside.report(RunnerEvent::ActiveChanged { id: self.config.id, change, suppressed });
            }
        }
    }

    /// Verifies the signature, as far as this router demands one. A packet from this router's own address is discarded
    /// whatever its signature is, and must not count as signed by this router before.
    fn open<'a>(
        &mut self,
        received: &Received<'a>,
        outside: &mut Outside,
        now: Now,
    ) -> Result<Opened<'a>, Discard> {
        let (payload, source) = (received.message, received.source);
        let split = hmac::split(payload, source).map(|(message, _)| message);
        let is_own = self.source(Family::of(source)) == Some(source);
        match (&self.authenticator, split) {
            (None, Some(_)) => Err(self.router.handle_unusable(Discard::UnexpectedSignature)),
            (None, None) => Ok(Opened { message: payload, signature: None }),
            (Some(_), Some(message)) if is_own => Ok(Opened { message, signature: None }),
            (Some(authenticator), _) => authenticator.open(now, source, payload).map_err(|error| {
                if let VerifyError::Stale { by, direction } = error {
                    let warning = Warning::ClockDiffers { source, by, direction };
                    outside.warning(self.config.id, warning, now.instant);
                }
                self.router.handle_unusable(error)
            }),
        }
    }

    /// The trailers for an advertisement, none if it is not signed.
    fn sign(
        &mut self,
        advertisement: &Advertisement,
        source: IpAddr,
        outside: &mut Outside,
        now: Instant,
    ) -> Vec<[u8; hmac::TRAILER_LEN]> {
        let signer = self.authenticator.as_mut().filter(|found| found.config().signs());
        let Some(authenticator) = signer else { return Vec::new() };
        let now = both_clocks(now);
        let by = authenticator.clock_step(now);
        if by > authenticator.config().window && authenticator.config().anti_replay == AntiReplay::Time {
            outside.warning(self.config.id, Warning::ClockStepped { by }, now.instant);
        }
        // The digest does not cover the checksum, so any destination will do.
        let pseudo = PseudoHeader::new(source, Family::of(source).multicast());
        let mut message = Vec::new();
        pseudo.iter().for_each(|pseudo| advertisement.encode(pseudo, &mut message));
        authenticator.sign(now, source, &message)
    }

    /// Gives an announcement to the router, if it is by another node and for one of its addresses.
    pub(super) fn announced(&mut self, announcement: &crate::Announcement, now: Instant) {
        let foreign = self.interface.as_ref().is_some_and(|interface| interface.mac != announcement.mac);
        if foreign && self.addresses().any(|address| address == announcement.ip) {
            self.router.handle_announcement(now, *announcement);
        }
    }

    /// Carries out the outputs of the router.
    pub(super) fn perform(&mut self, outside: &mut Outside, now: Instant) {
        while let Some(output) = self.router.poll_output() {
            match output {
                Output::Advertise(advertisement) => self.advertise(&advertisement, outside, now),
                Output::Claim(claim) => outside.claim(self.id(), claim),
                Output::Release(release) => outside.release(self.id(), release),
                Output::Announce => self.announce(outside, now),
                Output::Watch(watch) => {
                    if let Some(link) = self.link {
                        outside.watch(link, self.id(), watch, now);
                    }
                }
                Output::Transition(transition) => self.transition(transition, outside, now),
                Output::Warning(warning) => outside.warning(self.id(), warning, now),
            }
        }
        self.due = None;
        let end = self.router.claim_until();
        if self.claimed_until != end {
            self.claimed_until = end;
            if let Some(valid_until) = end {
                outside.extend(self.id(), valid_until);
            }
        }
    }

    fn advertise(&mut self, advertisement: &Advertisement, outside: &mut Outside, now: Instant) {
        let family = advertisement.family();
        let Some(link) = self.link else {
            self.traffic.send_errors += 1;
            return;
        };
        let Some(source) = self.source(family) else {
            self.traffic.send_errors += 1;
            let error = Errno::EADDRNOTAVAIL.into();
            outside.socket_error(link, SocketOperation::Advertise, error, now);
            return;
        };
        let mut sent = false;
        let trailers = self.sign(advertisement, source, outside, now);
        for destination in self.destinations(family) {
            if outside.advertise(link, advertisement, &trailers, (source, destination), now).is_ok() {
                self.traffic.sent += 1;
                sent = true;
            } else {
                self.traffic.send_errors += 1;
            }
        }
        if sent && family == self.config.router.deciding_family() {
            self.measure_advertisement();
        }
    }

    fn measure_advertisement(&mut self) {
        let sent = Instant::now();
        if let Some(due) = self.due.take() {
            let late = sent.saturating_duration_since(due);
            self.traffic.latest_advertisement = self.traffic.latest_advertisement.max(late);
        }
        if let Some(last) = self.last_sent.replace(sent) {
            self.traffic.longest_gap = self.traffic.longest_gap.max(sent.saturating_duration_since(last));
        }
    }

    fn source(&self, family: Family) -> Option<IpAddr> {
        let interface = self.interface.as_ref()?;
        match family {
            Family::V4 => interface.v4.map(IpAddr::V4),
            Family::V6 => interface.v6.map(IpAddr::V6),
        }
    }

    fn destinations(&self, family: Family) -> Vec<IpAddr> {
        match &self.config.transport {
            Transport::Multicast => vec![family.multicast()],
            // A list that all nodes share has this node's own address, too.
            Transport::Unicast { peers } => peers
                .iter()
                .copied()
                .filter(|peer| Family::of(*peer) == family)
                .filter(|peer| !self.interface.as_ref().is_some_and(|interface| interface.is_own(*peer)))
                .collect(),
        }
    }

    /// Announces the addresses at once if this router holds them: the interface has a new link-layer address.
    pub(super) fn announce_if_active(&mut self, outside: &mut Outside, now: Instant) {
        if self.router.state() == StateName::Active {
            self.announce(outside, now);
        }
    }

    fn announce(&mut self, outside: &mut Outside, now: Instant) {
        let (Some(link), Some(mac)) = (self.link, self.interface.as_ref().map(|interface| interface.mac))
        else {
            self.traffic.announce_errors += 1;
            return;
        };
        for address in self.addresses().collect::<Vec<_>>() {
            match outside.announce(link, mac, address, now) {
                Ok(()) => self.traffic.announced += 1,
                Err(()) => self.traffic.announce_errors += 1,
            }
        }
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let router = &self.config.router;
        let v4 = router.addresses_v4.iter().map(|address| IpAddr::V4(*address));
        v4.chain(router.addresses_v6.iter().map(|address| IpAddr::V6(*address)))
    }

    fn transition(&mut self, transition: Transition, outside: &Outside, now: Instant) {
        if transition.to == StateName::Active {
            self.followed.become_active(self.router.active_source());
        } else {
            // Gaps are measured within one term only.
            self.last_sent = None;
        }
        let since_last_heard = self.heard.map(|peer| now.saturating_duration_since(peer.heard));
        let past = PastTransition { at: SystemTime::now(), transition, since_last_heard };
        self.history.push(past);
        outside.transition(self.id(), past);
    }

    fn active(&self) -> Option<ActivePeer> {
        let followed = self.router.active_source().filter(|_| self.router.state() != StateName::Active);
        self.heard.filter(|peer| Some(peer.source) == followed)
    }

    pub(super) fn status(&self) -> InstanceStatus {
        InstanceStatus {
            id: self.id(),
            vrid: self.config.router.vrid,
            version: self.config.router.deciding_version(),
            state: self.router.state(),
            since: self.router.since(),
            reason: self.router.reason(),
            priority: self.router.priority(),
            serving: self.router.is_serving(),
            down_interval: self.router.down_interval(),
            interface: self.interface.as_ref().filter(|_| self.up).map(|interface| interface.name.clone()),
            active: self.active(),
            counters: *self.router.counters(),
            traffic: self.traffic,
            last_move: self.router.last_move(),
            transitions: self.history.to_vec(),
            transition_totals: self.history.totals().clone(),
        }
    }
}

/// The time by both clocks. A wall clock before 1970 counts as 1970.
fn both_clocks(instant: Instant) -> Now {
    Now { instant, wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
}

/// In unicast mode the transport's peers are the only ones.
fn normalised(mut config: InstanceConfig) -> InstanceConfig {
    if let Transport::Unicast { peers } = &config.transport {
        config.router.peers.clone_from(peers);
        config.router.only_peers = true;
    }
    config
}
