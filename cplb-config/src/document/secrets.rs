//! The places of passwords and keys.

use std::collections::HashSet;
use std::ops::Range;

use crate::secret::{holds_keys, is_secret, may_be_key, public_part};
use crate::yaml::{Child, Document, Node, Value};

/// The places of every value of a key that names a password, and of keys that hold their value.
pub(crate) fn secrets(documents: &[Document]) -> Vec<Range<usize>> {
    let mut finder = Finder { seen: HashSet::new(), places: Vec::new() };
    for document in documents {
        finder.visit(&document.root);
    }
    finder.places
}

struct Finder {
    /// Aliased values are visited once.
    seen: HashSet<*const Node>,
    places: Vec<Range<usize>>,
}

impl Finder {
    /// Hides whatever may be a key, wherever it stands below `authHMAC`.
    fn hide_keys(&mut self, child: &Child, depth: usize) {
        /// More than any document that is read has.
        const DEEPEST: usize = 8;
        if depth > DEEPEST {
            self.places.push(child.node.span.start..child.node.span.end);
            return;
        }
        match &child.node.value {
            Value::Scalar(scalar) if may_be_key(&scalar.text) => {
                self.places.push(child.node.span.start..child.node.span.end);
            }
            Value::Scalar(_) => {}
            Value::Sequence(items) => items.iter().for_each(|item| self.hide_keys(item, depth + 1)),
            Value::Mapping(mapping) => {
                let entries = mapping.entries.iter().map(|entry| (&entry.key, &entry.child));
                let duplicates =
                    mapping.duplicates.iter().map(|duplicate| (&duplicate.key, &duplicate.child));
                for (key, child) in entries.chain(duplicates) {
                    if may_be_key(&key.text) {
                        self.places.push(key.span.start..key.span.end);
                    }
                    self.hide_keys(child, depth + 1);
                }
            }
        }
    }

    fn visit(&mut self, child: &Child) {
        if !self.seen.insert(std::rc::Rc::as_ptr(&child.node)) {
            return;
        }
        match &child.node.value {
            Value::Scalar(_) => {}
            Value::Sequence(items) => items.iter().for_each(|item| self.visit(item)),
            Value::Mapping(mapping) => {
                let entries = mapping.entries.iter().map(|entry| (&entry.key, &entry.child));
                let duplicates =
                    mapping.duplicates.iter().map(|duplicate| (&duplicate.key, &duplicate.child));
                for (key, child) in entries.chain(duplicates) {
                    if is_secret(&key.text) {
                        let span = child.node.span;
                        self.places.push(span.start..span.end);
                    } else if holds_keys(&key.text) {
                        self.hide_keys(child, 0);
                    }
                    if public_part(&key.text) != key.text {
                        self.places.push(key.span.start..key.span.end);
                    }
                    self.visit(child);
                }
            }
        }
    }
}
