//! Findings about a document: the rule, the place, and the correction.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceSpan};

use crate::escape::{blanked, escaped};
use crate::secret::{is_secret, names_secret};
use crate::yaml::Span;

/// The severity of a [`Diagnostic`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; nothing needs doing.
    Advice,
    /// Works, but probably not as intended.
    Warning,
    /// The document is refused.
    Error,
}

/// A range of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// First byte, from 0.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

/// One finding about a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The severity.
    pub severity: Severity,
    /// Stable name of the rule, such as `duplicate-vrid`.
    pub rule: &'static str,
    /// The place in the configuration: a path such as `vrrpInstances[0].authPass`, relative to the load balancing
    /// section for what is inside it. Empty if the whole file is meant.
    pub path: String,
    /// The place in the file; absent for findings about the system rather than the text.
    pub location: Option<Location>,
    /// The offending text, as written; passwords are masked.
    pub text: String,
    /// The problem.
    pub message: String,
    /// The correction.
    pub help: String,
}

/// Diagnostics together with the document that they are about.
///
/// The text kept here has its passwords masked, so a rendered report may go to a log.
#[derive(Clone)]
pub struct Report {
    /// Name of the file, as given to [`load`](crate::load).
    pub file: String,
    /// All findings, in order of their place in the document.
    pub diagnostics: Vec<Diagnostic>,
    source: Arc<str>,
}

/// The reason why a document was refused: at least one [`Severity::Error`], and the warnings found besides.
#[derive(Clone, Debug)]
pub struct Errors(Report);

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Self::Advice => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl Diagnostic {
    /// The same without characters that have no place on a printed line.
    pub(crate) fn printable(mut self) -> Self {
        for text in [&mut self.path, &mut self.text, &mut self.message, &mut self.help] {
            if let Cow::Owned(printable) = escaped(text) {
                *text = printable;
            }
        }
        self
    }

    /// Line of the finding, from 1; 0 if it has no place in the file.
    #[must_use]
    pub fn line(&self) -> usize {
        self.location.map_or(0, |location| location.line)
    }

    /// Column of the finding, from 1, in characters; 0 if it has no place in the file.
    #[must_use]
    pub fn column(&self) -> usize {
        self.location.map_or(0, |location| location.column)
    }
}

impl Report {
    pub(crate) fn new(file: &str, source: Arc<str>, diagnostics: Vec<Diagnostic>) -> Self {
        let source = match blanked(&source) {
            Cow::Borrowed(_) => source,
            Cow::Owned(printable) => printable.into(),
        };
        let diagnostics = diagnostics.into_iter().map(Diagnostic::printable).collect();
        Self { file: escaped(file).into_owned(), diagnostics, source }
    }

    /// The report of a document that is accepted.
    ///
    /// # Errors
    /// The report as [`Errors`], if one of its findings is a [`Severity::Error`].
    pub fn accepted(self) -> Result<Self, Errors> {
        if self.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
            return Err(Errors(self));
        }
        Ok(self)
    }

    /// One line per finding, `file:line:column: error: …`, and an indented line with the help.
    #[must_use]
    pub fn plain(&self) -> String {
        let mut out = String::new();
        for diagnostic in &self.diagnostics {
            self.plain_one(diagnostic, &mut out);
        }
        out
    }

    /// Drawn by miette with the text around each finding; `width` is the number of columns to fill.
    #[must_use]
    pub fn graphical(&self, theme: Theme, width: usize) -> String {
        let theme = match theme {
            Theme::Color => GraphicalTheme::unicode(),
            Theme::Monochrome => GraphicalTheme::unicode_nocolor(),
            Theme::Ascii => GraphicalTheme::none(),
        };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(width).with_links(false);
        let mut out = String::new();
        for located in self.located() {
            // Writing to a string cannot fail; a finding that miette cannot draw is reported in the plain form.
            let before = out.len();
            if handler.render_report(&mut out, &located).is_err() {
                out.truncate(before);
                self.plain_one(located.diagnostic, &mut out);
            }
            out.push('\n');
        }
        out
    }

    fn plain_one(&self, diagnostic: &Diagnostic, out: &mut String) {
        out.push_str(&self.file);
        if let Some(location) = diagnostic.location {
            out.push_str(&format!(":{}:{}", location.line, location.column));
        }
        out.push_str(&format!(": {}: {}", diagnostic.severity.word(), diagnostic.message));
        if !diagnostic.path.is_empty() {
            out.push_str(&format!(" [{}]", diagnostic.path));
        }
        out.push('\n');
        if !diagnostic.help.is_empty() {
            out.push_str(&format!("    help: {}\n", diagnostic.help));
        }
    }

    fn located(&self) -> impl Iterator<Item = Located<'_>> {
        self.diagnostics.iter().map(|diagnostic| Located {
            source: NamedSource::new(&self.file, Arc::clone(&self.source)),
            diagnostic,
        })
    }
}

/// The style of [`Report::graphical`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Unicode and ANSI colours.
    Color,
    /// Unicode without colours.
    Monochrome,
    /// ASCII without colours.
    Ascii,
}

impl Errors {
    pub(crate) fn new(report: Report) -> Self {
        Self(report)
    }

    /// Everything found, errors and warnings.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.0
    }

    /// Only the findings that made the document be refused.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.errors().count();
        let plural = if count == 1 { "" } else { "s" };
        write!(f, "{}: {count} error{plural}", self.0.file)?;
        let Some(first) = self.errors().next() else {
            return Ok(());
        };
        match first.location {
            Some(at) => write!(f, ", the first at line {}, column {}: {}", at.line, at.column, first.message),
            None => write!(f, ": {}", first.message),
        }
    }
}

impl std::error::Error for Errors {}

impl miette::Diagnostic for Errors {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new("config"))
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report")
            .field("file", &self.file)
            .field("diagnostics", &self.diagnostics)
            .finish_non_exhaustive()
    }
}

impl From<Span> for Location {
    fn from(span: Span) -> Self {
        Self { line: span.line, column: span.column, offset: span.start, len: span.end - span.start }
    }
}

/// The source with every range replaced by asterisks of the same length, so that places keep their meaning.
pub(crate) fn masked(source: &str, secrets: &[Range<usize>]) -> String {
    let mut bytes = source.as_bytes().to_vec();
    for range in secrets {
        if let Some(secret) = bytes.get_mut(range.clone()) {
            secret.iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b'*');
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A finding in the shape miette draws.
struct Located<'a> {
    source: NamedSource<Arc<str>>,
    diagnostic: &'a Diagnostic,
}

impl fmt::Display for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.diagnostic.message)
    }
}

impl fmt::Debug for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.diagnostic, f)
    }
}

impl std::error::Error for Located<'_> {}

impl miette::Diagnostic for Located<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.diagnostic.rule))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.diagnostic.severity {
            Severity::Advice => miette::Severity::Advice,
            Severity::Warning => miette::Severity::Warning,
            Severity::Error => miette::Severity::Error,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let help = self.diagnostic.help.as_str();
        (!help.is_empty()).then(|| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        self.diagnostic.location.map(|_| &self.source as &dyn miette::SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let location = self.diagnostic.location?;
        let span = SourceSpan::from((location.offset, location.len));
        let label = (!self.diagnostic.path.is_empty()).then(|| self.diagnostic.path.clone());
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(label, span))))
    }
}

/// The findings with equal warnings and notes put together: the first stays, with the lines of the others.
pub(crate) fn gathered(diagnostics: Vec<Diagnostic>) -> Vec<Diagnostic> {
    /// Lines that are named.
    const MOST: usize = 5;
    let mut kept: Vec<(Diagnostic, Vec<usize>)> = Vec::new();
    let mut index: HashMap<(Severity, &str, String, String), usize> = HashMap::new();
    for diagnostic in diagnostics {
        let key = (diagnostic.severity, diagnostic.rule, diagnostic.message.clone(), diagnostic.help.clone());
        match index.get(&key).filter(|_| diagnostic.severity < Severity::Error) {
            Some(&at) => kept[at].1.push(diagnostic.line()),
            None => {
                index.insert(key, kept.len());
                kept.push((diagnostic, Vec::new()));
            }
        }
    }
    let counted = |(mut diagnostic, mut lines): (Diagnostic, Vec<usize>)| {
        if lines.is_empty() {
            return diagnostic;
        }
        let count = lines.len() + 1;
        lines.retain(|line| *line != diagnostic.line());
        lines.dedup();
        let named: Vec<String> = lines.iter().take(MOST).map(ToString::to_string).collect();
        let more = if lines.len() > MOST { ", …" } else { "" };
        let places = if named.is_empty() {
            String::new()
        } else {
            format!(", also on line {}{more}", named.join(", "))
        };
        diagnostic.message.push_str(&format!(" ({count} times{places})"));
        diagnostic
    };
    kept.into_iter().map(counted).collect()
}

/// The text after the first `authPass:` or `password:` of every line that has one, and the lines below that are
/// indented deeper and may continue it, for text that is no YAML.
///
/// Takes time in proportion to the text: one range a line at most.
pub(crate) fn secret_lines(text: &str) -> Vec<Range<usize>> {
    const INDENT: [char; 3] = [' ', '\t', '-'];
    let mut ranges = Vec::new();
    let mut start = 0;
    // The indentation of the key with a value that may go on.
    let mut key = None;
    for line in text.split_inclusive('\n') {
        let content = line.trim_start_matches(INDENT);
        let depth = line.len() - content.len();
        let end = start + line.len();
        if content.trim_end().is_empty() || key.is_some_and(|key| depth > key) {
            if key.is_some() {
                ranges.push(start..end);
            }
        } else {
            let value = secret_value(line);
            ranges.extend(value.map(|value| start + value..end));
            key = value.map(|_| depth);
        }
        start = end;
    }
    ranges
}

/// The offset of the value of the line's first key that names a password.
fn secret_value(line: &str) -> Option<usize> {
    let mut start = 0;
    for (colon, _) in line.match_indices(':') {
        let before = &line[start..colon];
        let key = before.trim_end_matches(|c: char| !c.is_alphanumeric());
        let key = key.rsplit(|c: char| !c.is_alphanumeric() && c != '_' && c != '-').next().unwrap_or(key);
        if names_secret(before) || is_secret(key) || key.eq_ignore_ascii_case("keys") {
            return Some(colon + 1);
        }
        start = colon + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn shown(text: &str) -> String {
        masked(text, &secret_lines(text))
    }

    #[test]
    fn a_password_is_masked_to_the_possible_end_of_its_value() {
        assert_eq!(shown("a: b\n- authPass: x y\n  c: d\n"), "a: b\n- authPass:****\n  c: d\n");
        assert_eq!(shown("authPas: >\n  x\n\n  y\nc: d"), "authPas:**\n***\n\n***\nc: d");
        assert_eq!(shown("{a: 1, \"oldPassword\" : x: y"), "{a: 1, \"oldPassword\" :*****");
        assert_eq!(shown("authPass"), "authPass");
    }

    /// Far above what one pass over ten megabytes takes in a debug build, far below what a pass for every password
    /// does.
    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn masking_takes_time_in_proportion_to_the_text() {
        const BYTES: usize = 10_000_000;
        let start = Instant::now();
        for piece in
            ["authPass", "authPass:", "password: x ", "authPass: x\n", "authPass:\n ", ":", "x", "-", "é:"]
        {
            let text = piece.repeat(BYTES / 9 / piece.len());
            let ranges = secret_lines(&text);
            assert!(ranges.len() <= text.lines().count(), "{piece:?}");
            assert_eq!(masked(&text, &ranges).len(), text.len());
        }
        let long = "authPass: x ".repeat(BYTES / 12);
        assert!(secret_lines(&long).iter().eq([&(9..long.len())]));
        assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    }
}
