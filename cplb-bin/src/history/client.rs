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
    let since = since.transpose().map_err(|why| Failure::new(Kind::Usage, format_args!("--since: {why}")))?;
    let document = fetch(args)?;
    let document = selected(document, since);
    let text = if args.json {
        let text =
            serde_json::to_string_pretty(&document).map_err(|error| Failure::new(Kind::Internal, error))?;
        escape_json(&text)
    } else {
        let text = render::text(&document, args.all);
        text.lines().map(|line| format!("{}\n", escaped(line))).collect()
    };
    if text.is_empty() {
        output::print_error("cplb: no entries in that time");
        return Ok(());
    }
    output::print(&text).map(drop)
}

/// The document with its terms, without what was over before `since`.
fn selected(mut document: Document, since: Option<WallTime>) -> Document {
    let entries: Vec<_> = document.entries.into_iter().map(Arc::new).collect();
    document.terms = terms(&entries);
    let since = since.unwrap_or_default();
    let next = |index: usize| {
        let term = &document.terms[index];
        let later = document.terms[index + 1..].iter().find(|later| later.vrid == term.vrid);
        term.end.or_else(|| Some(later?.begin))
    };
    let lasts: Vec<bool> =
        (0..document.terms.len()).map(|index| next(index).is_none_or(|end| end >= since)).collect();
    let mut lasts = lasts.into_iter();
    document.terms.retain(|_| lasts.next().unwrap_or(true));
    document.entries =
        entries.into_iter().filter(|entry| entry.time >= since).map(Arc::unwrap_or_clone).collect();
    document
}

fn fetch(args: &HistoryArgs) -> Result<Document, Failure> {
    let path = control::socket_path(&args.socket.socket);
    match control::client::ask(&path, &Request::History) {
        Ok(outcome) => match outcome.history {
            Some(document) => checked(*document),
            None => Err(Failure::new(Kind::Permission, outcome.refused.unwrap_or_default())),
        },
        // Its file tells what it knew when it ended.
        Err(failure) if failure.kind() == Kind::Unavailable && args.state_dir.is_dir() => {
            let document = from_file(&args.state_dir)?;
            output::print_error(format_args!("cplb: {}; this is what it has left", failure.message()));
            Ok(document)
        }
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

fn from_file(state_dir: &Path) -> Result<Document, Failure> {
    let content = file::peek(state_dir).map_err(|why| {
        let text = format!("the history in {} cannot be read: {why}", state_dir.display());
        Failure::new(Kind::Unavailable, text)
    })?;
    Ok(Document { schema: SCHEMA, entries: content.entries, ..Document::default() })
}
