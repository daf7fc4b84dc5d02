//! The life cycle of the load balancer: start, reconfiguration, stop, and the report of its errors.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use lb_proxy::{ListenError, LoadBalancer, Options, ReconfigureError, Service, StartError};

use crate::exit::{Failure, Kind};

use super::instance_log::{InstanceFields, instance_log};
use super::sender::EventSender;

/// The longest time that the load balancer may take to reset sessions, where the kernel cannot.
const RESET_TIMEOUT: Duration = Duration::from_millis(100);

/// The work of the load balancer under a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ProxyPlan {
    /// No load balancer runs without services.
    pub(crate) services: Vec<Service>,
    /// Addresses that are never backends: the virtual IPs.
    pub(crate) forbidden: Vec<IpAddr>,
}

/// The load balancer of the daemon, if it has one.
pub(crate) struct Proxy {
    events: EventSender<lb_proxy::Event>,
    balancer: Option<Arc<LoadBalancer>>,
    /// The plan in effect.
    plan: ProxyPlan,
    staged: Option<Staged>,
}

/// The change that a reload has made so far.
#[derive(Debug, PartialEq, Eq)]
enum Staged {
    /// There was no load balancer before.
    Started(ProxyPlan),
    Reconfigured(ProxyPlan),
    /// The new configuration needs no load balancer. The current one serves until the commit.
    Retiring,
}

impl Proxy {
    /// The load balancer of `plan`, which reports to `events`; none where the plan has no services.
    pub(crate) fn start(plan: ProxyPlan, events: EventSender<lb_proxy::Event>) -> Result<Self, Failure> {
        let mut proxy = Self { events, balancer: None, plan: ProxyPlan::default(), staged: None };
        if !plan.services.is_empty() {
            proxy.balancer = Some(proxy.launch(&plan)?);
            proxy.plan = plan;
        }
        Ok(proxy)
    }

    fn launch(&self, plan: &ProxyPlan) -> Result<Arc<LoadBalancer>, Failure> {
        let events = self.events.clone();
        let report = Box::new(move |event| {
            let _ = events.send(event);
        });
        let options = Options {
            mark: lb_proxy::MARK,
            // The kernel may refuse it, which does not matter without virtual IPs.
            transparent: true,
            forbidden: plan.forbidden.clone(),
            ..Options::default()
        };
        match LoadBalancer::start(options, plan.services.clone(), report) {
            Ok(balancer) => Ok(Arc::new(balancer)),
            Err(error) => Err(start_failure(&error)),
        }
    }

    /// The running load balancer.
    pub(crate) fn balancer(&self) -> Option<&Arc<LoadBalancer>> {
        self.balancer.as_ref()
    }

    /// Applies other services. After a failure the current ones stay; without a running load balancer this does nothing.
    pub(crate) fn reconfigure(&mut self, plan: &ProxyPlan) -> Result<(), ReconfigureError> {
        let Some(balancer) = &self.balancer else { return Ok(()) };
        balancer.reconfigure(plan.services.clone())?;
        self.plan = plan.clone();
        Ok(())
    }

    /// Applies the services of another configuration, to be followed by [`Proxy::commit`] or [`Proxy::roll_back`]. The
    /// former ports stay open until the sessions through them end.
    pub(crate) fn stage(&mut self, plan: ProxyPlan) -> Result<(), Failure> {
        let staged = match &self.balancer {
            _ if plan.services.is_empty() => Staged::Retiring,
            None => {
                self.balancer = Some(self.launch(&plan)?);
                Staged::Started(plan)
            }
            Some(balancer) => {
                balancer.forbid(plan.forbidden.clone());
                balancer.reconfigure(plan.services.clone()).map_err(|error| {
                    balancer.forbid(self.plan.forbidden.clone());
                    reconfigure_failure(&error)
                })?;
                Staged::Reconfigured(plan)
            }
        };
        self.staged = Some(staged);
        Ok(())
    }

    /// Makes the staged change the one in use.
    pub(crate) fn commit(&mut self) {
        match self.staged.take() {
            Some(Staged::Started(plan) | Staged::Reconfigured(plan)) => self.plan = plan,
            Some(Staged::Retiring) => self.retire(),
            None => {}
        }
    }

    /// Reverts the staged change. Returns the result of applying `desired` again, where the change had applied other
    /// services. If that fails, as it did before the change, the last services that could be applied are used.
    pub(crate) fn roll_back(&mut self, desired: &ProxyPlan) -> Option<Result<(), ReconfigureError>> {
        match self.staged.take()? {
            Staged::Started(_) => {
                self.retire();
                None
            }
            Staged::Reconfigured(_) => {
                if let Some(balancer) = &self.balancer {
                    balancer.forbid(desired.forbidden.clone());
                }
                let result = self.reconfigure(desired);
                if result.is_err() {
                    let former = self.plan.clone();
                    let _ = self.reconfigure(&former);
                }
                Some(result)
            }
            Staged::Retiring => None,
        }
    }

    /// Stops the load balancer in a thread of the pool, because that waits for its threads.
    fn retire(&mut self) {
        self.plan = ProxyPlan::default();
        if let Some(balancer) = self.balancer.take() {
            tokio::task::spawn_blocking(move || balancer.stop());
        }
    }

    /// Stops the load balancer, and waits for its threads.
    pub(crate) fn stop(&mut self) {
        if let Some(balancer) = self.balancer.take() {
            balancer.stop();
        }
    }

    /// Resets the sessions through `vips` of an instance, before these addresses are removed.
    pub(crate) async fn reset_sessions(&self, instance: &InstanceFields, vips: &[IpAddr]) {
        let Some(balancer) = self.balancer.as_ref().filter(|_| !vips.is_empty()) else { return };
        match tokio::time::timeout(RESET_TIMEOUT, balancer.reset_sessions(vips)).await {
            Ok(0) => {}
            Ok(count) => {
                instance_log!(info, instance, addresses = ?vips, count, "sessions reset by the load balancer");
            }
            Err(_) => {
                instance_log!(
                    warn,
                    instance,
                    addresses = ?vips,
                    "sessions not reset in time by the load balancer"
                );
            }
        }
    }
}

fn start_failure(error: &StartError) -> Failure {
    let message = format!("the load balancer cannot start: {error}");
    match error {
        StartError::Listen(ListenError::PortInUse { addr }) => port_in_use(&message, *addr),
        StartError::Invalid(_) => Failure::new(Kind::Config, error),
        _ => Failure::new(Kind::System, message),
    }
}

fn reconfigure_failure(error: &ReconfigureError) -> Failure {
    let message = format!("the load balancer cannot take the services over: {error}");
    match error {
        ReconfigureError::Listen(ListenError::PortInUse { addr }) => port_in_use(&message, *addr),
        _ => Failure::new(Kind::System, message),
    }
}

fn port_in_use(message: &str, addr: SocketAddr) -> Failure {
    Failure::new(Kind::Temporary, message).help(format_args!(
        "find the listener with `ss -ltnp 'sport = :{}'` (k0s's own control plane load balancing uses 6444), or choose \
         another userSpaceProxyBindPort",
        addr.port()
    ))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn events() -> EventSender<lb_proxy::Event> {
        EventSender::new(&tokio::sync::mpsc::unbounded_channel::<lb_proxy::Event>().0)
    }

    /// A service `name` that listens on a free port, or the given one.
    fn plan(name: &str, port: u16) -> ProxyPlan {
        let listen = vec![SocketAddr::from(([127, 0, 0, 1], port))];
        let backend = lb_proxy::Backend::new(SocketAddr::from(([127, 0, 0, 1], 9)));
        ProxyPlan { services: vec![Service::new(name, listen, vec![backend])], forbidden: Vec::new() }
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn served(proxy: &Proxy) -> Vec<String> {
        let snapshot = proxy.balancer().map(|balancer| balancer.snapshot());
        snapshot.iter().flat_map(|it| &it.services).map(|service| service.name.to_string()).collect()
    }

    #[tokio::test]
    async fn rolling_back_restores_the_former_services() {
        let (one, two) = (free_port(), free_port());
        let former = plan("former", one);
        let mut proxy = Proxy::start(former.clone(), events()).unwrap();
        proxy.stage(plan("latter", two)).unwrap();
        assert_eq!(served(&proxy), ["latter"]);
        assert!(matches!(proxy.roll_back(&former), Some(Ok(()))));
        assert_eq!(served(&proxy), ["former"]);
        proxy.stage(plan("latter", two)).unwrap();
        proxy.commit();
        assert!(proxy.roll_back(&former).is_none());
        assert_eq!(served(&proxy), ["latter"], "a committed change is not rolled back");
        proxy.stop();
    }

    #[tokio::test]
    async fn rolling_back_reports_services_that_still_cannot_be_applied() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let desired = plan("desired", other.local_addr().unwrap().port());
        let mut proxy = Proxy::start(plan("former", free_port()), events()).unwrap();
        assert!(proxy.reconfigure(&desired).is_err());
        proxy.stage(ProxyPlan::default()).unwrap();
        assert!(
            proxy.roll_back(&desired).is_none(),
            "nothing was applied, so nothing is known of the desired services"
        );
        proxy.stage(plan("latter", free_port())).unwrap();
        assert!(matches!(proxy.roll_back(&desired), Some(Err(_))));
        assert_eq!(served(&proxy), ["former"]);
        proxy.stop();
    }

    #[tokio::test]
    async fn rolling_back_a_staged_start_stops_the_load_balancer() {
        let mut proxy = Proxy::start(ProxyPlan::default(), events()).unwrap();
        assert!(proxy.balancer().is_none());
        proxy.stage(plan("staged", free_port())).unwrap();
        assert_eq!(served(&proxy), ["staged"]);
        assert!(proxy.roll_back(&ProxyPlan::default()).is_none());
        assert!(proxy.balancer().is_none());
    }

    #[tokio::test]
    async fn a_plan_without_services_stops_the_load_balancer_at_the_commit() {
        let former = plan("former", free_port());
        let mut proxy = Proxy::start(former.clone(), events()).unwrap();
        proxy.stage(ProxyPlan::default()).unwrap();
        assert_eq!(served(&proxy), ["former"]);
        assert!(proxy.roll_back(&former).is_none());
        assert_eq!(served(&proxy), ["former"]);
        proxy.stage(ProxyPlan::default()).unwrap();
        proxy.commit();
        assert!(proxy.balancer().is_none());
    }

    #[tokio::test]
    async fn a_port_in_use_fails_with_a_remedy_and_keeps_the_former_services() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = other.local_addr().unwrap().port();
        let failure = Proxy::start(plan("first", taken), events()).err().unwrap();
        assert!(failure.to_string().contains(&format!("sport = :{taken}")), "{failure}");
        let mut proxy = Proxy::start(plan("former", free_port()), events()).unwrap();
        let failure = proxy.stage(plan("latter", taken)).unwrap_err();
        assert!(failure.to_string().contains("cannot take the services over"), "{failure}");
        assert_eq!(served(&proxy), ["former"]);
        proxy.stop();
    }
}
