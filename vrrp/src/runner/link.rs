//! An interface as the runner sees it: its sockets and the routers that share them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::Context;
use std::time::{Duration, Instant};

use super::InstanceId;
use super::link_layer::{self, Watching};
use super::opener::{FamilySockets, Needs, OpenSockets};
use super::readiness::Watched;
use super::status::InterfaceStatus;
use crate::router::Watch;
use crate::types::Family;

/// The wait after sockets could not be opened.
const RETRY: Duration = Duration::from_secs(1);

/// An interface that at least one router uses.
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) status: InterfaceStatus,
    sockets: Option<LinkSockets>,
    users: BTreeMap<InstanceId, User>,
    routes: BTreeMap<(Family, u8), Vec<InstanceId>>,
    watching: BTreeSet<InstanceId>,
    pending: Option<u64>,
    retry_at: Option<Instant>,
}

/// A router that takes part.
pub(super) struct User {
    pub(super) needs: Needs,
    /// Its virtual addresses.
    pub(super) addresses: Vec<IpAddr>,
}

/// The open sockets, registered with the runtime.
struct LinkSockets {
    needs: Needs,
    v4: Option<WatchedFamily>,
    v6: Option<WatchedFamily>,
    announcer: OwnedFd,
}

struct WatchedFamily {
    messages: Watched,
    sender: Option<OwnedFd>,
    watcher: Watched,
    /// There may be something to read.
    readable: bool,
    watcher_readable: bool,
}

impl Link {
    pub(super) fn new(index: u32, name: String) -> Self {
        Self {
            index,
            status: InterfaceStatus::new(index, name.clone()),
            name,
            sockets: None,
            users: BTreeMap::new(),
            routes: BTreeMap::new(),
            watching: BTreeSet::new(),
            pending: None,
            retry_at: None,
        }
    }

    /// Registers a router, or changes its needs, addresses and routes. The error concerns the announcements of other
    /// nodes only.
    pub(super) fn join(
        &mut self,
        id: InstanceId,
        user: User,
        routes: impl Iterator<Item = (Family, u8)>,
    ) -> io::Result<()> {
        let before = self.users.insert(id, user);
        self.unroute(id);
        for route in routes {
            self.routes.entry(route).or_default().push(id);
        }
        let same =
            before.map(|user| user.addresses) == self.users.get(&id).map(|user| user.addresses.clone());
        if same || !self.watching.contains(&id) { Ok(()) } else { self.apply_watching() }
    }

    /// Takes a router out. Returns whether none is left.
    pub(super) fn leave(&mut self, id: InstanceId) -> bool {
        self.users.remove(&id);
        self.unroute(id);
        // A filter that stays open by mistake costs a few wake-ups until the next change.
        let _stays_open = self.set_watching(id, Watch::Stop);
        self.users.is_empty()
    }

    fn unroute(&mut self, id: InstanceId) {
        self.routes.retain(|_, ids| {
            ids.retain(|other| *other != id);
            !ids.is_empty()
        });
    }

    pub(super) fn users(&self) -> impl Iterator<Item = InstanceId> + use<> {
        self.users.keys().copied().collect::<Vec<_>>().into_iter()
    }

    /// The routers that listen to this identifier.
    pub(super) fn route(&self, family: Family, vrid: u8) -> Option<Vec<InstanceId>> {
        self.routes.get(&(family, vrid)).cloned()
    }

    /// The needs of all routers together.
    fn needs(&self) -> Needs {
        self.users.values().fold(Needs::default(), |all, user| all.union(user.needs))
    }

    /// Returns whether the sockets that this router needs are open.
    pub(super) fn serves(&self, id: InstanceId) -> bool {
        match (&self.sockets, self.users.get(&id)) {
            (Some(sockets), Some(user)) => sockets.needs.covers(user.needs),
            _ => false,
        }
    }

    /// The sockets to open now, if any is missing, no request is pending, and no failure is too recent.
    pub(super) fn wanted(&mut self, ticket: u64, now: Instant) -> Option<Needs> {
        let needs = self.needs();
        let satisfied = self.sockets.as_ref().is_some_and(|sockets| sockets.needs.covers(needs));
        let too_early = self.retry_at.is_some_and(|at| now < at);
        if satisfied || too_early || self.pending.is_some() {
            return None;
        }
        self.retry_at = None;
        self.pending = Some(ticket);
        Some(needs)
    }

    /// The time at which to ask [`Link::wanted`] again.
    pub(super) const fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Ends the pending request and returns true if `ticket` is its number.
    pub(super) fn settle(&mut self, ticket: u64) -> bool {
        let expected = self.pending == Some(ticket);
        if expected {
            self.pending = None;
        }
        expected
    }

    /// Waits before the next attempt.
    pub(super) fn back_off(&mut self, now: Instant) {
        self.retry_at = Some(now + RETRY);
    }

    /// Puts new sockets into use and returns the old ones for closing.
    pub(super) fn install(&mut self, sockets: OpenSockets) -> io::Result<Vec<OwnedFd>> {
        let OpenSockets { needs, v4, v6, announcer } = sockets;
        let fresh = LinkSockets {
            needs,
            v4: v4.map(WatchedFamily::new).transpose()?,
            v6: v6.map(WatchedFamily::new).transpose()?,
            announcer,
        };
        let old = self.sockets.replace(fresh).map(LinkSockets::into_fds).unwrap_or_default();
        self.apply_watching()?;
        Ok(old)
    }

    /// The sockets, for closing.
    pub(super) fn into_fds(self) -> Vec<OwnedFd> {
        self.sockets.map(LinkSockets::into_fds).unwrap_or_default()
    }

    /// Starts or stops listening to other nodes' announcements on behalf of a router.
    pub(super) fn set_watching(&mut self, id: InstanceId, watch: Watch) -> io::Result<()> {
        let changed = match watch {
            Watch::Start => self.watching.insert(id),
            Watch::Stop => self.watching.remove(&id),
        };
        if changed { self.apply_watching() } else { Ok(()) }
    }

    pub(super) fn watching(&self) -> Vec<InstanceId> {
        self.watching.iter().copied().collect()
    }

    fn apply_watching(&self) -> io::Result<()> {
        let users = self.watching.iter().filter_map(|id| self.users.get(id));
        let addresses: Vec<IpAddr> = users.flat_map(|user| user.addresses.iter().copied()).collect();
        let watching = if addresses.is_empty() { Watching::Off } else { Watching::For(&addresses) };
        for family in [Family::V4, Family::V6] {
            if let Some(sockets) = self.family(family) {
                link_layer::watch(sockets.watcher.as_fd(), family, watching)?;
            }
        }
        Ok(())
    }

    /// Registers for being woken; true if something can be read already.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> bool {
        let mut readable = false;
        let Some(sockets) = &mut self.sockets else { return false };
        for family in [&mut sockets.v4, &mut sockets.v6].into_iter().flatten() {
            family.readable = family.messages.poll_readable(cx).is_ready();
            family.watcher_readable = family.watcher.poll_readable(cx).is_ready();
            readable |= family.readable || family.watcher_readable;
        }
        readable
    }

    pub(super) fn is_readable(&self) -> bool {
        [Family::V4, Family::V6]
            .into_iter()
            .filter_map(|family| self.family(family))
            .any(|family| family.readable || family.watcher_readable)
    }

    /// The socket to send messages of a family through, if it is open.
    pub(super) fn sender(&self, family: Family) -> Option<BorrowedFd<'_>> {
        let sockets = self.family(family)?;
        Some(sockets.sender.as_ref().map_or_else(|| sockets.messages.as_fd(), |sender| sender.as_fd()))
    }

    /// The socket that receives the messages of a family, if it is open.
    pub(super) fn messages(&self, family: Family) -> Option<&Watched> {
        self.family(family).map(|sockets| &sockets.messages)
    }

    /// The socket for announcements of a family, if it is open.
    pub(super) fn watcher(&self, family: Family) -> Option<&Watched> {
        self.family(family).map(|sockets| &sockets.watcher)
    }

    /// The socket to announce through, if it is open.
    pub(super) fn announcer(&self) -> Option<&OwnedFd> {
        self.sockets.as_ref().map(|sockets| &sockets.announcer)
    }

    fn family(&self, family: Family) -> Option<&WatchedFamily> {
        let sockets = self.sockets.as_ref()?;
        match family {
            Family::V4 => sockets.v4.as_ref(),
            Family::V6 => sockets.v6.as_ref(),
        }
    }
}

impl LinkSockets {
    fn into_fds(self) -> Vec<OwnedFd> {
        let families = [self.v4, self.v6].into_iter().flatten();
        families
            .flat_map(|family| {
                [Some(family.messages.into_inner()), family.sender, Some(family.watcher.into_inner())]
            })
            .flatten()
            .chain([self.announcer])
            .collect()
    }
}

impl WatchedFamily {
    fn new(sockets: FamilySockets) -> io::Result<Self> {
        Ok(Self {
            messages: Watched::new(sockets.messages.receiver)?,
            sender: sockets.messages.sender,
            watcher: Watched::new(sockets.watcher)?,
            readable: true,
            watcher_readable: false,
        })
    }
}
