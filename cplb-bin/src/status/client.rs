//! `cplb status`: reads the status from the daemon's socket and prints it.

use std::io::{self, IsTerminal, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::cli::StatusArgs;
use crate::exit::{Failure, Kind};
use crate::output::{self, Stdout};

use cplb_config::escaped;
use serde_json::Value;

use crate::logging::escape_json;

use super::render;
use super::schema::{SCHEMA, Status};

const TIMEOUT: Duration = Duration::from_secs(3);
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Moves the cursor home and clears the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// Documents of 255 instances and 10,000 backends are far smaller.
const MAX_BYTES: u64 = 16 << 20;

/// Runs the command.
pub(crate) fn run(args: &StatusArgs) -> Result<ExitCode, Failure> {
    if args.watch {
        return watch(args).map(|()| ExitCode::SUCCESS);
    }
    if args.check {
        let status = fetch(&args.socket.socket);
        let unknown = |failure: Failure| (UNKNOWN, format!("unknown: {}", failure.message()));
        let (code, line) = status.map_or_else(unknown, |status| verdict(&status));
        output::print(&escaped(&line))?;
        return Ok(ExitCode::from(code));
    }
    let status = fetch(&args.socket.socket)?;
    let text = if args.json {
        let text =
            serde_json::to_string_pretty(&status).map_err(|error| Failure::new(Kind::Internal, error))?;
        escape_json(&text)
    } else {
        table(status)
    };
    output::print(&text).map(|_| ExitCode::SUCCESS)
}

/// The exit code of `--check` without a status, as monitoring programs have it.
const UNKNOWN: u8 = 3;

/// The result of `--check`: the exit code, and one line.
fn verdict(status: &Status) -> (u8, String) {
    let Status { serving, degraded, .. } = status;
    match (serving.serving, degraded.as_slice()) {
        (true, []) => (0, "serving".to_owned()),
        (true, all) => (1, format!("serving, degraded: {}", all.join("; "))),
        (false, all) => {
            let reason = serving.reason.as_deref().unwrap_or("no evidence yet");
            let reasons: Vec<&str> = std::iter::once(reason).chain(all.iter().map(String::as_str)).collect();
            (2, format!("not serving: {}", reasons.join("; ")))
        }
    }
}

/// Prints the status every second, or the reason why there is none, until standard output is closed.
fn watch(args: &StatusArgs) -> Result<(), Failure> {
    let clear = if io::stdout().is_terminal() { CLEAR } else { "" };
    let mut last_failure = None;
    loop {
        let status = fetch(&args.socket.socket);
        let printed = if args.json {
            print_line(status, &mut last_failure)?
        } else {
            let text = status.map_or_else(|failure| format!("cplb: {failure}\n"), table);
            output::print(&format!("{clear}{text}"))?
        };
        if printed == Stdout::Closed || output::wait(WATCH_INTERVAL) == Stdout::Closed {
            return Ok(());
        }
    }
}

/// Prints one document. A failure goes to standard error, once for as long as it lasts.
fn print_line(status: Result<Status, Failure>, last_failure: &mut Option<String>) -> Result<Stdout, Failure> {
    match status {
        Ok(status) => {
            *last_failure = None;
            let text = serde_json::to_string(&status).map_err(|error| Failure::new(Kind::Internal, error))?;
            output::print(&escape_json(&text))
        }
        Err(failure) => {
            let text = failure.to_string();
            if last_failure.as_ref() != Some(&text) {
                output::print_error(format_args!("cplb: {text}"));
            }
            *last_failure = Some(text);
            Ok(Stdout::Open)
        }
    }
}

/// The status as a table, with escaped texts: they quote files, certificates, peers and API servers.
fn table(status: Status) -> String {
    let printable = serde_json::to_value(&status).map(printable).and_then(serde_json::from_value);
    render::table(&printable.unwrap_or(status))
}

/// The value with every text escaped.
fn printable(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(escaped(&text).into_owned()),
        Value::Array(all) => Value::Array(all.into_iter().map(printable).collect()),
        Value::Object(all) => {
            let entry = |(key, value): (String, Value)| (escaped(&key).into_owned(), printable(value));
            Value::Object(all.into_iter().map(entry).collect())
        }
        other => other,
    }
}

/// Reads the status from the socket at `path`.
pub(crate) fn fetch(path: &Path) -> Result<Status, Failure> {
    let text = read(path).map_err(|error| connect_failure(path, &error))?;
    let status: Status = serde_json::from_slice(&text).map_err(|error| {
        Failure::new(
            Kind::Unavailable,
            format_args!(
                "the reply at {} is not a status of cplb: {}",
                path.display(),
                escaped(&error.to_string())
            ),
        )
    })?;
    if status.schema != SCHEMA {
        let message = format!(
            "the daemon at {} has status schema {}, this cplb has {SCHEMA}",
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

pub(crate) fn connect_failure(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Failure::new(Kind::Unavailable, format_args!("no cplb daemon answers at {path}"))
                .help("start it with `cplb run --config FILE`, or name its socket with --socket")
        }
        io::ErrorKind::PermissionDenied => {
            Failure::new(Kind::Permission, format_args!("no permission to open {path}"))
                .help("run as root or, for what changes nothing, as a member of the group of --socket-group")
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::new(
            Kind::Temporary,
            format_args!("the daemon at {path} does not answer within {} s", TIMEOUT.as_secs()),
        )
        .help("it may be stopped (SIGSTOP) or starved of CPU"),
        _ => Failure::new(Kind::System, format_args!("cannot read {path}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use cplb_config::is_unprintable;

    use super::super::schema::{Backend, Service, Serving};
    use super::*;

    #[test]
    fn the_check_tells_whether_the_node_serves_and_is_degraded() {
        let check = |serving, reason: Option<&str>, degraded: &[&str]| {
            let serving = Serving { serving, reason: reason.map(str::to_owned), ..Serving::default() };
            let degraded = degraded.iter().map(|text| (*text).to_owned()).collect();
            verdict(&Status { serving, degraded, ..Status::default() })
        };
        assert_eq!(check(true, None, &[]), (0, "serving".to_owned()));
        assert_eq!(check(true, None, &["a", "b"]), (1, "serving, degraded: a; b".to_owned()));
        let down = "no healthy backend";
        assert_eq!(check(false, Some(down), &["a"]), (2, "not serving: no healthy backend; a".to_owned()));
    }

    const HOSTILE: &str = "x\n\u{1b}[2Jserving for 9 d\u{202e}";

    fn hostile() -> Status {
        let backend = Backend { address: HOSTILE.into(), reason: Some(HOSTILE.into()), ..Backend::default() };
        let service = Service { name: HOSTILE.into(), backends: vec![backend], ..Service::default() };
        Status { degraded: vec![HOSTILE.into()], services: vec![service], ..Status::default() }
    }

    #[test]
    fn quoted_texts_cannot_add_lines_to_the_table() {
        let (text, plain) = (table(hostile()), table(Status { degraded: vec!["x".into()], ..hostile() }));
        assert!(!text.contains(|c| c != '\n' && is_unprintable(c)), "{text:?}");
        assert_eq!(text.lines().count(), plain.lines().count(), "{text}");
    }

    #[test]
    fn the_json_document_is_printable_and_parses_to_the_same() {
        let text = escape_json(&serde_json::to_string_pretty(&hostile()).unwrap());
        assert!(!text.contains(|c| c != '\n' && is_unprintable(c)), "{text:?}");
        let again: Status = serde_json::from_str(&text).unwrap();
        assert_eq!(again.degraded, [HOSTILE]);
    }
}
