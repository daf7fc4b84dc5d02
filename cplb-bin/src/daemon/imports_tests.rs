//! The rule of dependency: the loop and its helpers import subsystems; a subsystem imports no other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules that may import all parts, from the top down.
const SHELLS: [&str; 19] = [
    "event_loop",
    "handlers",
    "serving_rounds",
    "maintenance",
    "stop",
    "status",
    "reload",
    "wiring",
    "event",
    "event_log",
    "group_report",
    "history_report",
    "drain_requests",
    "operators",
    "owner_report",
    "peer_update",
    "end_to_end_report",
    "certificate_report",
    "desired",
];
/// Modules that every subsystem may import.
const COMMON: [&str; 4] = ["ids", "problems", "sender", "instance_log"];
/// Pairs of a subsystem and another one that it may import.
const READS: [(&str, &str); 2] = [("serving", "ipvs"), ("handover", "group")];

type Graph = BTreeMap<String, BTreeSet<String>>;

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .filter(|path| !path.to_str().unwrap().ends_with("tests.rs"))
        .collect()
}

/// The modules from the root of the daemon to a file: none for `mod.rs` itself.
fn module(file: &Path, root: &Path) -> Vec<String> {
    let path = file.strip_prefix(root).unwrap().with_extension("");
    let names = path.iter().map(|name| name.to_str().unwrap().to_owned());
    names.filter(|name| name != "mod").collect()
}

/// The names that follow a path: one, or those in braces.
fn names(after: &str) -> Vec<&str> {
    fn first(text: &str) -> &str {
        text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
    }
    let Some(list) = after.strip_prefix('{') else { return vec![first(after)] };
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                found.push(first(list[start..at].trim()));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(first(list[start..at].trim()));
                start = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// The modules at the root of the daemon that a file names, and `Daemon`.
fn imports(text: &str, module: &[String]) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.collect::<Vec<_>>().join("\n");
    let to_root = "super::".repeat(module.len());
    let mut found = BTreeSet::new();
    for prefix in [to_root.as_str(), "crate::daemon::"] {
        for (at, _) in code.match_indices(prefix) {
            // `super::super::` has `super::` at its end.
            if !code[..at].ends_with("super::") {
                found.extend(names(&code[at + prefix.len()..]).into_iter().map(str::to_owned));
            }
        }
    }
    found.retain(|name| *name != "super" && !name.is_empty());
    found
}

fn graph() -> Graph {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/daemon");
    let mut graph = Graph::new();
    for file in files(&root) {
        let module = module(&file, &root);
        let Some(top) = module.first() else { continue };
        let text = fs::read_to_string(&file).unwrap();
        let mut imports = imports(&text, &module);
        imports.remove(top);
        graph.entry(top.clone()).or_default().extend(imports);
    }
    graph
}

/// An import cycle that begins and ends at the last module of `path`.
fn cycle(graph: &Graph, path: &mut Vec<String>, done: &mut BTreeSet<String>) -> Option<Vec<String>> {
    let last = path.last()?.clone();
    for next in graph.get(&last).into_iter().flatten() {
        if let Some(at) = path.iter().position(|name| name == next) {
            return Some(path[at..].to_vec());
        }
        if !done.contains(next) {
            path.push(next.clone());
            if let Some(found) = cycle(graph, path, done) {
                return Some(found);
            }
            path.pop();
        }
    }
    done.insert(last);
    None
}

#[test]
fn the_import_graph_has_no_cycle() {
    let graph = graph();
    let mut done = BTreeSet::new();
    for module in graph.keys() {
        assert_eq!(cycle(&graph, &mut vec![module.clone()], &mut done), None);
    }
}

#[test]
fn a_subsystem_imports_neither_the_loop_nor_another_subsystem() {
    let graph = graph();
    assert!(graph.len() > 10 && graph["event_loop"].contains("Daemon"), "imports are found: {graph:?}");
    assert!(graph["serving"].contains("ipvs"), "{graph:?}");
    for (module, imports) in graph.iter().filter(|(module, _)| !SHELLS.contains(&module.as_str())) {
        for name in imports.iter().filter(|name| !COMMON.contains(&name.as_str())) {
            let is_read = READS.contains(&(module, name));
            assert!(is_read, "{module} imports {name}");
        }
    }
}
