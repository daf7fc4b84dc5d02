//! The interfaces of the routers, and the packets that arrive there.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::errno::Errno;

use super::{Engine, Urgency};
use crate::announce::parse_announcement;
use crate::router::StateName;
use crate::runner::link::Link;
use crate::runner::link_layer::{self, MAX_FRAME};
use crate::runner::opener::{OpenSockets, Opened};
use crate::runner::{InstanceId, Interface, SocketOperation, socket};
use crate::types::Family;

/// The most packets of one socket that an iteration reads. A flood then delays deadlines by a millisecond at most.
const DRAIN: usize = 512;

/// The offset of the virtual router identifier, the same in every version (RFC 9568 §5.2.3). It is needed before
/// decoding, since the accepted checksums are each router's own policy.
const VRID: usize = 1;

impl Engine {
    /// Follows a router's interface.
    pub(super) fn place(&mut self, id: InstanceId, interface: Option<Interface>, now: Instant) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let before = std::mem::replace(&mut instance.interface, interface);
        let runs = instance.router.state() != StateName::Stopped;
        let usable = instance.interface.as_ref().filter(|interface| interface.up && runs);
        let target = usable.map(|interface| (interface.index, interface.name.clone()));
        let stays = target.as_ref().map(|(index, _)| *index) == instance.link;
        if stays {
            if instance.up && before != instance.interface {
                let mac = |interface: &Option<Interface>| interface.as_ref().map(|interface| interface.mac);
                let renumbered = mac(&before) != mac(&instance.interface);
                self.with(id, now, |instance, outside| {
                    instance.interface_up(now);
                    if renumbered {
                        instance.announce_if_active(outside, now);
                    }
                });
            }
            return;
        }
        self.leave(id, now);
        if let Some((index, name)) = target {
            self.join(id, index, name, now);
        }
    }

    /// Registers the router again, since its needs may have changed.
    pub(super) fn rejoin(&mut self, id: InstanceId, now: Instant) {
        let Some(instance) = self.instances.get(&id) else { return };
        let Some(link) = instance.link else { return };
        // Meanwhile the router goes on with the sockets there are: a new address must not cost it the others.
        if let Some(link) = self.outside.links.get_mut(&link) {
            let joined = link.join(id, instance.user(), instance.routes());
            if let Err(error) = joined {
                let index = link.index;
                self.outside.socket_error(index, SocketOperation::Watch, error, now);
            }
        }
        self.reopen(now);
    }

    fn join(&mut self, id: InstanceId, index: u32, name: String, now: Instant) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.link = Some(index);
        let link = self.outside.links.entry(index).or_insert_with(|| Link::new(index, name));
        let joined = link.join(id, instance.user(), instance.routes());
        let serves = link.serves(id);
        if let Err(error) = joined {
            self.outside.socket_error(index, SocketOperation::Watch, error, now);
        }
        if serves {
            self.with(id, now, |instance, _| instance.interface_up(now));
        }
        self.reopen(now);
    }

    fn leave(&mut self, id: InstanceId, now: Instant) {
        self.with(id, now, |instance, _| {
            if instance.up {
                instance.interface_down(now);
            }
        });
        if let Some(index) = self.instances.get_mut(&id).and_then(|instance| instance.link.take()) {
            self.abandon(id, index);
        }
    }

    /// Detaches a router that has stopped from its interface.
    pub(super) fn retire(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.up = false;
        if let Some(index) = instance.link.take() {
            self.abandon(id, index);
        }
    }

    fn abandon(&mut self, id: InstanceId, index: u32) {
        let empty = self.outside.links.get_mut(&index).is_some_and(|link| link.leave(id));
        if empty && let Some(link) = self.outside.links.remove(&index) {
            self.opener.close(link.into_fds());
            self.outside.forget_link(index);
        }
    }

    /// Drops a router that has stopped.
    pub(super) fn forget(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.remove(&id) else { return };
        if let Some(at) = instance.filed {
            self.deadlines.remove(&(at, id));
        }
        if let Some(index) = instance.link {
            self.abandon(id, index);
        }
        self.outside.forget(id);
        self.unpublished = Some(Urgency::Now);
    }

    /// Requests the sockets that are missing.
    pub(super) fn reopen(&mut self, now: Instant) {
        for link in self.outside.links.values_mut() {
            let ticket = self.tickets + 1;
            if let Some(needs) = link.wanted(ticket, now) {
                self.tickets = ticket;
                self.opener.open(link.index, needs, ticket);
            }
        }
    }

    /// Puts sockets into use that have been opened meanwhile.
    pub(super) fn take_opened(&mut self, now: Instant) {
        for Opened { index, ticket, result } in std::mem::take(&mut self.answers) {
            let link = self.outside.links.get_mut(&index);
            let Some(link) = link.and_then(|link| link.settle(ticket).then_some(link)) else {
                // No request waits for them any more.
                if let Ok(sockets) = result {
                    self.opener.close(sockets.into_fds());
                }
                continue;
            };
            let installed = match result {
                Ok(sockets) => link.install(sockets),
                Err(error) => Err(io::Error::new(error.source.kind(), error)),
            };
            match installed {
                Ok(old) => {
                    self.opener.close(old);
                    self.bring_up(index, now);
                }
                Err(error) => {
                    link.back_off(now);
                    self.outside.socket_error(index, SocketOperation::Open, error, now);
                }
            }
            self.unpublished = self.unpublished.max(Some(Urgency::Soon));
        }
    }

    fn bring_up(&mut self, index: u32, now: Instant) {
        let Some(link) = self.outside.links.get_mut(&index) else { return };
        link.status.open = true;
        let users: Vec<InstanceId> = link.users().filter(|id| link.serves(*id)).collect();
        for id in users {
            if self.instances.get(&id).is_some_and(|instance| !instance.up) {
                self.with(id, now, |instance, _| instance.interface_up(now));
            }
        }
    }

    /// Reads the sockets that have something, and those of every router that is about to act.
    pub(super) fn receive_all(&mut self, now: Instant) {
        let due: BTreeSet<u32> = self
            .deadlines
            .iter()
            .take_while(|(at, _)| *at <= now)
            .filter_map(|(_, id)| self.instances.get(id)?.link)
            .collect();
        // New sockets replace old ones, so what waits in those is read now or never.
        let commanded = !self.inbox.is_empty() || !self.answers.is_empty();
        let links = self.outside.links.values();
        let chosen: Vec<u32> = links
            .filter(|link| commanded || link.is_readable() || due.contains(&link.index))
            .map(|link| link.index)
            .collect();
        let mut buffer = std::mem::take(&mut self.buffer);
        for index in chosen {
            for family in [Family::V4, Family::V6] {
                self.receive_messages(index, family, &mut buffer, now);
                self.receive_announcements(index, family, now);
            }
        }
        self.buffer = buffer;
    }

    fn receive_messages(&mut self, index: u32, family: Family, buffer: &mut [u8], now: Instant) {
        for _ in 0..DRAIN {
            let Some(link) = self.outside.links.get_mut(&index) else { return };
            let Some(watched) = link.messages(family) else { return };
            match socket::receive(watched.as_fd(), family, buffer) {
                Ok(received) => {
                    link.status.received += 1;
                    // If reading takes long, later packets are newer than the start of the iteration.
                    self.dispatch(index, family, &received, Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    watched.exhausted();
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => link.status.malformed += 1,
                // Reported once when the interface goes down, which is known otherwise.
                Err(error) if error.raw_os_error() == Some(Errno::ENETDOWN as i32) => {}
                Err(error) => self.outside.socket_error(index, SocketOperation::Receive, error, now),
            }
        }
    }

    fn dispatch(&mut self, index: u32, family: Family, received: &socket::Received<'_>, now: Instant) {
        self.unpublished = self.unpublished.max(Some(Urgency::Soon));
        let Some(link) = self.outside.links.get_mut(&index) else { return };
        let Some(vrid) = received.message.get(VRID).copied() else {
            link.status.malformed += 1;
            return;
        };
        let Some(ids) = link.route(family, vrid) else {
            *link.status.foreign.entry(vrid).or_default() += 1;
            return;
        };
        for id in ids {
            self.with(id, now, |instance, outside| instance.receive(received, outside, now));
        }
    }

    fn receive_announcements(&mut self, index: u32, family: Family, now: Instant) {
        let mut frame = [0; MAX_FRAME];
        for _ in 0..DRAIN {
            let Some(link) = self.outside.links.get(&index) else { return };
            let watching = link.watching();
            let Some(watched) = link.watcher(family) else { return };
            match link_layer::receive(watched.as_fd(), &mut frame) {
                Ok(frame) => {
                    let Some(announcement) = parse_announcement(frame) else { continue };
                    for id in watching {
                        self.with(id, now, |instance, _| instance.announced(&announcement, now));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    watched.exhausted();
                    return;
                }
                // Reported once when the interface goes down; the socket revives with it.
                Err(error) if error.raw_os_error() == Some(Errno::ENETDOWN as i32) => {}
                Err(error) => self.outside.socket_error(index, SocketOperation::Watch, error, now),
            }
        }
    }
}

impl OpenSockets {
    fn into_fds(self) -> Vec<std::os::fd::OwnedFd> {
        let families = [self.v4, self.v6].into_iter().flatten();
        families
            .flat_map(|family| [Some(family.messages.receiver), family.messages.sender, Some(family.watcher)])
            .flatten()
            .chain([self.announcer])
            .collect()
    }
}
