//! `docs/configuration.md` agrees with the schema and with the defaults, the links of all documents resolve, and samples
//! that two documents show are the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cplb_config::{Redact, json_schema, load};
use serde_json::Value;

const DOCS: &str = include_str!("../../docs/configuration.md");

/// The objects of the schema and the paths of their fields in the documentation.
const OBJECTS: [(&str, &str); 12] = [
    ("", ""),
    ("Spec", ""),
    ("VrrpInstance", "vrrpInstances[]."),
    ("AuthHmacSpec", "vrrpInstances[].authHMAC."),
    ("HmacKeySpec", "vrrpInstances[].authHMAC.keys[]."),
    ("VirtualServerSpec", "virtualServers[]."),
    ("ServiceSpec", "services[]."),
    ("BackendsSpec", "backends."),
    ("FullBackendSpec", "backends.static[]."),
    ("KubernetesSpec", "backends.kubernetes."),
    ("HealthCheckSpec", "healthCheck."),
    ("StatusSpec", "status."),
];

/// Parts of a service that are documented once, at the top.
const SHARED: [(&str, &str); 2] =
    [("services[].backends.", "backends."), ("services[].healthCheck.", "healthCheck.")];

/// A row of one of the tables of fields.
#[derive(Debug)]
struct Row {
    value: String,
    default: String,
    example: Option<String>,
}

fn rows() -> BTreeMap<String, Row> {
    let (_, fields) = DOCS.split_once("\n## Fields\n").unwrap();
    let (fields, _) = fields.split_once("\n## ").unwrap();
    let mut rows = BTreeMap::new();
    for line in fields.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [field, value, default, example, _meaning] = cells.as_slice() else {
            panic!("not five cells: {line}");
        };
        let row = Row { value: (*value).to_owned(), default: (*default).to_owned(), example: code(example) };
        let path = code(field).unwrap();
        assert!(rows.insert(path.clone(), row).is_none(), "{path} has two rows");
    }
    rows
}

/// The first text between backticks.
fn code(cell: &str) -> Option<String> {
    Some(cell.split('`').nth(1)?.to_owned())
}

fn schema() -> Value {
    serde_json::to_value(json_schema()).unwrap()
}

/// The fields of every object with their paths in the documentation.
fn schema_fields(schema: &Value) -> BTreeMap<String, &Value> {
    let mut fields = BTreeMap::new();
    for (object, prefix) in OBJECTS {
        let object = if object.is_empty() { schema } else { &schema["$defs"][object] };
        for (name, field) in object["properties"].as_object().unwrap() {
            fields.insert(format!("{prefix}{name}"), field);
        }
    }
    fields
}

#[test]
fn configuration_docs_have_exactly_the_fields_of_the_schema() {
    let schema = schema();
    let objects = schema["$defs"].as_object().unwrap().iter();
    let objects: BTreeSet<_> =
        objects.filter(|(_, it)| it.get("properties").is_some()).map(|it| it.0.as_str()).collect();
    assert_eq!(objects, OBJECTS.iter().map(|it| it.0).filter(|it| !it.is_empty()).collect());
    let documented: Vec<String> = rows().into_keys().collect();
    let expected: Vec<String> = schema_fields(&schema).into_keys().collect();
    assert_eq!(documented, expected);
}

#[test]
fn configuration_docs_have_the_ranges_and_words_of_the_schema() {
    let schema = schema();
    let rows = rows();
    for (path, field) in schema_fields(&schema) {
        let row = &rows[&path];
        let list = field.get("items").unwrap_or(field);
        for (least, most) in [("minimum", "maximum"), ("minLength", "maxLength")] {
            if let (Some(least), Some(most)) = (list[least].as_u64(), list[most].as_u64()) {
                let range = format!("{least}–{most}");
                // The reader refuses the highest number, which the schema cannot say.
                let range = if path.ends_with("addressLabel") { "0–4294967294".to_owned() } else { range };
                assert!(row.value.contains(&range), "{path}: {range} is not in: {}", row.value);
            }
        }
        for word in words(field, &schema) {
            assert!(row.value.contains(&format!("`{word}`")), "{path}: {word} is not in: {}", row.value);
        }
    }
}

/// The words of an enumeration, also behind references and alternatives.
fn words(field: &Value, schema: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(name) = field["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
        found.extend(words(&schema["$defs"][name], schema));
    }
    for options in ["anyOf", "oneOf"] {
        found.extend(field[options].as_array().into_iter().flatten().flat_map(|it| words(it, schema)));
    }
    let own = field["enum"].as_array().into_iter().flatten().chain(field.get("const"));
    found.extend(own.filter_map(Value::as_str).map(str::to_owned));
    found
}

/// Every value of a document by its path in the documentation.
fn values(document: &Value) -> BTreeMap<String, Vec<Value>> {
    let mut found = BTreeMap::new();
    collect(document, "", &mut found);
    found
}

fn collect(value: &Value, path: &str, found: &mut BTreeMap<String, Vec<Value>>) {
    for (from, to) in SHARED {
        if let Some(rest) = path.strip_prefix(from) {
            return collect(value, &format!("{to}{rest}"), found);
        }
    }
    found.entry(path.to_owned()).or_default().push(value.clone());
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path =
                    if path.is_empty() || path == "spec" { name.clone() } else { format!("{path}.{name}") };
                collect(value, &path, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, &format!("{path}[]"), found)),
        _ => {}
    }
}

/// A value as it stands in a document.
fn parse(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn the_complete_document_has_every_example() {
    let complete = DOCS.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    load(complete, "docs/configuration.md").unwrap_or_else(|errors| panic!("{}", errors.report().plain()));
    let values = values(&parse(complete));
    for (path, row) in rows() {
        let there = values.get(&path).unwrap_or_else(|| panic!("{path} is not in the complete document"));
        let Some(example) = row.example else {
            let nested = there.iter().all(|value| value.is_object() || value.is_array());
            assert!(nested, "{path} has no example");
            continue;
        };
        let example = parse(&example);
        assert!(there.contains(&example), "{path}: {example} is not in the complete document: {there:?}");
    }
}

/// The effective document shows every default that can be written as a value.
#[test]
fn configuration_docs_have_the_real_defaults() {
    let header = "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  ";
    let spec = "backends: {static: [{address: 10.0.0.11, name: a}], kubernetes: {}}\n  \
                vrrpInstances: [{virtualIPs: [10.0.0.100/24]}]\n  virtualServers: [{ipAddress: 10.0.0.100}]\n";
    let loaded = load(&format!("{header}{spec}"), "f.yaml").unwrap();
    let effective = parse(&loaded.config.to_native_yaml(Redact::Nothing).unwrap());
    let effective = values(&effective);
    let mut seen = 0;
    for (path, row) in rows() {
        let Some(there) = effective.get(&path).and_then(|values| values.first()) else { continue };
        if there.is_object()
            || there.is_array()
            || row.default == "required"
            || path == "backends.static[].name"
        {
            continue;
        }
        let default = code(&row.default).unwrap_or_else(|| panic!("{path}: no default, but {there}"));
        // Some defaults are other fields.
        let by_name = effective.get(&default).and_then(|values| values.first());
        let inherited = effective.get(&format!("services[].{default}")).and_then(|values| values.first());
        let written = by_name.or(inherited).cloned().unwrap_or_else(|| parse(&default));
        assert_eq!(&written, there, "{path}");
        seen += 1;
    }
    assert!(seen >= 24, "only {seen} defaults were compared");
}

/// Every document for readers.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folders = ["", "docs", "benches"].map(|folder| root.join(folder));
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let files = files.map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// The anchor of a heading, as code hosts make it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

fn anchors(document: &str) -> BTreeSet<String> {
    let mut in_code = false;
    let mut found = BTreeSet::new();
    for line in document.lines() {
        in_code ^= line.trim_start().starts_with("```");
        if !in_code && line.starts_with('#') {
            found.insert(anchor(line.trim_start_matches('#')));
        }
    }
    found
}

/// The indented block of a document that begins with `start`.
fn sample<'a>(document: &'a str, start: &str) -> Vec<&'a str> {
    let lines = document.lines().skip_while(|line| !line.trim_start().starts_with(start));
    lines.take_while(|line| line.is_empty() || line.starts_with("    ")).collect()
}

#[test]
fn the_readme_and_the_operations_page_show_the_same_status() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let [readme, operations] = ["README.md", "docs/operations.md"]
        .map(|document| std::fs::read_to_string(root.join(document)).unwrap());
    let shown = sample(&readme, "cplb 0.1.0 · pid ");
    assert!(shown.len() > 10, "{shown:?}");
    assert_eq!(shown, sample(&operations, "cplb 0.1.0 · pid "));
}

#[test]
fn links_between_documents_resolve() {
    let mut seen = 0;
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            let (path, fragment) = target.split_once('#').unwrap_or((target, ""));
            let file = if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            assert!(file.exists(), "{}: {target} leads nowhere", document.display());
            if !fragment.is_empty() {
                let there = anchors(&std::fs::read_to_string(&file).unwrap());
                assert!(there.contains(fragment), "{}: no heading for {target}", document.display());
            }
            seen += 1;
        }
    }
    assert!(seen >= 60, "only {seen} links found");
}
