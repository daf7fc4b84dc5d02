//! The places of passwords.

use std::collections::HashSet;
use std::ops::Range;

use crate::secret::{is_secret, public_part};
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
