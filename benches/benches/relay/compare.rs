//! The comparison: rounds in which every subject is measured in turn.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use crate::client::{Client, Direction, Until};
use crate::process::Process;
use crate::report::{Environment, Figures, Metric};
use crate::server;
use crate::subject::{Kind, Setup, Subject};
use crate::{Effort, Result};

/// Pause between two measurements, in which the connections of the first are closed.
const CLOSE_PAUSE: Duration = Duration::from_millis(30);
/// Pause before memory is read.
const MEMORY_PAUSE: Duration = Duration::from_millis(300);
/// Connections opened and closed before the memory of a proxy is read for the first time.
const WARM_UP_CONNECTIONS: u64 = 200;

/// The server and its addresses.
pub(crate) fn start_server() -> Result<(Process, Vec<SocketAddr>)> {
    let (process, first) = Process::in_role(server::ROLE, &[])?;
    let addresses = server::ADDRESSES.map(|address| (address, first.port()).into());
    Ok((process, addresses.to_vec()))
}

pub(crate) fn run(effort: Effort) -> Result<()> {
    let (_server, backends) = start_server()?;
    let setup = Setup::new(backends, effort.idle_pairs)?;
    let client = Client::new()?;
    let congestion = client.congestion(&setup.backends)?;
    let environment = Environment::read(setup.haproxy_version()?, congestion)?;
    let mut figures = Figures::default();
    {
        let subjects = Kind::ALL.iter().map(|&kind| setup.start(kind)).collect::<Result<Vec<_>>>()?;
        for round in 0..effort.rounds {
            eprintln!("speed, round {} of {}", round + 1, effort.rounds);
            // Each subject is the first one equally often.
            let order = (0..subjects.len()).map(|i| &subjects[(i + round) % subjects.len()]);
            let order: Vec<_> = order.collect();
            measure_speed(&client, &order, effort.slice, &mut figures)?;
        }
    }
    for round in 0..effort.memory_rounds {
        eprintln!("memory, round {} of {}", round + 1, effort.memory_rounds);
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Direct) {
            let bytes = measure_memory(&client, &setup.start(kind)?, effort.idle_pairs)?;
            figures.add(Metric::Memory, kind, bytes);
        }
    }
    environment.print(&effort);
    figures.print(&effort);
    Ok(())
}

fn measure_speed(
    client: &Client,
    subjects: &[&Subject],
    slice: Duration,
    figures: &mut Figures,
) -> Result<()> {
    let until = Until::Time(slice);
    let bulk = [
        (Direction::Down, Metric::Download, Metric::DownloadCpu),
        (Direction::Up, Metric::Upload, Metric::UploadCpu),
    ];
    for (direction, speed, cpu) in bulk {
        for subject in subjects {
            sleep(CLOSE_PAUSE);
            let used = || subject.cpu();
            let (done, before) = client.bulk(&subject.addresses, direction, slice / 4, until, used)?;
            figures.add(speed, subject.kind, done.rate() * 8.0 / 1e9);
            add_cpu(figures, cpu, subject, before?, done.count as f64 / 1e9)?;
        }
    }
    for subject in subjects {
        sleep(CLOSE_PAUSE);
        let before = subject.cpu()?;
        let mut done = client.requests(&subject.addresses, until)?;
        figures.add(Metric::Requests, subject.kind, done.rate() / 1e3);
        figures.add(Metric::Latency, subject.kind, done.p99().as_secs_f64() * 1e3);
        add_cpu(figures, Metric::RequestCpu, subject, before, done.count as f64 / 1e6)?;
    }
    for subject in subjects {
        sleep(CLOSE_PAUSE);
        let before = subject.cpu()?;
        let done = client.connections(&subject.addresses, until)?;
        figures.add(Metric::Connections, subject.kind, done.rate() / 1e3);
        add_cpu(figures, Metric::ConnectionCpu, subject, before, done.count as f64 / 1e6)?;
    }
    Ok(())
}

/// Processor time since `before`, in seconds for each of `units`.
fn add_cpu(
    figures: &mut Figures,
    metric: Metric,
    subject: &Subject,
    before: Option<f64>,
    units: f64,
) -> Result<()> {
    if let (Some(before), Some(after)) = (before, subject.cpu()?) {
        figures.add(metric, subject.kind, (after - before) / units);
    }
    Ok(())
}

/// Bytes for each pair that is idle after its first request, in a process without other connections.
fn measure_memory(client: &Client, subject: &Subject, pairs: usize) -> Result<f64> {
    let process = subject.process.as_ref().ok_or("there is no process")?;
    client.connections(&subject.addresses, Until::Count(WARM_UP_CONNECTIONS))?;
    sleep(MEMORY_PAUSE);
    let before = process.memory()?;
    let idle = client.idle(&subject.addresses, pairs)?;
    sleep(MEMORY_PAUSE);
    let after = process.memory()?;
    if idle.len() != pairs {
        return Err("some pairs are missing".into());
    }
    Ok((after - before) / pairs as f64)
}
