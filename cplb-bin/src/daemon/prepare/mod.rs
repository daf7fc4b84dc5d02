//! Reads a configuration outside of the event loop, because its file system may not answer.

mod keys;
mod preflight;

use std::time::Duration;

use cplb_config::{Config, Severity};

use crate::cli::RunArgs;
use crate::exit::{Failure, Kind};
use crate::logging::ANSWER;
use crate::source;

use super::sender::EventSender;

/// The time after which a slow file system is reported.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A configuration that can be put into effect.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) config: Config,
    /// The warnings about it, which hold while it is in use.
    pub(crate) warnings: Vec<String>,
}

/// The progress of reading a file.
#[derive(Debug)]
pub(crate) enum Reading {
    /// Reading takes longer than [`TIMEOUT`], and continues.
    Slow,
    Done(Box<Result<Prepared, Failure>>),
}

/// Reads and checks the file of the command line. Blocks on the file system.
fn prepare(args: &RunArgs) -> Result<Prepared, Failure> {
    let mut loaded = source::load(&args.config.config)?;
    keys::read(&mut loaded.config)?;
    let (notes, warnings): (Vec<_>, Vec<_>) =
        loaded.warnings.iter().partition(|found| found.severity == Severity::Advice);
    for note in notes {
        tracing::info!(target: ANSWER, line = note.line(), "configuration: {}", note.message);
    }
    let located = warnings.into_iter().map(|warning| {
        tracing::warn!(target: ANSWER, line = warning.line(), "configuration: {}", warning.message);
        match warning.line() {
            0 => format!("configuration: {}", warning.message),
            line => format!("configuration, line {line}: {}", warning.message),
        }
    });
    let mut warnings: Vec<String> = located.collect();
    for warning in source::add_backends(&mut loaded, &args.backends) {
        tracing::warn!(target: ANSWER, "{warning}");
        warnings.push(warning);
    }
    warnings.extend(preflight::check(&loaded.config, args)?);
    Ok(Prepared { config: loaded.config, warnings })
}

/// Reads and checks the file in a thread of the pool. Calls `slow` once if that takes longer than [`TIMEOUT`].
pub(crate) async fn read(args: RunArgs, slow: impl FnOnce()) -> Result<Prepared, Failure> {
    let mut reading = tokio::task::spawn_blocking(move || prepare(&args));
    let read = match tokio::time::timeout(TIMEOUT, &mut reading).await {
        Ok(read) => read,
        Err(_) => {
            slow();
            reading.await
        }
    };
    read.unwrap_or_else(|error| Err(Failure::new(Kind::Internal, error)))
}

/// Starts [`read`] in a task that reports to the loop.
pub(crate) fn start(args: RunArgs, events: EventSender<Reading>) {
    tokio::spawn(async move {
        let slow = || _ = events.send(Reading::Slow);
        let result = read(args, slow).await;
        let _ = events.send(Reading::Done(Box::new(result)));
    });
}

/// The failure that is reported for a file that takes longer than [`TIMEOUT`].
pub(crate) fn slow_read(args: &RunArgs) -> Failure {
    Failure::new(
        Kind::NoInput,
        format_args!(
            "the configuration {} is not read within {} s: its file system does not answer",
            args.config.config.display(),
            TIMEOUT.as_secs()
        ),
    )
}
