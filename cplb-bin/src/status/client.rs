//! `cplb status`.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::cli::StatusArgs;
use crate::exit::{Failure, Kind};

use super::render;
use super::schema::{SCHEMA, Status};

const TIMEOUT: Duration = Duration::from_secs(3);
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// 255 instances and 10,000 backends stay well below.
const MAX_BYTES: u64 = 16 << 20;

/// Runs the command.
pub(crate) fn run(args: &StatusArgs) -> Result<(), Failure> {
    loop {
        let status = fetch(&args.socket.socket)?;
        let text = if args.json {
            let json = if args.watch {
                serde_json::to_string(&status)
            } else {
                serde_json::to_string_pretty(&status)
            };
            json.map_err(|error| Failure::new(Kind::Internal, error))?
        } else {
            let clear = if args.watch { "\x1b[H\x1b[2J" } else { "" };
            format!("{clear}{}", render::table(&status))
        };
        match writeln!(io::stdout(), "{}", text.trim_end()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Failure::new(Kind::System, format_args!("cannot write: {error}"))),
            Ok(()) => {}
        }
        if !args.watch {
            return Ok(());
        }
        std::thread::sleep(WATCH_INTERVAL);
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
