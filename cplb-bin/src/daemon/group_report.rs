//! This node's report to the other controllers, and the consequences of theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use vrrp::channel::{InstanceReport, Report, group_of};
use vrrp::router::StateName;
use vrrp::runner::InstanceStatus;

use crate::history::WallTime;

use super::Daemon;
use super::group::{GroupEvent, Holder, LinkKey, Local, Member};
use super::problems::Cause;
use super::vip::Instance;

/// The claim that is reported at least while the addresses are held.
const LEAST_CLAIM: Duration = Duration::from_millis(1);

impl Daemon {
    /// Passes this node's report to the channels, opens and closes them as the instances and interfaces are, and names other
    /// holders of its addresses.
    pub(super) fn update_group(&mut self) {
        self.update_peers();
        let wanted = if self.stopping { BTreeMap::new() } else { self.channels() };
        self.group.set(wanted);
        self.report_channels();
        self.report_contention();
        self.update_owners();
        self.update_end_to_end();
        self.update_certificates();
        if self.standby.is_wanted() {
            self.follow_standby();
        }
    }

    fn channels(&self) -> BTreeMap<LinkKey, Local> {
        let Some(election) = &self.election else { return BTreeMap::new() };
        let report = self.report();
        let interfaces: BTreeMap<_, _> =
            election.instances.keys().map(|id| (*id, election.interface(*id))).collect();
        let members = election.instances.values().map(|instance| Member {
            interface: interfaces.get(&instance.id).and_then(Option::as_ref),
            transport: &instance.router.transport,
            hmac: instance.router.router.hmac.as_ref(),
            has_v4: !instance.router.router.addresses_v4.is_empty(),
            finds_peers: instance.finds_peers(),
        });
        let mut channels = LinkKey::all(members, election.controllers(), &report);
        if election.instances.values().any(Instance::finds_peers) {
            for (link, peers) in self.group.peers_by_link() {
                let heard = channels.get_mut(&link).map(|local| &mut local.report.heard);
                heard.into_iter().for_each(|heard| heard.extend(peers.iter().map(|peer| peer.address)));
            }
        }
        channels
    }

    fn report(&self) -> Report {
        let now = Instant::now();
        let status = self.election.as_ref().map(|election| election.runner.status());
        let routers = status.as_ref().map_or(&[][..], |status| &status.instances[..]);
        let verdict = self.verdict.status(now);
        Report {
            node: self.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started_at,
            // The channel sets it when it sends the report.
            clock: 0,
            addresses: self.own_addresses(),
            heard: Vec::new(),
            serving: Some(if verdict.serving { Ok(()) } else { Err(verdict.reason.unwrap_or_default()) }),
            instances: routers.iter().map(|router| self.instance_report(router, now)).collect(),
            transitions: self.last_transitions(),
            unanswered: self.unanswered(),
            degraded: self.problems.texts(),
            unlisted: 0,
        }
    }

    fn instance_report(&self, router: &InstanceStatus, now: Instant) -> InstanceReport {
        // The keeper learns of a renewed claim later than that is made, so that a short one seems to have ended.
        let held = self.election.as_ref().and_then(|election| election.held_until(router.id));
        let claim =
            held.map_or(Duration::ZERO, |until| until.saturating_duration_since(now).max(LEAST_CLAIM));
        InstanceReport {
            vrid: router.vrid.get(),
            state: Some(router.state),
            group: self.group_number(router),
            priority: router.priority.0,
            claim: u32::try_from(claim.as_millis()).unwrap_or(u32::MAX),
        }
    }

    /// The number that the routers of an instance have in common.
    pub(super) fn group_number(&self, router: &InstanceStatus) -> u64 {
        let instance = self.election.as_ref().and_then(|election| election.instances.get(&router.id));
        let addresses: BTreeSet<IpAddr> = instance.into_iter().flat_map(Instance::addresses).collect();
        group_of(router.vrid.get(), addresses)
    }

    pub(super) fn own_addresses(&self) -> Vec<IpAddr> {
        let Some(election) = &self.election else { return Vec::new() };
        let interfaces = election.instances.keys().filter_map(|id| election.interface(*id));
        let sources =
            interfaces.flat_map(|interface| [interface.v4.map(IpAddr::V4), interface.v6.map(IpAddr::V6)]);
        sources.flatten().collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn report_channels(&mut self) {
        let boards = self.group.boards();
        let errors = boards.iter().filter_map(|(interface, board)| Some((interface, board.error.as_ref()?)));
        let failing: BTreeMap<&String, &String> = errors.collect();
        for (interface, error) in &failing {
            let text = format!("the group channel on {interface} does not work: {error}");
            if self.problems.raise(Cause::Channel((*interface).clone()), text) {
                tracing::warn!(interface, error, "group channel does not work; retrying");
            }
        }
        let works =
            |cause: &Cause| matches!(cause, Cause::Channel(interface) if !failing.contains_key(interface));
        self.problems.retain(|cause| !works(cause));
    }

    fn report_contention(&mut self) {
        let status = self.election.as_ref().map(|election| election.runner.status());
        let routers = status.as_ref().map_or(&[][..], |status| &status.instances[..]);
        let active = routers.iter().filter(|router| router.state == StateName::Active);
        let active: BTreeSet<u64> = active.map(|router| self.group_number(router)).collect();
        let holders = self.contention.observe(Instant::now(), &active, &self.group.peers());
        let mut named: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for holder in &holders {
            named.entry(holder.vrid.into()).or_default().push(text(holder));
        }
        for (vrid, texts) in &named {
            if self.problems.raise_all(Cause::Holder(*vrid), texts.clone()) {
                texts.iter().for_each(|text| tracing::warn!("{text}"));
            }
        }
        self.problems.retain(|cause| !matches!(cause, Cause::Holder(vrid) if !named.contains_key(vrid)));
    }

    /// Handles an event of a channel.
    pub(super) fn on_group(&mut self, event: GroupEvent) {
        match event {
            GroupEvent::Found { peer, report } => {
                let (node, version) = (&report.node, &report.version);
                tracing::info!(%peer, %node, %version, "controller found");
                self.record_peers();
                // It may be a peer that no list has, and takes the addresses if it hears no advertisement.
                self.update_group();
            }
            GroupEvent::Changed => {
                self.update_peers();
                self.record_peers();
            }
            GroupEvent::Lost { peer } => tracing::info!(%peer, "controller lost"),
            GroupEvent::Requested { link, from, id, request } => self.on_request(link, from, id, request),
            GroupEvent::Answered { token, answer } => self.on_answer(token, answer),
        }
    }
}

fn text(holder: &Holder) -> String {
    let Holder { vrid, peer, node } = holder;
    format!(
        "virtual router {vrid}: {peer} ({node}) holds the virtual IPs, too: are advertisements (IP protocol 112) dropped \
         between the nodes?"
    )
}

/// The name of this node: as it was given, or the host's.
pub(super) fn node_name(given: Option<&str>) -> String {
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    given.map_or_else(host, str::to_owned)
}

/// The wall clock in seconds since 1970-01-01 00:00 UTC.
pub(super) fn started_at() -> u64 {
    WallTime::now().millis() / 1000
}
