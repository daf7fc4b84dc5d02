//! The requests of operators: moves of virtual IPs, and standby.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::sync::oneshot;
use vrrp::channel::{self, Answer, Request};
use vrrp::router::StateName;
use vrrp::runner::{InstanceId, InstanceStatus, Transport};

use crate::control::server::{Asked, serve};
use crate::control::{self, Move, Outcome};
use crate::exit::Kind;
use crate::logging::{self, ANSWER};

use super::Daemon;
use super::event::ControlEvent;
use super::group::LinkKey;
use super::handover::{Asker, InstanceView, MoveResult, Output, SETTLING, View, selected};
use super::problems::Cause;
use super::sender::EventSender;
use super::serving::Input;
use super::vip::{Election, Instance};

/// The operators that wait for a result.
#[derive(Debug, Default)]
pub(super) struct Operators {
    waiting: BTreeMap<u64, Operator>,
    last: u64,
}

#[derive(Debug)]
struct Operator {
    reply: oneshot::Sender<Outcome>,
    outcome: Outcome,
    /// The number of results that are missing.
    missing: usize,
}

impl Operators {
    fn add(&mut self, reply: oneshot::Sender<Outcome>, missing: usize, message: Option<String>) -> u64 {
        self.last += 1;
        let outcome = Outcome { message, ..Outcome::default() };
        self.waiting.insert(self.last, Operator { reply, outcome, missing });
        self.last
    }

    /// Adds a result, and sends all of them if it was the last one.
    fn conclude(&mut self, number: u64, add: impl FnOnce(&mut Outcome)) {
        let Some(operator) = self.waiting.get_mut(&number) else { return };
        add(&mut operator.outcome);
        operator.missing = operator.missing.saturating_sub(1);
        if operator.missing == 0
            && let Some(Operator { reply, outcome, .. }) = self.waiting.remove(&number)
        {
            // The operator may have left.
            let _ = reply.send(outcome);
        }
    }
}

impl Daemon {
    /// Reads a request from an operator's connection.
    pub(super) fn serve_control(&self, stream: UnixStream) {
        let events = EventSender::<Asked>::new(&self.channel);
        tokio::spawn(serve(stream, move |asked| {
            let _ = events.send(asked);
        }));
    }

    pub(super) fn on_control(&mut self, event: ControlEvent) {
        match event {
            ControlEvent::Asked(Asked { request, reply, progress }) => match request {
                control::Request::Handover { instance, to } => {
                    self.ask_to_hand_over(instance.as_deref(), to.as_deref(), reply);
                }
                control::Request::Connections(selection) => self.list_connections(&selection, reply),
                control::Request::LogLevel(level) => _ = reply.send(self.set_log_level(level)),
                control::Request::Reload => self.reload_for(reply),
                control::Request::Drain(request) => self.drain(&request, reply, progress),
                control::Request::Undrain(request) => self.undrain(&request, reply),
                control::Request::History => {
                    let history = Some(Box::new(self.history()));
                    let _ = reply.send(Outcome { history, ..Outcome::default() });
                }
                control::Request::Standby => self.stand_by(reply),
                control::Request::Active => self.end_standby(reply),
            },
            ControlEvent::Recorded { operator, fault } => self.operators.conclude(operator, |outcome| {
                if let Some(fault) = fault {
                    tracing::warn!(fault, "standby cannot be recorded");
                    outcome.refused = Some(fault);
                }
            }),
        }
    }

    fn set_log_level(&mut self, level: Option<String>) -> Outcome {
        let message = |level: &str| Some(format!("the log level is {level}"));
        let Some(level) = level else {
            return Outcome { message: message(&self.log_level.1), ..Outcome::default() };
        };
        let level = if level == logging::DEFAULT_WORD { self.log_level.0.clone() } else { level };
        let filter = match logging::filter(&level) {
            Ok(filter) => filter,
            Err(why) => return Outcome::refused_as(Kind::Usage, why),
        };
        if !logging::set_filter(filter) {
            return Outcome::refused("this daemon has no log");
        }
        tracing::info!(target: ANSWER, level, "log level set, as an operator asked");
        let outcome = Outcome { message: message(&level), ..Outcome::default() };
        self.log_level.1 = level;
        outcome
    }

    fn ask_to_hand_over(
        &mut self,
        instance: Option<&str>,
        to: Option<&str>,
        reply: oneshot::Sender<Outcome>,
    ) {
        let view = self.view();
        let selected = if self.stopping {
            Err("the daemon stops".to_owned())
        } else {
            selected(&view.instances, instance)
        };
        match selected {
            Err(why) => _ = reply.send(Outcome::refused(why)),
            Ok(id) => {
                let asker = Asker::Operator(self.operators.add(reply, 1, None));
                let outputs = self.handovers.ask(Instant::now(), &view, asker, id, to);
                self.carry_out(outputs);
            }
        }
    }

    fn stand_by(&mut self, reply: oneshot::Sender<Outcome>) {
        let message = format!("{} is in standby, until `cplb active`", self.node_name);
        tracing::info!("standby begins, as an operator asked");
        let recorded = self.standby.set(true);
        let view = self.view();
        let held = view.instances.iter().filter(|instance| instance.state == StateName::Active);
        let held: Vec<InstanceId> = held.map(|instance| instance.id).collect();
        let number = self.operators.add(reply, held.len() + 1, Some(message));
        self.report_record(number, recorded, "a restart of the daemon would end standby");
        for id in held {
            let outputs = self.handovers.ask(Instant::now(), &view, Asker::Operator(number), id, None);
            self.carry_out(outputs);
        }
        self.follow_standby();
        self.gather_evidence();
    }

    fn end_standby(&mut self, reply: oneshot::Sender<Outcome>) {
        let message = if self.standby.is_wanted() {
            tracing::info!("standby ends, as an operator asked");
            format!("{} takes part in the election again", self.node_name)
        } else {
            format!("{} was not in standby", self.node_name)
        };
        let recorded = self.standby.set(false);
        let number = self.operators.add(reply, 1, Some(message));
        self.report_record(
            number,
            recorded,
            "after a restart of the daemon this node would be in standby again",
        );
        self.follow_standby();
        self.gather_evidence();
    }

    /// Sends the result of recording standby to the loop.
    fn report_record(
        &self,
        operator: u64,
        recorded: impl Future<Output = Result<(), String>> + Send + 'static,
        consequence: &'static str,
    ) {
        let events = EventSender::<ControlEvent>::new(&self.channel);
        tokio::spawn(async move {
            let fault = recorded.await.err().map(|why| format!("{consequence}: {why}"));
            let _ = events.send(ControlEvent::Recorded { operator, fault });
        });
    }

    /// Withholds this node's service in standby while another controller can serve, and hands over what it still holds. It
    /// serves as always if none can.
    pub(super) fn follow_standby(&mut self) {
        let wanted = self.standby.is_wanted();
        let mut others = false;
        if wanted {
            let text = "this node is in standby: it takes no virtual IPs while another controller can serve; `cplb active` \
                        ends that";
            self.problems.raise(Cause::Standby, text);
            let view = self.view();
            others = view.others_can_serve();
            if !self.stopping {
                let outputs = self.handovers.leave(Instant::now(), &view);
                self.carry_out(outputs);
            }
        } else {
            self.problems.clear(&Cause::Standby);
        }
        self.verdict.handle(Input::Standby(wanted && others), Instant::now());
    }

    /// Handles the request of a peer.
    pub(super) fn on_request(&mut self, link: LinkKey, from: IpAddr, id: u64, request: Request) {
        let view = self.view();
        let outputs = self.handovers.requested(Instant::now(), &view, (link, from, id), request);
        self.carry_out(outputs);
    }

    pub(super) fn on_answer(&mut self, token: u64, answer: Option<Answer>) {
        let view = self.view();
        let outputs = self.handovers.answered(Instant::now(), &view, token, answer);
        self.carry_out(outputs);
    }

    /// Follows the moves under way.
    pub(super) fn tick_handovers(&mut self) {
        if !self.handovers.is_idle() {
            let view = self.view();
            let outputs = self.handovers.tick(Instant::now(), &view);
            self.carry_out(outputs);
        }
    }

    fn carry_out(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Ask { link, token, to, request, timeout } => {
                    self.group.request(&link, token, to, request, timeout);
                }
                Output::Answer { link, to, id, answer } => self.group.answer(&link, to, id, answer),
                Output::Succession { instance, active, successor, until } => {
                    if let Some(election) = &self.election {
                        election.runner.succession(instance, active, successor, until);
                    }
                }
                Output::HandOver(instance) => {
                    if let Some(election) = &self.election {
                        election.runner.hand_over(instance);
                    }
                }
                Output::Reply { asker, instance, result } => self.reply(asker, instance, result),
            }
        }
    }

    fn reply(&mut self, asker: Asker, instance: InstanceId, result: MoveResult) {
        let fields = Election::log_fields(self.election.as_ref())(instance);
        let MoveResult { from, answer } = result;
        let (vip, vrid, to) = (fields.vip, fields.vrid, &answer.holder);
        match (answer.outcome, answer.kept) {
            (channel::Outcome::ACCEPTED, Some(kept)) => {
                let (kept, taken) = (kept.as_secs_f64(), answer.taken.map(|taken| taken.as_secs_f64()));
                tracing::info!(
                    vip,
                    vrid,
                    from,
                    to,
                    kept_seconds = kept,
                    taken_seconds = taken,
                    "handed over on request"
                );
            }
            (channel::Outcome::ACCEPTED, None) => {}
            _ if asker == Asker::Standby => {
                tracing::debug!(vip, vrid, reason = answer.reason, "handover refused");
            }
            _ => tracing::info!(vip, vrid, reason = answer.reason, "handover refused"),
        }
        match asker {
            Asker::Standby => {}
            Asker::Peer { link, address, id } => self.group.answer(&link, address, id, answer),
            Asker::Operator(number) => {
                let addresses = self.election.as_ref().and_then(|election| election.instances.get(&instance));
                let addresses = addresses.into_iter().flat_map(Instance::addresses).collect();
                let moved = moved(u8::try_from(vrid).unwrap_or_default(), addresses, from, answer);
                self.operators.conclude(number, |outcome| outcome.moves.push(moved));
            }
        }
    }

    fn view(&self) -> View {
        let verdict = self.verdict.status(Instant::now());
        let mut view = View {
            node: self.node_name.clone(),
            serving: match (self.standby.is_wanted(), verdict.serving) {
                (true, _) => Err("it is in standby".to_owned()),
                (false, true) => Ok(()),
                (false, false) => Err(verdict.reason.unwrap_or_default()),
            },
            instances: Vec::new(),
            peers: self.group.peers_by_link(),
            controllers: BTreeSet::new(),
        };
        if let Some(election) = &self.election {
            let status = election.runner.status();
            view.instances =
                status.instances.iter().filter_map(|router| self.instance_view(election, router)).collect();
            view.controllers.clone_from(election.controllers());
        }
        view
    }

    fn instance_view(&self, election: &Election, router: &InstanceStatus) -> Option<InstanceView> {
        let instance = election.instances.get(&router.id)?;
        let interface = election.interface(router.id);
        let has_v4 = !instance.router.router.addresses_v4.is_empty();
        let own = interface.as_ref().and_then(|interface| {
            if has_v4 { interface.v4.map(IpAddr::V4) } else { interface.v6.map(IpAddr::V6) }
        });
        Some(InstanceView {
            id: router.id,
            vrid: router.vrid.get(),
            addresses: instance.addresses().collect(),
            link: interface.as_ref().map(|interface| LinkKey::of(interface, has_v4)),
            group: self.group_number(router),
            state: router.state,
            degraded: router.priority.is_degraded() || !router.serving,
            own,
            active: router.active.map(|active| active.source),
            unicast_peers: match &instance.router.transport {
                Transport::Multicast => Vec::new(),
                Transport::Unicast { peers } => peers.clone(),
            },
            down: router.down_interval,
            last_move: router.last_move,
            settled: router.since.elapsed() >= SETTLING,
            holds: election.holds(router.id),
        })
    }
}

/// The result of a move for an operator.
fn moved(vrid: u8, addresses: Vec<IpAddr>, from: String, answer: Answer) -> Move {
    let Answer { outcome, reason, holder, kept, taken } = answer;
    let accepted = outcome == channel::Outcome::ACCEPTED;
    let reason = Some(reason).filter(|reason| !reason.is_empty());
    let blackout = kept.zip(taken).map(|(kept, taken)| taken.saturating_sub(kept));
    let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs_f64());
    Move {
        vrid,
        addresses,
        from,
        to: holder,
        refused: if accepted { None } else { Some(reason.clone().unwrap_or_else(|| "refused".to_owned())) },
        remark: reason.filter(|_| accepted),
        kept_seconds: seconds(kept),
        taken_seconds: seconds(taken),
        blackout_seconds: seconds(blackout),
    }
}
