//! `cplb status`.

use std::io::{self, IsTerminal, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::cli::StatusArgs;
use crate::exit::{Failure, Kind};
use crate::output::{self, Reader};

use super::render;
use super::schema::{SCHEMA, Status};

const TIMEOUT: Duration = Duration::from_secs(3);
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Moves the cursor home and clears the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// 255 instances and 10,000 backends stay well below.
const MAX_BYTES: u64 = 16 << 20;

/// Runs the command.
pub(crate) fn run(args: &StatusArgs) -> Result<(), Failure> {
    if args.watch {
        return watch(args);
    }
    let status = fetch(&args.socket.socket)?;
    let text = if args.json {
        serde_json::to_string_pretty(&status).map_err(|error| Failure::new(Kind::Internal, error))?
    } else {
        render::table(&status)
    };
    output::print(&text).map(|_| ())
}

/// Shows what the daemon says, or why it says nothing, until nobody reads it any more.
fn watch(args: &StatusArgs) -> Result<(), Failure> {
    let clear = if io::stdout().is_terminal() { CLEAR } else { "" };
    let mut told = None;
    loop {
        let status = fetch(&args.socket.socket);
        let printed = if args.json {
            print_line(status, &mut told)?
        } else {
            let text =
                status.map_or_else(|failure| format!("cplb: {failure}\n"), |status| render::table(&status));
            output::print(&format!("{clear}{text}"))?
        };
        if printed == Reader::Gone || output::wait(WATCH_INTERVAL) == Reader::Gone {
            return Ok(());
        }
    }
}

/// One document; failures go to standard error, each once for as long as it lasts.
fn print_line(status: Result<Status, Failure>, told: &mut Option<String>) -> Result<Reader, Failure> {
    match status {
        Ok(status) => {
            *told = None;
            let text = serde_json::to_string(&status).map_err(|error| Failure::new(Kind::Internal, error))?;
            output::print(&text)
        }
        Err(failure) => {
            let text = failure.to_string();
            if told.as_ref() != Some(&text) {
                output::complain(format_args!("cplb: {text}"));
            }
            *told = Some(text);
            Ok(Reader::Listens)
        }
    }
}

/// Asks the daemon at `path` once.
pub(crate) fn fetch(path: &Path) -> Result<Status, Failure> {
    let text = read(path).map_err(|error| explain(path, &error))?;
    let status: Status = serde_json::from_slice(&text).map_err(|error| {
        Failure::new(
            Kind::Unavailable,
            format_args!("what answers at {} is not cplb: {error}", path.display()),
        )
    })?;
    if status.schema != SCHEMA {
        let message = format!(
            "the daemon at {} speaks status schema {}, this cplb {SCHEMA}",
            path.display(),
            status.schema
        );
        return Err(Failure::new(Kind::Unavailable, message).help("use the cplb binary that the daemon runs"));
    }
    Ok(status)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut text = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

fn explain(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Failure::new(Kind::Unavailable, format_args!("no cplb daemon answers at {path}"))
                .help("start it with `cplb run --config FILE`, or name its socket with --socket")
        }
        io::ErrorKind::PermissionDenied => {
            Failure::new(Kind::Permission, format_args!("may not open {path}")).help("run as root")
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::new(
            Kind::Temporary,
            format_args!("the daemon at {path} does not answer within {} s", TIMEOUT.as_secs()),
        )
        .help("it may be stopped (SIGSTOP) or starved of CPU"),
        _ => Failure::new(Kind::System, format_args!("cannot read {path}: {error}")),
    }
}
