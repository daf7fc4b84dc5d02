//! Every rule broken once: severity, line, column, rule, offending text, message and help.
//!
//! The cases stand in `tests/rules/*.txt`: a title, a document, and the findings it must give. `UPDATE_RULES=1 cargo
//! test` rewrites the findings, to be read before they are committed.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use cplb_config::{Diagnostic, Severity, load};

struct Case {
    title: String,
    document: String,
    expected: String,
}

fn cases(text: &str) -> Vec<Case> {
    let blocks = text.split("=== ").skip(1);
    let case = |block: &str| {
        let (title, rest) = block.split_once('\n').expect("a title line");
        let (document, expected) = rest.split_once("\n--->\n").unwrap_or((rest.trim_end(), ""));
        Case {
            title: title.to_owned(),
            document: document.to_owned(),
            expected: expected.trim_end().to_owned(),
        }
    };
    blocks.map(case).collect()
}

fn line(out: &mut String, diagnostic: &Diagnostic) {
    let severity = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Advice => "advice",
    };
    let place = match diagnostic.location {
        Some(location) => format!("{}:{}", location.line, location.column),
        None => "-".to_owned(),
    };
    writeln!(out, "{place} {severity} {} `{}`", diagnostic.rule, diagnostic.text).unwrap();
    writeln!(out, "    at {}", if diagnostic.path.is_empty() { "-" } else { &diagnostic.path }).unwrap();
    writeln!(out, "    {}", diagnostic.message).unwrap();
    writeln!(out, "    → {}", diagnostic.help).unwrap();
}

fn findings(document: &str) -> String {
    let mut out = String::new();
    match load(document, "f.yaml") {
        Ok(loaded) => {
            writeln!(out, "accepted").unwrap();
            loaded.warnings.iter().for_each(|warning| line(&mut out, warning));
        }
        Err(errors) => {
            assert!(errors.errors().count() > 0, "refused without an error");
            errors.report().diagnostics.iter().for_each(|diagnostic| line(&mut out, diagnostic));
        }
    }
    out.trim_end().to_owned()
}

fn check(path: &Path) -> Vec<String> {
    let cases = cases(&std::fs::read_to_string(path).unwrap());
    assert!(!cases.is_empty(), "{} holds no case", path.display());
    if std::env::var_os("UPDATE_RULES").is_some() {
        let text: String = cases
            .iter()
            .map(|case| {
                format!("=== {}\n{}\n--->\n{}\n\n", case.title, case.document, findings(&case.document))
            })
            .collect();
        std::fs::write(path, format!("{}\n", text.trim_end())).unwrap();
        return Vec::new();
    }
    let mut wrong = Vec::new();
    for case in cases {
        let found = findings(&case.document);
        if found != case.expected {
            wrong.push(format!("--- {}\nexpected:\n{}\nfound:\n{found}\n", case.title, case.expected));
        }
    }
    wrong
}

#[test]
fn every_rule_is_reported_at_its_place_with_a_correction() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rules");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let wrong: Vec<String> = files.iter().flat_map(|path| check(path)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The names of all rules in the sources, each of which must appear in a case.
#[test]
fn no_rule_is_without_a_case() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut cases = String::new();
    for entry in std::fs::read_dir(root.join("tests/rules")).unwrap() {
        cases += &std::fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    let mut sources = Vec::new();
    let mut folders = vec![root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                sources.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut rules = 0;
    for source in &sources {
        for (at, _) in source.match_indices("Finding::new(") {
            let rest = source[at + "Finding::new(".len()..].trim_start();
            let Some(rule) = rest.strip_prefix('"').and_then(|rest| rest.split('"').next()) else { continue };
            rules += 1;
            // Files that are too large and bytes that are no text cannot stand in a case.
            if !matches!(rule, "too-large" | "encoding") {
                assert!(cases.contains(&format!(" {rule} `")), "no case breaks the rule {rule}");
            }
        }
    }
    assert!(rules > 60, "only {rules} rules were found in the sources");
}
