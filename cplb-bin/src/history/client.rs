//! `cplb history`: asks the daemon, or reads the file of one that does not run.

use std::path::Path;
use std::sync::Arc;

use cplb_config::escaped;

use crate::cli::HistoryArgs;
use crate::control::{self, Request};
use crate::exit::{Failure, Kind};
use crate::logging::escape_json;
use crate::output;

use super::{Document, SCHEMA, WallTime, file, render, since, terms};

/// Runs the command.
pub(crate) fn run(args: &HistoryArgs) -> Result<(), Failure> {
    let since = args.since.as_deref().map(|text| since::parse(text, WallTime::now()));
    let since = since.transpose().map_err(|why| {
        Failure::new(
            Kind::Usage,
            format_args!("--since {}: {why}", args.since.as_deref().unwrap_or_default()),
        )
    })?;
    let since = since.unwrap_or_default();
    let mut document = fetch(args)?;
    let entries: Vec<_> = document.entries.iter().cloned().map(Arc::new).collect();
    document.terms = terms(&entries);
    let text = if args.json {
        let document = document.since(since);
        let text =
            serde_json::to_string_pretty(&document).map_err(|error| Failure::new(Kind::Internal, error))?;
        escape_json(&text)
    } else {
        let text = render::text(&document, args.all, since);
        text.lines().map(|line| format!("{}\n", escaped(line))).collect()
    };
    if text.is_empty() {
        output::print_error("cplb: no entries in that time");
        return Ok(());
    }
    output::print(&text).map(drop)
}

fn fetch(args: &HistoryArgs) -> Result<Document, Failure> {
    let path = control::socket_path(&args.socket.socket);
    match control::client::ask(&path, &Request::History) {
        Ok(outcome) => match outcome.history {
            Some(document) => checked(*document),
            None => Err(Failure::new(Kind::Permission, outcome.refused.unwrap_or_default())),
        },
        Err(failure) if failure.kind() == Kind::Unavailable => from_file(&args.state_dir, &failure),
        Err(failure) => Err(failure),
    }
}

fn checked(document: Document) -> Result<Document, Failure> {
    if document.schema == SCHEMA {
        return Ok(document);
    }
    let why = format!("the daemon's history has schema {}, this cplb has {SCHEMA}", document.schema);
    Err(Failure::new(Kind::Unavailable, why).help("use the cplb binary that the daemon runs"))
}

/// The history in the file of a daemon that does not run; without a file, the failure to reach the daemon.
fn from_file(state_dir: &Path, failure: &Failure) -> Result<Document, Failure> {
    match file::peek(state_dir) {
        Ok(content) => {
            output::print_error(format_args!("cplb: {}; this is what it has left", failure.message()));
            Ok(Document { schema: SCHEMA, entries: content.entries, ..Document::default() })
        }
        Err(why) => {
            let directory = state_dir.display();
            let text = format!("{}, and has left no history in {directory}: {why}", failure.message());
            Err(Failure::new(failure.kind(), text)
                .help("start it with `cplb run --config FILE`, or name its socket with --socket or its directory with --state-dir"))
        }
    }
}
