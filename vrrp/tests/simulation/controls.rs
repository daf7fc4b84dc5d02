//! The faults that tests inject into the world, and the queries of its state.

use std::net::IpAddr;
use std::time::Duration;

use vrrp::router::{Command, StateName, VipEvent};
use vrrp::{Family, RouterConfig, VirtualRouter};

use crate::node::{Kernel, Node, Process, Sent};
use crate::world::{CHECK, Change, Event, World};

impl World {
    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.log(|| format!("cut {from} -> {to}"));
        self.cut[from][to] = true;
    }

    /// Cuts everything between two groups of endpoints.
    pub(crate) fn split(&mut self, group: &[usize]) {
        for one in 0..self.cut.len() {
            for other in 0..self.cut.len() {
                if group.contains(&one) != group.contains(&other) {
                    self.cut(one, other);
                }
            }
        }
    }

    pub(crate) fn heal(&mut self) {
        self.log(|| "heal".to_owned());
        self.cut.iter_mut().for_each(|row| row.fill(false));
    }

    /// SIGKILL: the process is gone, the kernel keeps the address until its lease expires.
    pub(crate) fn kill(&mut self, node: usize) {
        self.log(|| format!("kill {node}"));
        let node = &mut self.nodes[node];
        node.process = Process::Dead;
        node.inbox.clear();
        node.jobs.clear();
        (node.claim, node.watching) = (None, false);
        node.kernel.epoch += 1;
    }

    /// A power failure: the kernel loses its state, too.
    pub(crate) fn crash(&mut self, node: usize) {
        self.kill(node);
        self.nodes[node].kernel.installed = false;
        self.nodes[node].kernel.lease += 1;
    }

    /// Starts the process anew; it removes what a predecessor left.
    pub(crate) fn restart(&mut self, node: usize) {
        self.log(|| format!("restart {node}"));
        let now = self.now;
        let host = &mut self.nodes[node];
        host.router = VirtualRouter::new(host.config.clone(), now);
        host.authenticate(now);
        host.process = Process::Running;
        host.wake_at = None;
        (host.claim, host.watching) = (None, false);
        host.inbox.clear();
        host.jobs.clear();
        let kernel =
            Kernel { lease: host.kernel.lease + 1, epoch: host.kernel.epoch + 1, ..Kernel::default() };
        host.kernel = kernel;
        self.begin(node);
    }

    pub(crate) fn pause(&mut self, node: usize) {
        if self.nodes[node].runs() {
            self.log(|| format!("pause {node}"));
            self.nodes[node].process = Process::Paused;
        }
    }

    /// SIGCONT: the sockets are drained before any timer is handled.
    pub(crate) fn resume(&mut self, node: usize) {
        if self.nodes[node].process != Process::Paused {
            return;
        }
        self.log(|| format!("resume {node}"));
        let now = self.now;
        self.nodes[node].process = Process::Running;
        let event = self.nodes[node].interface();
        self.nodes[node].router.handle_interface(now, event);
        self.settle(node);
        while let Some(frame) = self.nodes[node].inbox.pop_front() {
            self.nodes[node].receive(now, &frame);
            self.settle(node);
        }
        self.nodes[node].wake_at = None;
        self.nodes[node].router.handle_timeout(now);
        self.schedule(CHECK, Event::Check { node });
        self.settle(node);
    }

    pub(crate) fn serve(&mut self, node: usize, serves: bool) {
        if self.nodes[node].serves == serves {
            return;
        }
        self.log(|| format!("node {node} serves: {serves}"));
        self.nodes[node].serves = serves;
        self.report_serving(node);
    }

    pub(crate) fn link(&mut self, node: usize, up: bool) {
        self.log(|| format!("link {node} up: {up}"));
        self.nodes[node].link_up = up;
        if self.nodes[node].runs() {
            let (now, event) = (self.now, self.nodes[node].interface());
            self.nodes[node].router.handle_interface(now, event);
            self.settle(node);
        }
    }

    pub(crate) fn command(&mut self, node: usize, command: Command) {
        if self.nodes[node].runs() {
            self.log(|| format!("command {node}: {command:?}"));
            let now = self.now;
            self.nodes[node].router.handle_command(now, command);
            self.settle(node);
        }
    }

    /// Tells some nodes which one is to have the addresses after the Active.
    pub(crate) fn name_successor(
        &mut self,
        told: &[usize],
        active: usize,
        successor: usize,
        lasts: Duration,
    ) {
        let until = self.now + lasts;
        let [active, successor] = [active, successor].map(|node| self.source(node));
        told.iter().for_each(|node| self.command(*node, Command::Succession { active, successor, until }));
    }

    /// The source of a node's advertisements.
    fn source(&self, node: usize) -> IpAddr {
        let node = &self.nodes[node];
        match node.config.deciding_family() {
            Family::V4 => IpAddr::V4(node.v4),
            Family::V6 => IpAddr::V6(node.v6),
        }
    }

    /// A reload with another configuration.
    pub(crate) fn reload(&mut self, node: usize, config: &RouterConfig) {
        let now = self.now;
        let host = &mut self.nodes[node];
        host.config = config.clone();
        match (&mut host.authenticator, config.hmac.clone()) {
            (Some(authenticator), Some(hmac)) => authenticator.reconfigure(hmac),
            _ => host.authenticate(now),
        }
        self.command(node, Command::Reconfigure(Box::new(config.clone())));
    }

    /// Sets the wall clock of a node.
    pub(crate) fn step_clock(&mut self, node: usize, forward: bool, by: Duration) {
        self.log(|| format!("clock of {node} set by {by:?}, forward: {forward}"));
        let wall = &mut self.nodes[node].wall;
        *wall = if forward { *wall + by } else { *wall - by };
    }

    /// `ip addr del`: the keeper is notified at once.
    pub(crate) fn delete_address(&mut self, node: usize) {
        let now = self.now;
        let host = &mut self.nodes[node];
        if !host.kernel.installed {
            return;
        }
        host.kernel.installed = false;
        host.kernel.lease += 1;
        if host.runs() {
            host.vip(now, VipEvent::Missing);
            self.settle(node);
        }
    }

    pub(crate) fn actives(&self) -> Vec<usize> {
        self.running_in(StateName::Active)
    }

    pub(crate) fn running_in(&self, state: StateName) -> Vec<usize> {
        let in_state = |node: &Node| node.process != Process::Dead && node.router.state() == state;
        (0..self.nodes.len()).filter(|node| in_state(&self.nodes[*node])).collect()
    }

    /// The nodes that have the address on their interface, dead or alive.
    pub(crate) fn holders(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].kernel.installed).collect()
    }

    /// The only Active, which the test relies on.
    #[track_caller]
    pub(crate) fn the_active(&self) -> usize {
        let [active] = self.actives()[..] else { panic!("one Active expected: {:?}", self.actives()) };
        active
    }

    /// The transitions to Active since `from`.
    pub(crate) fn takeovers_since(&self, from: Duration) -> Vec<Change> {
        let is_takeover = |change: &&Change| change.at >= from && change.to == StateName::Active;
        self.changes.iter().filter(is_takeover).copied().collect()
    }

    pub(crate) fn sent(&self, node: usize) -> Sent {
        self.nodes[node].sent
    }
}
