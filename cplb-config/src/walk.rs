//! Typed reads of the tree that report mistakes and go on.
//!
//! Every read returns `None` for a value that is absent or that was wrong and has been reported, so a reader never
//! stops at the first mistake.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::diagnostic::{Diagnostic, Location, Severity, gathered};
use crate::secret::{holds_keys, is_secret, public_part};
use crate::suggest::closest;
use crate::yaml::{Child, Entry, Resolved, Scalar, Span, Value, go_text, is_octal, resolve};

/// Findings of one severity beyond this number are counted only.
const MAX_FINDINGS: usize = 100;

/// Collects findings and the place of every field.
pub(crate) struct Reporter<'s> {
    /// The text with its passwords masked.
    source: &'s str,
    diagnostics: RefCell<Vec<Diagnostic>>,
    /// The number of findings of each severity, kept or not.
    counts: RefCell<BTreeMap<Severity, usize>>,
    locations: RefCell<BTreeMap<String, Location>>,
}

/// The comparison of field names: exact, or without regard to case as in Go's JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    AnyCase,
    Exact,
}

/// A mistake in a field, and its correction.
pub(crate) struct Finding {
    pub(crate) rule: &'static str,
    pub(crate) message: String,
    pub(crate) help: String,
}

/// An explanation of a field that is not known.
pub(crate) enum Hint {
    /// It was meant to be another one, or stands in the wrong place.
    Mistake(String),
    /// It may be known to others.
    Unknown(String),
}

/// A mapping being read.
pub(crate) struct Table<'a> {
    pub(crate) path: String,
    pub(crate) at: Span,
    entries: &'a [Entry],
    used: Vec<Cell<bool>>,
    asked: RefCell<Vec<&'static str>>,
    names: Names,
    out: &'a Reporter<'a>,
}

/// A value being read, with its name.
#[derive(Clone)]
pub(crate) struct Field<'a> {
    pub(crate) path: String,
    /// The place of the key, or of the item of a list.
    pub(crate) key: Span,
    pub(crate) child: &'a Child,
    pub(crate) out: &'a Reporter<'a>,
    pub(crate) names: Names,
}

impl Finding {
    pub(crate) fn new(rule: &'static str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { rule, message: message.into(), help: help.into() }
    }
}

impl<'s> Reporter<'s> {
    pub(crate) fn new(source: &'s str) -> Self {
        Self {
            source,
            diagnostics: RefCell::default(),
            counts: RefCell::default(),
            locations: RefCell::default(),
        }
    }

    pub(crate) fn report(&self, severity: Severity, path: &str, at: Option<Span>, finding: Finding) {
        let text = at.map(|at| self.excerpt(at)).unwrap_or_default();
        self.push(Diagnostic {
            severity,
            rule: finding.rule,
            path: path.to_owned(),
            location: at.map(|at| self.first_line(at).into()),
            text,
            message: finding.message,
            help: finding.help,
        });
    }

    pub(crate) fn error(&self, path: &str, at: Span, finding: Finding) {
        self.report(Severity::Error, path, Some(at), finding);
    }

    pub(crate) fn warn(&self, path: &str, at: Span, finding: Finding) {
        self.report(Severity::Warning, path, Some(at), finding);
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.counts.borrow().contains_key(&Severity::Error)
    }

    /// Returns whether further errors are only counted, so that their texts need not be made.
    fn is_full(&self) -> bool {
        self.counts.borrow().get(&Severity::Error).is_some_and(|&count| count >= MAX_FINDINGS)
    }

    pub(crate) fn locations(&self) -> BTreeMap<String, Location> {
        self.locations.borrow().clone()
    }

    /// The findings in order of their place.
    ///
    /// Advice is given for accepted documents only.
    pub(crate) fn finish(self) -> Vec<Diagnostic> {
        let refused = self.has_errors();
        let mut diagnostics = self.diagnostics.into_inner();
        diagnostics.retain(|diagnostic| !refused || diagnostic.severity > Severity::Advice);
        diagnostics
            .sort_by_key(|diagnostic| (diagnostic.location.map(|l| (l.line, l.column)), diagnostic.rule));
        let mut diagnostics = gathered(diagnostics);
        for (severity, count) in self.counts.into_inner() {
            let suppressed = count.saturating_sub(MAX_FINDINGS);
            if suppressed > 0 && (!refused || severity > Severity::Advice) {
                diagnostics.push(Diagnostic {
                    severity,
                    rule: "more",
                    path: String::new(),
                    location: None,
                    text: String::new(),
                    message: format!("{suppressed} more findings of this kind are not shown"),
                    help: "correct the first ones and check again".to_owned(),
                });
            }
        }
        diagnostics
    }

    fn push(&self, diagnostic: Diagnostic) {
        let diagnostic = diagnostic.printable();
        let mut counts = self.counts.borrow_mut();
        let count = counts.entry(diagnostic.severity).or_default();
        *count += 1;
        if *count <= MAX_FINDINGS {
            self.diagnostics.borrow_mut().push(diagnostic);
        }
    }

    fn remember(&self, path: &str, at: Span) {
        self.locations.borrow_mut().insert(path.to_owned(), self.first_line(at).into());
    }

    fn first_line(&self, at: Span) -> Span {
        let text = self.source.get(at.start..at.end).unwrap_or_default();
        let len = text.find(['\n', '\r']).unwrap_or(text.len());
        Span { end: at.start + len, ..at }
    }

    fn excerpt(&self, at: Span) -> String {
        const LONGEST: usize = 80;
        let line = self.first_line(at);
        let text = self.source.get(line.start..line.end).unwrap_or_default();
        match text.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text.to_owned(),
        }
    }
}

impl<'a> Table<'a> {
    /// The field called `name`; absent and null are the same, as they are to Go.
    pub(crate) fn field(&self, name: &'static str) -> Option<Field<'a>> {
        let index = self.find(name)?;
        let entry = &self.entries[index];
        self.used[index].set(true);
        let path = join(&self.path, name);
        self.out.remember(&path, entry.child.at);
        if entry.child.is_null() {
            return None;
        }
        Some(Field { path, key: entry.key.span, child: &entry.child, out: self.out, names: self.names })
    }

    /// Reports every field that was not read. `hint` may explain a name better than the closest known one does.
    ///
    /// In a document of k0s only likely mistakes are errors, because a newer k0s may have more fields.
    pub(crate) fn finish(self, hint: impl Fn(&str) -> Option<Hint>) {
        let asked = self.asked.take();
        for (entry, _) in self.entries.iter().zip(&self.used).filter(|(_, used)| !used.get()) {
            let name = entry.key.text.as_str();
            let public = public_part(name);
            let hint = if public != name {
                Hint::Mistake(format!("write a space between `{public}:` and its value"))
            } else if self.out.is_full() && self.names == Names::Exact {
                Hint::Mistake(String::new())
            } else {
                hint(name).unwrap_or_else(|| match closest(name, &asked) {
                    Some(known) => Hint::Mistake(format!("did you mean `{known}`?")),
                    None => Hint::Unknown(format!("known here: {}", asked.join(", "))),
                })
            };
            let (path, at, shown) = (join(&self.path, &shorten(name)), entry.key.span, shorten(name));
            match hint {
                Hint::Unknown(help) if self.names == Names::AnyCase => {
                    let message = format!("cplb knows no field `{shown}` here and does not use it");
                    self.out.warn(&path, at, Finding::new("unused-field", message, help));
                }
                Hint::Unknown(help) | Hint::Mistake(help) => {
                    let message = format!("there is no field `{shown}` here");
                    self.out.error(&path, at, Finding::new("unknown-field", message, help));
                }
            }
        }
    }

    /// Reports a field that must be there.
    pub(crate) fn missing(&self, name: &str, help: impl Into<String>) {
        let path = join(&self.path, name);
        let finding = Finding::new("required-field", format!("`{name}` is missing"), help);
        self.out.error(&path, self.first_key(), finding);
    }

    /// The place to point at when something is missing from the mapping.
    pub(crate) fn first_key(&self) -> Span {
        self.entries.first().map_or(self.at, |entry| entry.key.span)
    }

    pub(crate) fn out(&self) -> &'a Reporter<'a> {
        self.out
    }

    fn find(&self, name: &'static str) -> Option<usize> {
        if !self.asked.borrow().contains(&name) {
            self.asked.borrow_mut().push(name);
        }
        if let Some(index) = self.entries.iter().position(|entry| entry.key.text == name) {
            return Some(index);
        }
        if self.names == Names::Exact {
            return None;
        }
        let index = self.entries.iter().position(|entry| entry.key.text.eq_ignore_ascii_case(name))?;
        if !self.used[index].get() {
            let written = &self.entries[index].key.text;
            let finding = Finding::new(
                "field-case",
                format!("`{written}` is read as `{name}`, as k0s does"),
                format!("write `{name}`"),
            );
            self.out.warn(&join(&self.path, name), self.entries[index].key.span, finding);
        }
        Some(index)
    }
}

impl<'a> Field<'a> {
    pub(crate) fn root(child: &'a Child, names: Names, out: &'a Reporter<'a>) -> Self {
        Self { path: String::new(), key: child.at, child, out, names }
    }

    /// The same value under another path, for a section at another place in the file.
    pub(crate) fn renamed(mut self, path: &str) -> Self {
        self.path = path.to_owned();
        self
    }

    pub(crate) fn at(&self) -> Span {
        self.child.at
    }

    pub(crate) fn error(&self, finding: Finding) {
        self.out.error(&self.path, self.child.at, finding);
    }

    pub(crate) fn warn(&self, finding: Finding) {
        self.out.warn(&self.path, self.child.at, finding);
    }

    pub(crate) fn table(&self) -> Option<Table<'a>> {
        let Value::Mapping(mapping) = &self.child.node.value else {
            self.wrong_type("a mapping (`key: value` lines)");
            return None;
        };
        for duplicate in &mapping.duplicates {
            let key = shorten(&duplicate.key.text);
            let finding = Finding::new(
                "duplicate-key",
                format!("`{key}` was already given on line {}", duplicate.first.line),
                "keep one of them",
            );
            self.out.error(&join(&self.path, &key), duplicate.key.span, finding);
        }
        Some(Table {
            path: self.path.clone(),
            at: self.child.at,
            used: mapping.entries.iter().map(|_| Cell::new(false)).collect(),
            entries: &mapping.entries,
            asked: RefCell::default(),
            names: self.names,
            out: self.out,
        })
    }

    /// The items of a list that may have at most `most`.
    pub(crate) fn items_up_to(&self, most: usize, help: &str) -> Option<Vec<Field<'a>>> {
        let items = self.items()?;
        if items.len() <= most {
            return Some(items);
        }
        let message = format!("{} items are more than the {most} that are taken here", items.len());
        self.error(Finding::new("too-many", message, help));
        None
    }

    pub(crate) fn items(&self) -> Option<Vec<Field<'a>>> {
        let Value::Sequence(items) = &self.child.node.value else {
            let shown = self.child.text().filter(|text| !text.is_empty() && text.len() < 60);
            match shown.filter(|_| !self.path.split('.').any(holds_keys)) {
                Some(text) => {
                    let finding = Finding::new(
                        "wrong-type",
                        "expected a list, found a single value",
                        format!("write `[{text}]`"),
                    );
                    self.error(finding);
                }
                None => self.wrong_type("a list (`- item` lines or `[item, …]`)"),
            }
            return None;
        };
        let field = |(index, child): (usize, &'a Child)| {
            let path = format!("{}[{index}]", self.path);
            self.out.remember(&path, child.at);
            Field { path, key: child.at, child, out: self.out, names: self.names }
        };
        Some(items.iter().enumerate().map(field).collect())
    }

    /// Text. A number or a boolean to Go's YAML is text to k0s too, but rewritten.
    pub(crate) fn string(&self) -> Option<String> {
        let scalar = self.scalar("a single text value")?;
        let resolved = resolve(scalar);
        let Some(text) = go_text(resolved) else {
            self.wrong_type("a single text value");
            return None;
        };
        if text != scalar.text {
            let kind = if matches!(resolved, Resolved::Bool(_)) { "boolean" } else { "number" };
            let name = self.path.rsplit('.').next().unwrap_or_default();
            let message = if is_secret(name) {
                let used = if name == "key" { "key" } else { "password" };
                format!(
                    "without quotes this is a {kind}, which YAML 1.1 and k0s write differently: another {used} is used"
                )
            } else {
                format!("without quotes this is the {kind} `{text}` to YAML 1.1 and k0s, and is used as such")
            };
            self.warn(Finding::new("unquoted-text", message, "put it in quotes"));
        }
        Some(text)
    }

    pub(crate) fn bool(&self) -> Option<bool> {
        let scalar = self.scalar("`true` or `false`")?;
        match resolve(scalar) {
            Resolved::Bool(value) => Some(value),
            Resolved::Text(text) if !scalar.plain && is_bool_word(text) => {
                self.error(Finding::new(
                    "wrong-type",
                    "expected `true` or `false`, found quoted text",
                    "remove the quotes",
                ));
                None
            }
            _ => {
                self.wrong_type("`true` or `false`");
                None
            }
        }
    }

    /// A whole number within `range`.
    pub(crate) fn integer<T>(&self, range: RangeInclusive<T>) -> Option<T>
    where
        T: Copy + Display + TryFrom<i128> + PartialOrd,
    {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let scalar = self.scalar(&expected)?;
        let value = match resolve(scalar) {
            Resolved::Int(value) => value,
            #[expect(clippy::cast_possible_truncation, reason = "a whole number below 1e15 fits")]
            Resolved::Float(value) if value.fract() == 0.0 && value.abs() < 1e15 => value as i128,
            Resolved::Text(text) if !scalar.plain && text.parse::<i128>().is_ok() => {
                self.error(Finding::new(
                    "wrong-type",
                    "expected a number, found quoted text",
                    "remove the quotes",
                ));
                return None;
            }
            _ => {
                self.wrong_type(&expected);
                return None;
            }
        };
        if is_octal(scalar) {
            let message = format!("the leading zero makes this octal to YAML 1.1 and k0s: {value}");
            self.warn(Finding::new("octal", message, format!("write {value}")));
        }
        match T::try_from(value) {
            Ok(value) if range.contains(&value) => Some(value),
            _ => {
                let message = format!("{value} is out of range");
                self.error(Finding::new("out-of-range", message, format!("write {expected}")));
                None
            }
        }
    }

    /// The field, unless it is zero, which is the same as absent to Go and is reported, as it seldom means the default.
    pub(crate) fn unless_zero(self, default: impl Display) -> Option<Self> {
        if !self.is_zero() {
            return Some(self);
        }
        let message = format!("0 is the same as leaving it out: {default} is used");
        self.warn(Finding::new(
            "zero-default",
            message,
            "write the value that is meant, or remove the field",
        ));
        None
    }

    /// Zero, which to Go is the same as absent.
    pub(crate) fn is_zero(&self) -> bool {
        self.child.scalar().is_some_and(|scalar| match resolve(scalar) {
            Resolved::Int(value) => value == 0,
            Resolved::Float(value) => value == 0.0,
            _ => false,
        })
    }

    pub(crate) fn wrong_type(&self, expected: &str) {
        let found = match &self.child.node.value {
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
            Value::Scalar(scalar) => match resolve(scalar) {
                Resolved::Null => "nothing",
                Resolved::Bool(_) => "a boolean",
                Resolved::Int(_) | Resolved::Float(_) => "a number",
                Resolved::Text(_) => "text",
            },
        };
        self.error(Finding::new(
            "wrong-type",
            format!("expected {expected}, found {found}"),
            format!("write {expected}"),
        ));
    }

    fn scalar(&self, expected: &str) -> Option<&'a Scalar> {
        let scalar = self.child.scalar();
        if scalar.is_none() {
            self.wrong_type(expected);
        }
        scalar
    }
}

pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A key as it may be shown.
fn shorten(name: &str) -> String {
    const LONGEST: usize = 60;
    let name = public_part(name);
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

fn is_bool_word(text: &str) -> bool {
    ["true", "false", "yes", "no", "on", "off"].iter().any(|word| text.eq_ignore_ascii_case(word))
}
