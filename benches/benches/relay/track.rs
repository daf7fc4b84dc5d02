//! The proxy alone under criterion, which compares the figures with those of the last run.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};

use crate::Result;
use crate::client::{Client, Direction, Done, Until};
use crate::compare::start_server;
use crate::subject::start_proxy;

/// Bytes of one iteration of bulk: enough that the connect is negligible.
const BULK: u64 = 16 << 20;

pub(crate) fn run() -> Result<()> {
    let (_server, backends) = start_server()?;
    let (_proxy, listening) = start_proxy(&backends)?;
    let client = Client::new()?;
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("relay");
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    let to = [listening];
    for (name, direction) in [("download", Direction::Down), ("upload", Direction::Up)] {
        let transfer = |bytes| client.bulk(&to, direction, Duration::ZERO, Until::Count(bytes), || ());
        track(&mut group, name, Throughput::Bytes(BULK), &|iterations| Ok(transfer(iterations * BULK)?.0));
    }
    track_count(&mut group, "request", &to, &|to, until| client.requests(to, until));
    track_count(&mut group, "connection", &to, &|to, until| client.connections(to, until));
    group.finish();
    criterion.final_summary();
    Ok(())
}

fn track_count(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    to: &[SocketAddr],
    measure: &dyn Fn(&[SocketAddr], Until) -> Result<Done>,
) {
    track(group, name, Throughput::Elements(1), &|iterations| measure(to, Until::Count(iterations)));
}

fn track(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    throughput: Throughput,
    measure: &dyn Fn(u64) -> Result<Done>,
) {
    group.throughput(throughput);
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let done = measure(black_box(iterations));
            done.unwrap_or_else(|error| panic!("{name}: {error}")).elapsed
        });
    });
}
