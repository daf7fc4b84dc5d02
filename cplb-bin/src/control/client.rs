//! The commands that ask a running daemon to act.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use cplb_config::escaped;

use crate::cli::{ConnectionsArgs, ControlArgs, DrainArgs, HandoverArgs, LogLevelArgs, UndrainArgs};
use crate::exit::{Failure, Kind, escaped_lines};
use crate::logging::escape_json;
use crate::output;
use crate::status::client::connect_failure;

use super::{Connections, Drain, Line, Move, Outcome, Request, Selection, Undrain, socket_path};

/// The longest time between two lines of a daemon that works: it sends one each second.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Runs `cplb handover`.
pub(crate) fn hand_over(args: &HandoverArgs) -> Result<(), Failure> {
    let request = Request::Handover { instance: args.instance.clone(), to: args.to.clone() };
    run(&args.control, &request)
}

/// Runs `cplb standby`.
pub(crate) fn stand_by(args: &ControlArgs) -> Result<(), Failure> {
    run(args, &Request::Standby)
}

/// Runs `cplb active`.
pub(crate) fn end_standby(args: &ControlArgs) -> Result<(), Failure> {
    run(args, &Request::Active)
}

/// Runs `cplb reload`.
pub(crate) fn reload(args: &ControlArgs) -> Result<(), Failure> {
    run(args, &Request::Reload)
}

/// Runs `cplb log-level`.
pub(crate) fn set_log_level(args: &LogLevelArgs) -> Result<(), Failure> {
    run(&args.control, &Request::LogLevel(args.level.clone()))
}

/// Runs `cplb connections`.
pub(crate) fn list_connections(args: &ConnectionsArgs) -> Result<(), Failure> {
    let ConnectionsArgs { backend, service, client, control } = args;
    let selection = Selection { backend: backend.clone(), service: service.clone(), client: *client };
    let outcome = ask(&socket_path(&control.socket.socket), &Request::Connections(selection))?;
    let Some(found) = outcome.connections else {
        let kind = kind(&outcome);
        return Err(Failure::new(kind, outcome.refused.unwrap_or_default()));
    };
    let text = if control.json {
        let text =
            serde_json::to_string_pretty(&found).map_err(|error| Failure::new(Kind::Internal, error))?;
        escape_json(&text)
    } else {
        table(&found)
    };
    output::print(&text).map(drop)
}

fn table(found: &Connections) -> String {
    let rows: Vec<[String; 4]> = found
        .connections
        .iter()
        .map(|it| {
            let backend = it.backend.map_or_else(|| "connecting".to_owned(), |backend| backend.to_string());
            [it.client.to_string(), it.to.to_string(), escaped(&it.service).into_owned(), backend]
        })
        .collect();
    let head = ["CLIENT", "TO", "SERVICE", "BACKEND"].map(str::to_owned);
    let width =
        |column: usize| rows.iter().chain([&head]).map(|row| row[column].len()).max().unwrap_or_default();
    let [a, b, c] = [width(0), width(1), width(2)];
    let mut out = String::new();
    for [client, to, service, backend] in std::iter::once(&head).chain(&rows) {
        let _ = writeln!(out, "{client:a$}  {to:b$}  {service:c$}  {backend}");
    }
    let more = found.total.saturating_sub(rows.len());
    let _ = match more {
        0 => writeln!(out, "{} open", found.total),
        _ => writeln!(
            out,
            "{} open, {more} of them not shown: select a backend, service or client",
            found.total
        ),
    };
    out
}

/// Runs `cplb drain`.
pub(crate) fn drain(args: &DrainArgs) -> Result<(), Failure> {
    let DrainArgs { target, duration, wait, timeout, force } = args;
    let request = Request::Drain(Drain {
        backend: target.backend.clone(),
        service: target.service.clone(),
        for_seconds: duration.map(|duration| duration.as_secs()),
        wait: *wait,
        timeout_seconds: timeout.map(|timeout| timeout.as_secs()),
        force: *force,
    });
    run(&target.control, &request)
}

/// Runs `cplb undrain`.
pub(crate) fn undrain(UndrainArgs { target }: &UndrainArgs) -> Result<(), Failure> {
    let request = Undrain { backend: target.backend.clone(), service: target.service.clone() };
    run(&target.control, &Request::Undrain(request))
}

fn run(args: &ControlArgs, request: &Request) -> Result<(), Failure> {
    let path = socket_path(&args.socket.socket);
    let outcome = ask(&path, request)?;
    if args.json {
        let text =
            serde_json::to_string_pretty(&outcome).map_err(|error| Failure::new(Kind::Internal, error))?;
        output::print(&escape_json(&text))?;
    } else {
        let text = text(&outcome);
        if !text.is_empty() {
            output::print(&text)?;
        }
    }
    match failure(&outcome) {
        Some(why) => Err(Failure::new(kind(&outcome), escaped_lines(&why))),
        None => Ok(()),
    }
}

/// Asks the daemon at this path, and waits for the result.
pub(crate) fn ask(path: &Path, request: &Request) -> Result<Outcome, Failure> {
    let failed = |error: io::Error| connect_failure(path, &error);
    let mut stream = UnixStream::connect(path).map_err(failed)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(failed)?;
    let mut text = serde_json::to_vec(request).map_err(|error| Failure::new(Kind::Internal, error))?;
    text.push(b'\n');
    stream.write_all(&text).map_err(failed)?;
    let mut last_progress = String::new();
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(MAX_BYTES).read_line(&mut line).map_err(failed)? == 0 {
            break;
        }
        match serde_json::from_str(&line) {
            Ok(Line::Working) => {}
            Ok(Line::Progress(text)) => {
                if text != last_progress {
                    output::print_error(format_args!("cplb: {}", escaped(&text)));
                }
                last_progress = text;
            }
            Ok(Line::Done(outcome)) => return Ok(outcome),
            Err(error) => {
                let why = format!("the answer at {} is not understood: {error}", path.display());
                return Err(
                    Failure::new(Kind::Unavailable, why).help("use the cplb binary that the daemon runs")
                );
            }
        }
    }
    Err(Failure::new(Kind::Temporary, "the daemon ended before it answered"))
}

/// The kind of failure that the daemon has named.
fn kind(outcome: &Outcome) -> Kind {
    let kinds = [Kind::Usage, Kind::Config, Kind::NoInput, Kind::Permission];
    let named = outcome.exit_code.and_then(|code| kinds.into_iter().find(|kind| *kind as u8 == code));
    named.unwrap_or(Kind::Temporary)
}

/// The text for standard output: what was done.
fn text(outcome: &Outcome) -> String {
    let done = outcome.moves.iter().filter(|moved| moved.refused.is_none()).map(moved);
    let lines = outcome.message.iter().map(|message| escaped_lines(message)).chain(done);
    lines.collect::<Vec<_>>().join("\n")
}

/// The text for standard error: what was not done, and why.
fn failure(outcome: &Outcome) -> Option<String> {
    let refused = outcome.moves.iter().filter_map(|moved| {
        let why = moved.refused.as_deref()?;
        let still = if moved.to.is_empty() { String::new() } else { format!(", still on {}", moved.to) };
        Some(format!("{} not moved{still}: {why}", name(moved)))
    });
    let lines: Vec<String> = outcome.refused.clone().into_iter().chain(refused).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn name(moved: &Move) -> String {
    let addresses: Vec<String> = moved.addresses.iter().map(IpAddr::to_string).collect();
    format!("{} (virtual router {})", addresses.join(", "), moved.vrid)
}

fn moved(moved: &Move) -> String {
    let node =
        |name: &str| if name.is_empty() { "an unknown node".to_owned() } else { escaped(name).into_owned() };
    let (from, to) = (node(&moved.from), node(&moved.to));
    if moved.kept_seconds.is_none() {
        return format!("{}: {to} has them already", name(moved));
    }
    let milliseconds = |seconds: Option<f64>| seconds.map(|seconds| format!("{:.1} ms", seconds * 1e3));
    let blackout = milliseconds(moved.blackout_seconds).unwrap_or_else(|| "not known".to_owned());
    let mut text = format!("{} moved from {from} to {to}; blackout {blackout}", name(moved));
    if let (Some(kept), Some(taken)) = (milliseconds(moved.kept_seconds), milliseconds(moved.taken_seconds)) {
        text += &format!(
            "\n  after the resignation {from} held them for {kept}, and {to} had them after {taken}"
        );
    }
    if let Some(remark) = &moved.remark {
        text += &format!("\n  {to}: {}", escaped(remark));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Move {
        Move {
            vrid: 51,
            addresses: vec![[10, 0, 0, 100].into()],
            from: "node-1".to_owned(),
            to: "node-2".to_owned(),
            kept_seconds: Some(0.035),
            taken_seconds: Some(0.0008),
            blackout_seconds: Some(0.0),
            ..Move::default()
        }
    }

    fn outcome(moved: Move) -> Outcome {
        Outcome { moves: vec![moved], ..Outcome::default() }
    }

    #[test]
    fn a_move_is_shown_with_both_ends() {
        let shown = text(&outcome(example()));
        assert_eq!(
            shown,
            "10.0.0.100 (virtual router 51) moved from node-1 to node-2; blackout 0.0 ms\n  after the resignation node-1 \
             held them for 35.0 ms, and node-2 had them after 0.8 ms"
        );
        assert_eq!(failure(&outcome(example())), None);
    }

    #[test]
    fn a_refusal_names_the_holder_and_the_reason() {
        let (refused, to) = (Some("node-2 cannot serve: x".to_owned()), "node-1".to_owned());
        let refused = Move { refused, to, ..example() };
        assert_eq!(text(&outcome(refused.clone())), "");
        assert_eq!(
            failure(&outcome(refused.clone())).unwrap(),
            "10.0.0.100 (virtual router 51) not moved, still on node-1: node-2 cannot serve: x"
        );
        let nowhere = Move { to: String::new(), ..refused };
        assert!(failure(&outcome(nowhere)).unwrap().contains("not moved: node-2"));
    }

    #[test]
    fn unknown_times_are_shown_as_unknown() {
        let remark = Some("not in the group channel".to_owned());
        let shown = text(&outcome(Move { taken_seconds: None, blackout_seconds: None, remark, ..example() }));
        assert!(shown.contains("blackout not known") && shown.contains("node-2: not in"), "{shown}");
        let shown = text(&outcome(Move { kept_seconds: None, ..example() }));
        assert!(shown.contains("node-2 has them already"), "{shown}");
    }
}
