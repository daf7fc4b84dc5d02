//! From text to configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Errors, Location, Report, Severity, gathered, masked, secret_lines};
use crate::document::{read, secrets, select};
use crate::format::Format;
use crate::model::Config;
use crate::walk::{Finding, Reporter};
use crate::yaml::{self, Span};

/// The largest document that is read: 1 MiB. Callers need not read more than one byte beyond it.
pub const MAX_BYTES: usize = 1 << 20;

/// A valid configuration and the findings about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration, with every default filled in.
    pub config: Config,
    /// Settings that work but may not be meant, in order of place. No [`Severity::Error`] is among them.
    pub warnings: Vec<Diagnostic>,
    /// The document it came from.
    pub document: Document,
}

/// A document that was read, to place further findings in. Its passwords are masked.
#[derive(Clone)]
pub struct Document {
    /// The file's name.
    pub file: String,
    /// Its kind.
    pub format: Format,
    source: Arc<str>,
    locations: BTreeMap<String, Location>,
}

/// Reads a k0s, k0sctl or native document from `text`; `file` is its name in messages.
///
/// A file may hold several documents (`---`); the one of a known kind is read. In a file for k0sctl, `ClusterConfig`
/// documents are merged into the `spec.k0s.config` of the `Cluster`, as k0sctl does: a value that is there already
/// stays.
///
/// # Errors
/// All mistakes of the document at once.
pub fn load(text: &str, file: &str) -> Result<Loaded, Errors> {
    load_bytes(text.as_bytes(), file)
}

/// [`load`] for bytes that may not be UTF-8.
///
/// # Errors
/// As [`load`], and if the bytes are no UTF-8.
pub fn load_bytes(bytes: &[u8], file: &str) -> Result<Loaded, Errors> {
    if bytes.len() > MAX_BYTES {
        let message = format!("the file has more than {MAX_BYTES} bytes (1 MiB)");
        return Err(whole_file(file, "too-large", message, "this is no configuration file; check the path"));
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return Err(not_utf8(bytes, error.valid_up_to(), file)),
    };
    let documents = yaml::parse(text).map_err(|error| syntax_error(text, file, error))?;
    let source: Arc<str> = masked(text, &secrets(&documents)).into();
    let out = Reporter::new(&source);
    let loaded =
        select(&documents, &out).and_then(|(format, root)| Some((format, read(format, &root, &out)?)));
    let locations = out.locations();
    let diagnostics = out.finish();
    match loaded {
        Some((format, config)) if !diagnostics.iter().any(|d| d.severity == Severity::Error) => {
            let document = Document { file: file.to_owned(), format, source, locations };
            Ok(Loaded { config, warnings: diagnostics, document })
        }
        _ => Err(Errors::new(Report::new(file, source, diagnostics))),
    }
}

impl Document {
    /// A report of findings about this document; those that name only a path are given the place of that path. Equal
    /// warnings become one with their lines.
    #[must_use]
    pub fn report(&self, mut diagnostics: Vec<Diagnostic>) -> Report {
        for diagnostic in diagnostics.iter_mut().filter(|diagnostic| diagnostic.location.is_none()) {
            let Some(location) = self.locate(&diagnostic.path) else { continue };
            diagnostic.location = Some(location);
            let text = self.source.get(location.offset..location.offset + location.len);
            if diagnostic.text.is_empty() {
                text.unwrap_or_default().clone_into(&mut diagnostic.text);
            }
        }
        Report::new(&self.file, Arc::clone(&self.source), gathered(diagnostics))
    }

    /// Returns whether the file has a value at this path.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.locations.contains_key(path)
    }

    /// The place of a path in the file, or of the nearest value around it.
    fn locate(&self, path: &str) -> Option<Location> {
        let mut path = path;
        loop {
            if let Some(location) = self.locations.get(path) {
                return Some(*location);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document")
            .field("file", &self.file)
            .field("format", &self.format)
            .finish_non_exhaustive()
    }
}

fn whole_file(file: &str, rule: &'static str, message: String, help: &str) -> Errors {
    let out = Reporter::new("");
    out.report(Severity::Error, "", None, Finding::new(rule, message, help));
    Errors::new(Report::new(file, Arc::from(""), out.finish()))
}

fn syntax_error(text: &str, file: &str, error: yaml::SyntaxError) -> Errors {
    // Without a tree, passwords are found by the form of their lines.
    let source: Arc<str> = masked(text, &secret_lines(text)).into();
    let out = Reporter::new(&source);
    out.error("", error.span, Finding::new("syntax", error.message, error.help));
    let diagnostics = out.finish();
    Errors::new(Report::new(file, source, diagnostics))
}

fn not_utf8(bytes: &[u8], valid: usize, file: &str) -> Errors {
    let before = String::from_utf8_lossy(&bytes[..valid]);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let span = Span {
        start: valid,
        end: valid,
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    };
    let text = String::from_utf8_lossy(bytes);
    let source: Arc<str> = masked(&text, &secret_lines(&text)).into();
    let out = Reporter::new(&source);
    let message =
        format!("the byte 0x{:02x} here is not UTF-8", bytes.get(valid).copied().unwrap_or_default());
    out.error("", span, Finding::new("encoding", message, "save the file as UTF-8"));
    let diagnostics = out.finish();
    Errors::new(Report::new(file, source, diagnostics))
}
