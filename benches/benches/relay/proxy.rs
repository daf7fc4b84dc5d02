//! The proxy under test, as the daemon runs it: its options, and the library's defaults.

use std::net::SocketAddr;

use lb_proxy::{Event, LoadBalancer, MARK, Options, Service};

use crate::Result;

pub(crate) const ROLE: &str = "--as-proxy";

/// The same number as HAProxy's threads.
pub(crate) const WORKERS: usize = 2;

/// Balances over the backends given as arguments until the standard input ends.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let backends: Vec<SocketAddr> =
        args.iter().map(|arg| arg.parse()).collect::<std::result::Result<_, _>>()?;
    let backends = backends.into_iter().map(Into::into).collect();
    let service = Service::new("bench", vec![([127, 0, 0, 1], 0).into()], backends);
    // The daemon marks its connections, at the price of one call for each.
    let options = Options { workers: WORKERS, mark: MARK, ..Options::default() };
    let balancer = LoadBalancer::start(options, vec![service], Box::new(|event| report(&event)))?;
    let listening = balancer.snapshot().services[0].listen[0];
    println!("{listening}");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

/// Prints events that must not occur during a measurement. Marks need a privilege and are not essential.
fn report(event: &Event) {
    if !matches!(event, Event::BackendUp { .. } | Event::MarkRefused { .. }) {
        eprintln!("proxy: {event:?}");
    }
}
