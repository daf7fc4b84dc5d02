//! What the daemon does about IPVS: tells the director what this node holds, and the table what IPVS balances.

mod leaving;
mod opinions;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::Path;
use std::time::Instant;

use cplb_config::{Config, LbKind};
use ipvs::InterfaceName;
use lb_proxy::BackendState;
use lb_proxy::nft::Director;
use netlink_vip::{InterfaceSelector, InterfaceState, KeeperEvent, RealServerConfig, TunnelConfig};
use tokio::sync::mpsc::UnboundedSender;
use vrrp::runner::InstanceId;

use crate::status::schema;

use super::ipvs::{
    Ask, AskerHandle, Directed, DirectorHandle, Heard, Member, Members, News, NodeWish, Opinion, Place,
    Wanted, desired, directed, forwarding, servers, sysctls,
};
use super::link::Event;
use super::problems::Cause;
use super::{Daemon, blueprint};

/// The names of the links that receive what directors send by tunnel.
pub(crate) const TUNNELS: [&str; 2] = ["cplbtun4", "cplbtun6"];

/// IPVS, as far as the configuration wants it.
#[derive(Debug, Default)]
pub(crate) struct Ipvs {
    pub(crate) director: Option<DirectorHandle>,
    asker: Option<AskerHandle>,
    directed: Vec<Directed>,
    available: bool,
    /// What the keeper has told of the instances. Its status may be a little older than its events.
    seats: BTreeMap<u32, Seat>,
    /// Whether the keeper has found out which addresses and interfaces there are.
    begun: bool,
    /// Instances that are giving their addresses up.
    releasing: BTreeSet<InstanceId>,
    news: Option<News>,
    /// What the servers were asked, and where they are.
    heard: Heard,
    /// What was logged about the servers.
    told: BTreeMap<Ask, Opinion>,
    /// The rules that the table was last told.
    directors: Vec<Director>,
    /// Those that it has. Telling it takes a moment.
    laid: Vec<Director>,
    /// When directors elsewhere know that this node leaves, once it does.
    left: Option<Instant>,
    /// What a reload has dropped, and until when directors are told so.
    departing: Option<(Vec<Directed>, Instant)>,
}

/// Where an instance stands.
#[derive(Debug, Default)]
struct Seat {
    /// Whether its addresses are here.
    held: bool,
    interface: Option<InterfaceState>,
}

impl Ipvs {
    /// Starts the director where the configuration, or what a crashed daemon left behind, needs one.
    pub(crate) fn start(config: &Config, state_dir: &Path, events: &UnboundedSender<Event>) -> Self {
        let first = Daemon::first_directors(config);
        let mut ipvs = Self {
            directed: directed(config),
            directors: first.clone(),
            laid: first,
            // Until it is known to be missing.
            available: true,
            ..Self::default()
        };
        ipvs.ensure_director(state_dir, events);
        ipvs
    }

    pub(crate) fn is_available(&self) -> bool {
        self.available
    }

    /// Whether there is a director, and its task has ended by itself.
    pub(crate) fn is_dead(&self) -> bool {
        self.director.as_ref().is_some_and(DirectorHandle::is_dead)
    }

    /// Whose state decides whether this node serves.
    pub(crate) fn wanted_director(&self) -> Option<DirectorHandle> {
        self.director.clone().filter(|_| !self.directed.is_empty())
    }

    fn ensure_director(&mut self, state_dir: &Path, events: &UnboundedSender<Event>) {
        let needed = !self.directed.is_empty()
            || super::ipvs::RECORDS.iter().any(|name| state_dir.join(name).exists());
        if self.director.is_none() && needed {
            self.director = Some(DirectorHandle::start(state_dir.to_owned(), events.clone()));
        }
        if self.asker.is_none() && !self.directed.is_empty() {
            self.asker = Some(AskerHandle::start(events.clone()));
        }
    }
}

impl Daemon {
    /// Tells the director and the table what is so now; both do nothing where nothing changed.
    pub(crate) fn update_ipvs(&mut self) {
        if self.ipvs.directed.is_empty() && self.ipvs.director.is_none() {
            return;
        }
        let members = self.members();
        if let Some(asker) = &self.ipvs.asker {
            asker.ask(self.asks(&members).collect(), !self.ipvs.directed.is_empty());
        }
        // What a daemon before this one made is not touched before it is known what is still wanted.
        if !self.ipvs.begun && self.election.is_some() {
            return;
        }
        self.ipvs.departing.take_if(|(_, until)| Instant::now() >= *until);
        let directors = self.rules(&members);
        if directors != self.ipvs.directors {
            self.ipvs.directors = directors;
            self.change_table();
        }
        // A packet that still gets its mark needs its service.
        let stays = |it: &Director| has_rule(&self.ipvs.directors, it.vip, it.port);
        if let Some(director) = self.ipvs.director.as_ref().filter(|_| self.ipvs.laid.iter().all(stays)) {
            director.want(self.wish(&members));
        }
    }

    /// The table has these rules now, or refuses them.
    pub(crate) fn on_directors(&mut self, laid: Vec<Director>) {
        self.ipvs.laid = laid;
        self.update_ipvs();
    }

    /// What the director is to keep.
    fn wish(&self, members: &Members) -> Wanted {
        let sync = self.sync();
        // IPVS goes on with a connection that it was told of only if it has the server, and looks at packets only if it
        // has a service. Elsewhere than on the holder no packet has the mark of a new connection.
        let has = |it: &Directed| {
            let here = self.holds(it) || (sync.is_some() && it.outlives_its_director());
            here && it.takes_any(servers(members, it)) && self.is_known(it, members)
        };
        Wanted {
            services: desired(&self.ipvs.directed, members, &self.ipvs.heard.opinions, has),
            sync,
            sysctls: match self.ipvs.directed.as_slice() {
                [] => Vec::new(),
                directed => sysctls(directed),
            },
            forwarding: forwarding(&self.ipvs.directed),
            node: match self.real_server(members) {
                Some(_) if self.ipvs.heard.local.is_empty() => NodeWish::AsItIs,
                Some(config) => NodeWish::Server(config),
                None => NodeWish::Nothing,
            },
        }
    }

    /// What the table is to say about IPVS. Without IPVS the proxy serves who reaches this node, and also until a new
    /// service has its servers: without one the kernel refuses connections.
    fn rules(&self, members: &Members) -> Vec<Director> {
        let stay = self.ipvs.directed.iter().filter(|it| it.takes_any(servers(members, it)));
        let stay = stay.filter(|it| match it.instance {
            _ if self.holds(it) => self.ipvs.available && self.is_ready(it),
            // What another node directs here is for the server on this one.
            Some(_) => true,
            None => it.kind != LbKind::Nat,
        });
        let stay = stay.map(|it| (it, self.ipvs.left.is_some()));
        let leave = self.ipvs.departing.iter().flat_map(|(dropped, _)| dropped);
        let leave = leave.filter(|it| !self.holds(it)).map(|it| (it, true));
        let rule = |(it, departing): (&Directed, bool)| {
            let peers = self.peers(it, members);
            Director { departing, peers, ..it.director(self.interfaces(it, members)) }
        };
        stay.chain(leave).map(rule).collect()
    }

    /// Whether packets may be left to IPVS. Once they are, they stay so: connections would not survive the proxy.
    fn is_ready(&self, directed: &Directed) -> bool {
        has_rule(&self.ipvs.directors, directed.vip, directed.port) || self.has_servers(directed)
    }

    fn has_servers(&self, directed: &Directed) -> bool {
        self.ipvs.news.as_ref().is_some_and(|news| news.ready.contains(&directed.key()))
    }

    /// Whether a server has said what it does. Until then it is better to leave connections to the server on this node
    /// than to send them where nobody may accept them.
    fn is_known(&self, directed: &Directed, members: &Members) -> bool {
        let mut asks = servers(members, directed).iter().filter_map(|server| directed.ask(server)).peekable();
        asks.peek().is_none() || asks.any(|ask| self.ipvs.heard.opinions.contains_key(&ask))
    }

    fn holds(&self, directed: &Directed) -> bool {
        match directed.instance {
            Some(id) => {
                let held = self.ipvs.seats.get(&id.0).is_some_and(|seat| seat.held);
                held && !self.ipvs.releasing.contains(&id)
            }
            None => self.ipvs.heard.local.get(&directed.vip).is_some_and(|links| {
                // With direct routing and tunnels, servers have the address, too.
                directed.kind == LbKind::Nat || !links.is_empty()
            }),
        }
    }

    /// The name of an instance's interface, also of one that is not there.
    fn interface(&self, id: InstanceId) -> Option<String> {
        if let Some(state) = self.ipvs.seats.get(&id.0).and_then(|seat| seat.interface.as_ref()) {
            return Some(state.name.clone());
        }
        let instances = &self.election.as_ref()?.instances;
        match &instances.get(&id)?.group.interface {
            InterfaceSelector::Name(name) => Some(name.clone()),
            _ => None,
        }
    }

    /// Behind which clients and other directors are.
    fn interfaces(&self, directed: &Directed, members: &Members) -> BTreeSet<String> {
        let Some(id) = directed.instance else {
            return match directed.kind {
                LbKind::Nat => BTreeSet::new(),
                // The server on this node serves until IPVS does.
                _ if !self.has_servers(directed) => BTreeSet::new(),
                _ => self.ipvs.heard.local.get(&directed.vip).cloned().unwrap_or_default(),
            };
        };
        let Some(name) = self.interface(id) else { return BTreeSet::new() };
        let mut all = behind(directed, name);
        all.extend(self.ways(directed, members));
        all
    }

    /// The interfaces by which directors on other nodes send packets as they are.
    fn ways(&self, directed: &Directed, members: &Members) -> BTreeSet<String> {
        if directed.kind != LbKind::DirectRouting {
            return BTreeSet::new();
        }
        servers(members, directed)
            .iter()
            .filter_map(|server| self.ipvs.heard.ways.get(&server.addr.ip()).cloned())
            .collect()
    }

    /// What it takes to accept what directors send here; nothing for addresses that somebody else moves.
    fn real_server(&self, members: &Members) -> Option<RealServerConfig> {
        let departing = self.ipvs.departing.iter().flat_map(|(dropped, _)| dropped);
        // An address whose interface is not known cannot be kept quiet about.
        let moved: Vec<(&Directed, String)> = self
            .ipvs
            .directed
            .iter()
            .chain(departing)
            .filter_map(|it| Some((it, self.interface(it.instance?)?)))
            .collect();
        let vips: BTreeSet<IpAddr> = moved.iter().map(|(it, _)| it.vip).collect();
        let ways = |(it, name): &(&Directed, String)| {
            self.ways(it, members).into_iter().filter(|way| way != name).collect::<Vec<_>>()
        };
        let ways: BTreeSet<String> = moved.iter().flat_map(ways).collect();
        let interfaces: BTreeSet<String> = moved.iter().map(|(_, name)| name).chain(&ways).cloned().collect();
        // Directors send to the address that the configuration lists. There is one tunnel for each family.
        let tunnelled = moved.iter().filter(|(it, _)| it.kind == LbKind::Tunnel);
        let servers = tunnelled.flat_map(|(it, _)| {
            servers(members, it).iter().filter(|server| it.takes(server)).map(|server| server.addr.ip())
        });
        let own: BTreeSet<IpAddr> = servers.filter(|ip| self.ipvs.heard.local.contains_key(ip)).collect();
        let first = |v4: bool| own.iter().find(|ip| ip.is_ipv4() == v4).copied();
        let mut config = RealServerConfig::new(vips.into_iter().collect());
        config.interfaces = interfaces.into_iter().collect();
        config.loose = ways.into_iter().collect();
        config.tunnels = [first(true), first(false)].into_iter().flatten().map(TunnelConfig::new).collect();
        (!config.vips.is_empty()).then_some(config)
    }

    /// What the keeper tells of an instance's addresses and interface.
    pub(crate) fn on_seat(&mut self, event: &KeeperEvent) {
        match event {
            KeeperEvent::Installed { id, .. } => self.ipvs.seats.entry(id.0).or_default().held = true,
            KeeperEvent::Removed { id, .. } => self.ipvs.seats.entry(id.0).or_default().held = false,
            KeeperEvent::Interface { id, state } => {
                self.ipvs.seats.entry(id.0).or_default().interface.clone_from(state);
                // One that has come back is not yet silent about the virtual addresses.
                if let Some(director) = &self.ipvs.director {
                    director.look();
                }
            }
            KeeperEvent::Resynced { .. } => self.ipvs.begun = true,
            _ => return,
        }
        if let KeeperEvent::Installed { id, .. } | KeeperEvent::Removed { id, .. } = event {
            self.ipvs.releasing.remove(&InstanceId(id.0));
        }
        self.update_ipvs();
    }

    /// The rules for the table.
    pub(crate) fn directors(&self) -> Vec<Director> {
        self.ipvs.directors.clone()
    }

    pub(crate) fn on_ipvs(&mut self, news: News) {
        self.ipvs.available = news.unavailable.is_none();
        self.ipvs.news = Some(news);
        self.judge_ipvs();
        self.update_ipvs();
    }

    /// What is wrong with IPVS is a problem only where it is wanted.
    fn judge_ipvs(&mut self) {
        let news = self.ipvs.news.iter().filter(|_| !self.ipvs.directed.is_empty());
        let wrong: Vec<String> =
            news.flat_map(|news| news.unavailable.iter().chain(&news.faults)).cloned().collect();
        if wrong.is_empty() {
            if self.problems.clear(&Cause::Ipvs) {
                tracing::info!("IPVS is as it should be");
            }
            return;
        }
        let known = self.problems.of(&Cause::Ipvs);
        for text in wrong.iter().filter(|text| !known.contains(text)) {
            tracing::warn!("{text}");
        }
        self.problems.raise_all(Cause::Ipvs, wrong);
    }

    /// Whom to ask whether directors can count on them.
    fn asks(&self, members: &Members) -> impl Iterator<Item = Ask> {
        self.ipvs
            .directed
            .iter()
            .flat_map(|it| servers(members, it).iter().filter_map(|server| it.ask(server)))
    }

    /// From where packets come that have been directed.
    fn peers(&self, directed: &Directed, members: &Members) -> BTreeSet<[u8; 6]> {
        servers(members, directed)
            .iter()
            .filter_map(|server| self.ipvs.heard.macs.get(&server.addr.ip()).copied())
            .collect()
    }

    /// What `cplb status` shows of it.
    pub(crate) fn ipvs_status(&self) -> Option<schema::Ipvs> {
        let observed = self.ipvs.director.as_ref()?.observed();
        if self.ipvs.directed.is_empty() {
            return None;
        }
        let members = self.members();
        Some(schema::Ipvs {
            available: observed.unavailable.is_none(),
            virtual_servers: self
                .ipvs
                .directed
                .iter()
                .map(|it| {
                    let held = self.holds(it);
                    let ready = held && has_rule(&self.ipvs.laid, it.vip, it.port);
                    let place = if ready {
                        Place::Directed
                    } else if held {
                        Place::Held
                    } else {
                        Place::Elsewhere
                    };
                    it.status(&observed, servers(&members, it), &self.ipvs.heard.opinions, place)
                })
                .collect(),
            sync_daemons: observed.daemons.iter().map(|daemon| daemon.state.to_string()).collect(),
            reason: observed.unavailable,
        })
    }

    fn members(&self) -> Members {
        let Some(balancer) = &self.balancer else { return Members::new() };
        let snapshot = balancer.snapshot();
        let services =
            blueprint::services(&self.config, &self.names, self.held()).into_iter().map(|service| {
                let found = snapshot.services.iter().find(|found| *found.name == *service.name);
                let members = service.backends.iter().map(|backend| {
                    let known =
                        found.and_then(|found| found.backends.iter().find(|it| it.addr == backend.addr));
                    let state = known.map_or(BackendState::Unknown, |known| known.state);
                    let spares_sessions = known.is_none_or(|known| known.spares_sessions);
                    Member { addr: backend.addr, weight: backend.weight, state, spares_sessions }
                });
                (service.name.to_string(), members.collect())
            });
        services.collect()
    }

    /// On the interface of the first instance, which is the same on all nodes.
    fn sync(&self) -> Option<(InterfaceName, u32)> {
        let first = self.ipvs.directed.iter().filter(|_| self.config.ipvs_sync).find_map(|it| it.instance)?;
        Some((InterfaceName::new(&self.interface(first)?).ok()?, first.0))
    }

    /// The rules before anything is known: those of interfaces that the configuration names. What directors elsewhere
    /// send here is then for the server on this node from the start.
    pub(crate) fn first_directors(config: &Config) -> Vec<Director> {
        let known = directed(config).into_iter().filter_map(|it| {
            let id = it.instance?;
            let instance = config.instances.iter().find(|instance| u32::from(instance.vrid.get()) == id.0)?;
            let InterfaceSelector::Name(name) = &instance.interface else { return None };
            Some(it.director(behind(&it, name.clone())))
        });
        known.collect()
    }
}

fn has_rule(rules: &[Director], vip: IpAddr, port: NonZeroU16) -> bool {
    rules.iter().any(|rule| (rule.vip, rule.port) == (vip, port))
}

/// The interface of its address, and the tunnels if it has any.
fn behind(directed: &Directed, interface: String) -> BTreeSet<String> {
    let tunnels = TUNNELS.map(str::to_owned).into_iter().filter(|_| directed.kind == LbKind::Tunnel);
    tunnels.chain([interface]).collect()
}
