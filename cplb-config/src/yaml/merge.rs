//! Merges trees: present values stay, missing ones are added from other trees.

use std::collections::HashMap;
use std::rc::Rc;

use super::{Child, Entry, Mapping, Node, Value, resolve};

/// A value that gave way to another one.
pub(crate) struct Conflict<'a> {
    /// Keys that lead to it, joined by dots.
    pub(crate) path: String,
    pub(crate) kept: &'a Child,
    pub(crate) dropped: &'a Child,
}

/// Merges mappings, of which there is at least one, the first before all others: mappings are merged key by key; of
/// anything else, also of lists, the first stays. A null of the first stays as well, and one of the others adds
/// nothing. This is how `dig.Mapping.Merge` works without options.
pub(crate) fn merge<'a>(parts: &[&'a Child], path: &str, tell: &mut dyn FnMut(Conflict<'a>)) -> Child {
    let [first, rest @ ..] = parts else { return Child::empty() };
    if rest.is_empty() {
        return (*first).clone();
    }
    let mut merged: Vec<(&'a Entry, Vec<&'a Child>)> = Vec::new();
    let (mut index, mut duplicates) = (HashMap::new(), Vec::new());
    for (number, part) in parts.iter().enumerate() {
        let Some(mapping) = part.mapping() else { continue };
        duplicates.extend(mapping.duplicates.iter().cloned());
        for entry in &mapping.entries {
            let key = entry.key.text.as_str();
            let Some(&at) = index.get(key) else {
                if number == 0 || !entry.child.is_null() {
                    index.insert(key, merged.len());
                    merged.push((entry, vec![&entry.child]));
                }
                continue;
            };
            let kept = merged[at].1[0];
            if kept.mapping().is_some() && entry.child.mapping().is_some() {
                merged[at].1.push(&entry.child);
            } else if !entry.child.is_null() && !same(kept, &entry.child) {
                tell(Conflict { path: join(path, key), kept, dropped: &entry.child });
            }
        }
    }
    let entries = merged.into_iter().map(|(entry, values)| Entry {
        key: Rc::clone(&entry.key),
        child: merge(&values, &join(path, &entry.key.text), tell),
    });
    first.with(Mapping { entries: entries.collect(), duplicates })
}

impl Child {
    /// A mapping in place of this value.
    fn with(&self, mapping: Mapping) -> Self {
        let children = || mapping.entries.iter().map(|entry| &entry.child.node);
        let weight = 1 + children().map(|node| node.weight).sum::<usize>();
        let depth = 1 + children().map(|node| node.depth).max().unwrap_or_default();
        let node = Node { span: self.node.span, value: Value::Mapping(mapping), weight, depth };
        Self { node: Rc::new(node), at: self.at }
    }

    /// The mapping with another value for a key; null counts as an empty mapping. `None` if this is another value.
    pub(crate) fn with_value(&self, key: &str, value: Self) -> Option<Self> {
        let mapping = match self.mapping() {
            Some(mapping) => mapping,
            None if self.is_null() => &Mapping::default(),
            None => return None,
        };
        let mut entries = mapping.entries.clone();
        match entries.iter_mut().find(|entry| entry.key.text == key) {
            Some(entry) => entry.child = value,
            None => {
                let key = Rc::new(super::Key { text: key.to_owned(), span: value.at });
                entries.push(Entry { key, child: value });
            }
        }
        Some(self.with(Mapping { entries, duplicates: mapping.duplicates.clone() }))
    }

    /// A mapping without entries, at no place.
    fn empty() -> Self {
        let value = Value::Mapping(Mapping::default());
        let node = Node { span: super::Span::default(), value, weight: 1, depth: 1 };
        Self { node: Rc::new(node), at: super::Span::default() }
    }

    /// An empty mapping at the place of this value.
    pub(crate) fn emptied(&self) -> Self {
        self.with(Mapping::default())
    }
}

/// Returns whether two values are equal to Go.
fn same(a: &Child, b: &Child) -> bool {
    match (&a.node.value, &b.node.value) {
        (Value::Scalar(a), Value::Scalar(b)) => resolve(a) == resolve(b),
        (Value::Sequence(a), Value::Sequence(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Mapping(a), Value::Mapping(b)) => {
            a.entries.len() == b.entries.len()
                && a.entries
                    .iter()
                    .all(|entry| b.child(&entry.key.text).is_some_and(|b| same(&entry.child, b)))
        }
        _ => false,
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    /// Merges the documents of a text; the value at `path` and the places of dropped values.
    fn merged(text: &str, path: &str) -> (Option<String>, Vec<(String, usize, usize)>) {
        let documents = parse(text).unwrap();
        let roots: Vec<&Child> = documents.iter().map(|document| &document.root).collect();
        let mut dropped = Vec::new();
        let all = merge(&roots, "", &mut |it| dropped.push((it.path, it.kept.at.line, it.dropped.at.line)));
        let found = path.split('.').try_fold(all, |child, key| child.mapping()?.child(key).cloned());
        (found.and_then(|child| child.text().map(str::to_owned)), dropped)
    }

    #[test]
    fn mappings_are_merged_and_of_anything_else_the_first_stays() {
        let text = "a: {x: 1, y: [1]}\nb: 2\n---\na: {x: 9, y: [1, 2], z: 3}\nc: 4\n---\nc: 5\na: {z: 6}\n";
        assert_eq!(merged(text, "a.x").0.as_deref(), Some("1"));
        assert_eq!(merged(text, "a.z").0.as_deref(), Some("3"));
        let (c, dropped) = merged(text, "c");
        assert_eq!(c.as_deref(), Some("4"));
        let place = |path: &str, kept, at| (path.to_owned(), kept, at);
        assert_eq!(dropped, [place("c", 5, 7), place("a.x", 1, 4), place("a.y", 1, 4), place("a.z", 4, 8)]);
    }

    #[test]
    fn a_null_that_is_there_stays_and_another_adds_nothing() {
        assert_eq!(merged("a:\n---\na: {x: 1}\n", "a.x"), (None, vec![("a".to_owned(), 1, 3)]));
        assert_eq!(merged("a: {x: 1}\n---\na:\nb:\n", "b"), (None, Vec::new()));
    }

    #[test]
    fn equal_values_are_no_conflict() {
        let same = "a: {x: '1', l: [{k: v, w: u}], n: 0x10}\n---\na: {l: [{w: u, k: v}], x: \"1\", n: 16}\n";
        assert_eq!(merged(same, "a.x"), (Some("1".to_owned()), Vec::new()));
        assert_eq!(merged("x: 1\n---\nx: '1'\n", "x").1.len(), 1, "a number is no text");
    }
}
