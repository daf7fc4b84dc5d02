//! From parser events to trees, within budgets.

use std::collections::HashMap;
use std::rc::Rc;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError};

use super::{
    Child, Document, Duplicate, Entry, Key, MAX_DEPTH, MAX_EXPANDED, MAX_VALUES, Mapping, Node, Scalar, Span,
    SyntaxError, Tag, Value,
};

/// Reads every document of `text`. Empty documents are left out.
pub(crate) fn parse(text: &str) -> Result<Vec<Document>, SyntaxError> {
    let options = granit_parser::options! {
        emit_comments: false,
        emit_unresolved_aliases: true,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut builder = Builder::new(text);
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, span) = next.map_err(|error| builder.scan_error(&error))?;
        builder.event(event, span)?;
    }
    Ok(builder.documents)
}

struct Builder<'t> {
    text: &'t str,
    documents: Vec<Document>,
    open: Vec<Frame>,
    /// By number, which the parser gives once in a file.
    anchors: HashMap<usize, Rc<Node>>,
    values: usize,
}

/// A list or mapping without its end.
struct Frame {
    start: Span,
    anchor: usize,
    content: Content,
}

enum Content {
    Sequence(Vec<Child>),
    Mapping(OpenMapping),
}

#[derive(Default)]
struct OpenMapping {
    mapping: Mapping,
    seen: HashMap<String, usize>,
    merges: Vec<Child>,
    key: Option<Rc<Key>>,
}

impl<'t> Builder<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, documents: Vec::new(), open: Vec::new(), anchors: HashMap::new(), values: 0 }
    }

    fn event(&mut self, event: Event<'_>, span: granit_parser::Span) -> Result<(), SyntaxError> {
        let at = self.span(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tag = match tag {
                    None => Tag::Absent,
                    Some(tag) if tag.core_suffix() == Some("str") => Tag::Text,
                    Some(_) => Tag::Other,
                };
                let scalar = Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain, tag };
                self.value(at, anchor, Value::Scalar(scalar))?;
            }
            Event::SequenceStart(_, anchor, _) => self.push(at, anchor, Content::Sequence(Vec::new()))?,
            Event::MappingStart(_, anchor, _) => {
                self.push(at, anchor, Content::Mapping(OpenMapping::default()))?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(at)?,
            Event::Alias(id) => self.alias(at, id)?,
            Event::UnresolvedAlias(name) => {
                return Err(SyntaxError {
                    span: at,
                    message: format!("the alias `*{name}` has no anchor before it"),
                    help: "define `&name` on an earlier value, or quote the text if it is meant to begin with `*`",
                });
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, start: Span, anchor: usize, content: Content) -> Result<(), SyntaxError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep(start));
        }
        self.open.push(Frame { start, anchor, content });
        Ok(())
    }

    fn close(&mut self, end: Span) -> Result<(), SyntaxError> {
        let Some(frame) = self.open.pop() else {
            return Ok(());
        };
        let span = Span { end: end.end.max(frame.start.end), ..frame.start };
        let value = match frame.content {
            Content::Sequence(items) => Value::Sequence(items),
            Content::Mapping(open) => Value::Mapping(self.merged(open)?),
        };
        self.value(span, frame.anchor, value)
    }

    fn value(&mut self, span: Span, anchor: usize, value: Value) -> Result<(), SyntaxError> {
        let (below, deepest) = match &value {
            Value::Scalar(_) => (0, 0),
            Value::Sequence(items) => sum(items.iter()),
            Value::Mapping(mapping) => sum(mapping.entries.iter().map(|entry| &entry.child)),
        };
        let node = Rc::new(Node { span, value, weight: below.saturating_add(1), depth: deepest + 1 });
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.place(Child { node, at: span })
    }

    fn alias(&mut self, at: Span, id: usize) -> Result<(), SyntaxError> {
        let Some(node) = self.anchors.get(&id).map(Rc::clone) else {
            return Err(SyntaxError {
                span: at,
                message: "this alias refers to a value that contains it".to_owned(),
                help: "an alias may only repeat a value that ends before it",
            });
        };
        self.place(Child { node, at })
    }

    fn place(&mut self, child: Child) -> Result<(), SyntaxError> {
        self.count(1, child.at)?;
        if child.node.weight > MAX_EXPANDED {
            return Err(SyntaxError {
                span: child.at,
                message: format!(
                    "this grows to more than {MAX_EXPANDED} values once its aliases are followed"
                ),
                help: "write the values out, or use fewer aliases",
            });
        }
        if self.open.len() + child.node.depth > MAX_DEPTH + 1 {
            return Err(too_deep(child.at));
        }
        let text = self.text;
        match self.open.last_mut().map(|frame| &mut frame.content) {
            None => {
                // An empty document (`---` twice, or comments only) is one empty plain scalar.
                if !child.is_null() || child.at.start < child.at.end {
                    self.documents.push(Document { root: child });
                }
            }
            Some(Content::Sequence(items)) => items.push(child),
            Some(Content::Mapping(open)) => open.place(text, child),
        }
        Ok(())
    }

    /// Adds the entries of `<<` that no explicit key overrides (YAML 1.1 merge keys, which Go's YAML follows).
    fn merged(&mut self, open: OpenMapping) -> Result<Mapping, SyntaxError> {
        let OpenMapping { mut mapping, mut seen, merges, .. } = open;
        for merge in merges {
            let sources: Vec<&Child> = match merge.sequence() {
                Some(items) => items.iter().collect(),
                None => vec![&merge],
            };
            for source in sources {
                let Some(other) = source.mapping() else {
                    return Err(SyntaxError {
                        span: source.at,
                        message: "`<<` merges mappings, and this is none".to_owned(),
                        help: "write `<<: *alias` with an alias to a mapping, or quote the key",
                    });
                };
                self.count(other.entries.len(), merge.at)?;
                for entry in &other.entries {
                    if !seen.contains_key(&entry.key.text) {
                        seen.insert(entry.key.text.clone(), mapping.entries.len());
                        mapping.entries.push(entry.clone());
                    }
                }
            }
        }
        Ok(mapping)
    }

    fn count(&mut self, values: usize, at: Span) -> Result<(), SyntaxError> {
        self.values = self.values.saturating_add(values);
        if self.values <= MAX_VALUES {
            return Ok(());
        }
        Err(SyntaxError {
            span: at,
            message: format!("the file holds more than {MAX_VALUES} values"),
            help: "this is no configuration file; check the path",
        })
    }

    fn span(&self, span: granit_parser::Span) -> Span {
        let start = span.start.byte_offset().unwrap_or_default().min(self.text.len());
        let end = span.end.byte_offset().unwrap_or(start).clamp(start, self.text.len());
        Span { start, end, line: span.start.line().max(1), column: span.start.col() + 1 }
    }

    fn scan_error(&self, error: &ScanError) -> SyntaxError {
        let marker = error.marker();
        let start = marker.byte_offset().unwrap_or_default().min(self.text.len());
        let before = self.text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = self.text.get(line_start..).unwrap_or_default();
        let help = if line.trim_start_matches(' ').starts_with('\t') {
            "YAML forbids tabs in indentation: use spaces"
        } else {
            "check the indentation, the quotes and the space after each colon around here"
        };
        let first = self.text.get(start..).and_then(|rest| rest.chars().next());
        let end = start + first.map_or(0, char::len_utf8);
        let span = Span { start, end, line: marker.line().max(1), column: marker.col() + 1 };
        if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) {
            return too_deep(span);
        }
        SyntaxError { span, message: format!("this is not YAML: {}", error.kind()), help }
    }
}

impl OpenMapping {
    /// Takes keys and values in turn.
    fn place(&mut self, text: &str, child: Child) {
        let Some(key) = self.key.take() else {
            let written = || text.get(child.at.start..child.at.end).unwrap_or_default().to_owned();
            let key = child.text().map_or_else(written, str::to_owned);
            self.key = Some(Rc::new(Key { text: key, span: child.at }));
            return;
        };
        let merge = key.text == "<<" && text.get(key.span.start..key.span.end) == Some("<<");
        if merge {
            self.merges.push(child);
        } else if let Some(&first) = self.seen.get(&key.text) {
            let first = self.mapping.entries[first].key.span;
            self.mapping.duplicates.push(Duplicate { key, first, child });
        } else {
            self.seen.insert(key.text.clone(), self.mapping.entries.len());
            self.mapping.entries.push(Entry { key, child });
        }
    }
}

fn sum<'a>(children: impl Iterator<Item = &'a Child>) -> (usize, usize) {
    children.fold((0, 0), |(weight, depth): (usize, usize), child| {
        (weight.saturating_add(child.node.weight), depth.max(child.node.depth))
    })
}

fn too_deep(span: Span) -> SyntaxError {
    SyntaxError {
        span,
        message: format!("lists and mappings are nested deeper than {MAX_DEPTH} levels here"),
        help: "this is no configuration file; check the path",
    }
}
