//! The proxy beside HAProxy: bulk throughput, requests, connections, memory of idle pairs. See the README.
//!
//! Without arguments: the comparison, then criterion's tracking of the proxy alone. `--peers` omits the tracking,
//! `--quick` makes the comparison short and rough, `--test` only checks that everything runs. With any other argument
//! the comparison is omitted, and the arguments are criterion's.
//!
//! The client is this process. The server, the proxy and its peers are separate processes; the first two are this
//! program again, with a role as their first argument.

mod client;
mod compare;
mod process;
mod proxy;
mod report;
mod server;
mod subject;
mod track;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The extent of the measurements.
#[derive(Clone, Copy, Debug)]
struct Effort {
    rounds: usize,
    /// Duration of one measurement of speed, after its warm-up.
    slice: Duration,
    memory_rounds: usize,
    idle_pairs: usize,
}

const FULL: Effort =
    Effort { rounds: 9, slice: Duration::from_millis(700), memory_rounds: 3, idle_pairs: 10_000 };
const QUICK: Effort =
    Effort { rounds: 3, slice: Duration::from_millis(300), memory_rounds: 1, idle_pairs: 2_000 };
const TEST: Effort =
    Effort { rounds: 1, slice: Duration::from_millis(50), memory_rounds: 1, idle_pairs: 100 };

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.first().map(String::as_str) {
        Some(server::ROLE) => server::run(),
        Some(proxy::ROLE) => proxy::run(&args[1..]),
        _ => bench(&args),
    };
    if let Err(error) = result {
        eprintln!("relay: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn bench(args: &[String]) -> Result<()> {
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let ours = ["--bench", "--peers", "--quick", "--test"];
    let criterions = args.iter().any(|arg| !ours.contains(&arg.as_str()));
    let effort = match () {
        // `cargo bench` passes this argument; criterion, too, runs as a test without it.
        () if has("--test") || !has("--bench") => TEST,
        () if has("--quick") => QUICK,
        () => FULL,
    };
    let idle_pairs = process::allow_descriptors(effort.idle_pairs)?;
    if !criterions {
        compare::run(Effort { idle_pairs, ..effort })?;
    }
    if !has("--peers") {
        track::run()?;
    }
    Ok(())
}
