//! YAML as a tree that keeps the place and the form of every value.
//!
//! Reading straight into typed structures would stop at the first wrong type, hide whether a scalar was quoted (which
//! decides its value in Go's YAML) and report one duplicate key at a time. So the text becomes a tree first, and
//! the readers walk that.

mod build;
mod merge;
mod scalar;

use std::rc::Rc;

pub(crate) use build::parse;
pub(crate) use merge::merge;
pub(crate) use scalar::{Resolved, go_text, is_octal, resolve};

/// Values (scalars, lists, mappings, aliases and merged entries) one file may hold.
pub(crate) const MAX_VALUES: usize = 100_000;
/// Values one document may grow to once its aliases are followed.
pub(crate) const MAX_EXPANDED: usize = 200_000;
/// Nesting of lists and mappings, aliases followed.
pub(crate) const MAX_DEPTH: usize = 100;

/// A range of the text, in bytes, with the position of its first character.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// First line is 1.
    pub(crate) line: usize,
    /// First column is 1, counted in characters.
    pub(crate) column: usize,
}

/// One value. Shared, because an alias is a second place of the same value.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) value: Value,
    /// Values below and including this one, aliases followed.
    weight: usize,
    /// Levels below and including this one, aliases followed.
    depth: usize,
}

#[derive(Debug)]
pub(crate) enum Value {
    Scalar(Scalar),
    Sequence(Vec<Child>),
    Mapping(Mapping),
}

/// A value together with the place that refers to it, which is the alias for an aliased one.
#[derive(Clone, Debug)]
pub(crate) struct Child {
    pub(crate) node: Rc<Node>,
    pub(crate) at: Span,
}

#[derive(Debug)]
pub(crate) struct Scalar {
    /// The text after escapes and folding.
    pub(crate) text: String,
    /// Neither quoted nor a block scalar.
    pub(crate) plain: bool,
    pub(crate) tag: Tag,
}

/// The explicit tags that change how a scalar is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Absent,
    Text,
    Other,
}

#[derive(Debug, Default)]
pub(crate) struct Mapping {
    /// In order of appearance; merged entries (`<<`) follow and are absent where an explicit key overrides them.
    pub(crate) entries: Vec<Entry>,
    pub(crate) duplicates: Vec<Duplicate>,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: Rc<Key>,
    pub(crate) child: Child,
}

#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) span: Span,
}

/// A key that appeared before in the same mapping; the first one counts.
#[derive(Clone, Debug)]
pub(crate) struct Duplicate {
    pub(crate) key: Rc<Key>,
    pub(crate) first: Span,
    pub(crate) child: Child,
}

/// One document of a file.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) root: Child,
}

/// The reason why a text is no YAML that this crate reads.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) span: Span,
    pub(crate) message: String,
    pub(crate) help: &'static str,
}

impl Mapping {
    pub(crate) fn child(&self, key: &str) -> Option<&Child> {
        self.entry(key).map(|entry| &entry.child)
    }

    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key.text == key)
    }
}

impl Child {
    pub(crate) fn mapping(&self) -> Option<&Mapping> {
        match &self.node.value {
            Value::Mapping(mapping) => Some(mapping),
            _ => None,
        }
    }

    pub(crate) fn sequence(&self) -> Option<&[Child]> {
        match &self.node.value {
            Value::Sequence(items) => Some(items),
            _ => None,
        }
    }

    pub(crate) fn scalar(&self) -> Option<&Scalar> {
        match &self.node.value {
            Value::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    /// The text of a scalar however it was written.
    pub(crate) fn text(&self) -> Option<&str> {
        self.scalar().map(|scalar| scalar.text.as_str())
    }

    pub(crate) fn is_null(&self) -> bool {
        self.scalar().is_some_and(|scalar| matches!(resolve(scalar), Resolved::Null))
    }
}
