//! A stand-alone load balancer: `balance LISTEN BACKEND…`, for example
//! `cargo run --release -p lb-proxy --example balance -- '[::]:6444' 10.0.0.11:6443 10.0.0.12:6443`.
//!
//! `CONGESTION=cubic`, `WORKERS=2` and `RELAY=copy|splice` in the environment change the options. Prints events, and
//! on the end of its input the counters.

use std::error::Error;
use std::net::SocketAddr;

use lb_proxy::{LoadBalancer, Options, RelayMode, Service};

fn main() -> Result<(), Box<dyn Error>> {
    let addresses =
        std::env::args().skip(1).map(|arg| arg.parse()).collect::<Result<Vec<SocketAddr>, _>>()?;
    let Some((&listen, backends)) = addresses.split_first() else {
        return Err("usage: balance LISTEN BACKEND…".into());
    };
    let options = Options {
        workers: std::env::var("WORKERS").map_or(Ok(0), |workers| workers.parse())?,
        congestion: std::env::var("CONGESTION").ok(),
        relay: match std::env::var("RELAY").as_deref() {
            Ok("copy") => RelayMode::Copy,
            Ok("splice") => RelayMode::Splice,
            _ => RelayMode::Auto,
        },
        ..Options::default()
    };
    let backends = backends.iter().map(|&addr| addr.into()).collect();
    let service = Service::new("example", vec![listen], backends);
    let balancer = LoadBalancer::start(options, vec![service], Box::new(|event| eprintln!("{event:?}")))?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    println!("{:#?}", balancer.snapshot());
    Ok(())
}
