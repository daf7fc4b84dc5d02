//! The JSON schema and the reader agree, as far as a schema can express it.

use std::collections::BTreeSet;
use std::path::Path;

use cplb_config::{Redact, Severity, json_schema, load};
use serde_json::{Map, Value};

/// Checks the part of JSON Schema that the document's schema uses; anything else in it fails the test.
fn validate(value: &Value, schema: &Value, root: &Value) -> Result<(), String> {
    let Value::Object(schema) = schema else { return Err(format!("no schema: {schema}")) };
    for (keyword, rule) in schema {
        let number = || rule.as_f64().ok_or("no number");
        let holds = match keyword.as_str() {
            "$schema" | "title" | "description" | "format" | "$defs" | "properties" => true,
            "$ref" => {
                let name = rule
                    .as_str()
                    .and_then(|path| path.strip_prefix("#/$defs/"))
                    .ok_or("a foreign reference")?;
                validate(value, &root["$defs"][name], root)?;
                true
            }
            "type" => match rule {
                Value::Array(names) => names.iter().any(|name| is_a(value, name)),
                name => is_a(value, name),
            },
            "enum" => rule.as_array().is_some_and(|values| values.contains(value)),
            "const" => rule == value,
            "anyOf" | "oneOf" => {
                let options = rule.as_array().ok_or("no options")?;
                options.iter().any(|option| validate(value, option, root).is_ok())
            }
            "required" => {
                let names = rule.as_array().ok_or("no names")?;
                value
                    .as_object()
                    .is_none_or(|map| names.iter().all(|name| map.contains_key(name.as_str().unwrap_or("?"))))
            }
            "additionalProperties" => match value {
                Value::Object(map) => others(map, schema.get("properties"), rule, root)?,
                _ => true,
            },
            "items" => {
                value.as_array().into_iter().flatten().try_for_each(|item| validate(item, rule, root))?;
                true
            }
            "minItems" | "minLength" | "minimum" => {
                size(value, keyword).is_none_or(|size| number().is_ok_and(|least| size >= least))
            }
            "maxItems" | "maxLength" | "maximum" => {
                size(value, keyword).is_none_or(|size| number().is_ok_and(|most| size <= most))
            }
            other => return Err(format!("the test does not know the keyword {other}")),
        };
        if !holds {
            return Err(format!("{value} breaks {keyword}: {rule}"));
        }
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, property) in properties.into_iter().flatten() {
        if let Some(value) = value.get(name) {
            validate(value, property, root).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    Ok(())
}

/// The number that a limit is compared with; `None` if the limit is about values of another type.
fn size(value: &Value, keyword: &str) -> Option<f64> {
    match keyword {
        "minItems" | "maxItems" => value.as_array().map(|items| items.len() as f64),
        "minLength" | "maxLength" => value.as_str().map(|text| text.chars().count() as f64),
        _ => value.as_f64(),
    }
}

fn others(
    map: &Map<String, Value>,
    properties: Option<&Value>,
    rule: &Value,
    root: &Value,
) -> Result<bool, String> {
    let known = |name: &String| properties.is_some_and(|properties| properties.get(name).is_some());
    for (name, value) in map.iter().filter(|(name, _)| !known(name)) {
        match rule {
            Value::Bool(allowed) if !allowed => return Err(format!("{name} is unknown")),
            Value::Bool(_) => {}
            schema => validate(value, schema, root)?,
        }
    }
    Ok(true)
}

fn is_a(value: &Value, name: &Value) -> bool {
    match name.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => false,
    }
}

fn schema() -> Value {
    serde_json::to_value(json_schema()).unwrap()
}

fn fits(document: &str) -> Result<(), String> {
    let value: Value = serde_saphyr::from_str(document).map_err(|error| error.to_string())?;
    let schema = schema();
    validate(&value, &schema, &schema)
}

fn folder(name: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |path: &std::path::PathBuf| {
        (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(path).unwrap())
    };
    files.iter().map(read).collect()
}

#[test]
fn effective_documents_and_native_examples_fit_the_schema() {
    let mut seen = 0;
    for (name, text) in folder("examples") {
        let Ok(loaded) = load(&text, &name) else { continue };
        let effective = loaded.config.to_native_yaml(Redact::Nothing).unwrap();
        fits(&effective).unwrap_or_else(|error| panic!("effective {name}: {error}\n{effective}"));
        if name.starts_with("native-") {
            fits(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        seen += 1;
    }
    assert!(seen >= 16, "{seen} examples");
}

/// Mistakes within one field are mistakes to the schema too, and what the reader accepts the schema accepts.
#[test]
fn schema_and_reader_refuse_the_same_native_documents() {
    let within_a_field =
        ["unknown-field", "required-field", "out-of-range", "unknown-value", "too-many", "priority"];
    let (mut refused, mut accepted) = (0, 0);
    for (file, text) in folder("rules") {
        if file != "native.txt" {
            continue;
        }
        for case in text.split("=== ").skip(1) {
            let (document, _) = case.split_once("\n--->\n").unwrap();
            let (title, document) = document.split_once('\n').unwrap();
            match load(document, "f.yaml") {
                Ok(_) => {
                    fits(document)
                        .unwrap_or_else(|error| panic!("{title}: only the schema refuses it: {error}"));
                    accepted += 1;
                }
                Err(errors) => {
                    let mut rules = errors.errors().map(|error| error.rule);
                    if rules.any(|rule| within_a_field.contains(&rule)) && !title.contains("health check") {
                        assert!(fits(document).is_err(), "{title}: only the reader refuses it");
                        refused += 1;
                    }
                }
            }
        }
    }
    assert!(refused >= 13 && accepted >= 8, "{refused} refused, {accepted} accepted");
}

/// The reader names the fields it knows when it meets one it does not.
#[test]
fn schema_and_reader_know_the_same_fields() {
    let document = "
apiVersion: cplb/v1alpha1
kind: ControlPlaneLoadBalancer
zzzzzzzzzz: 0
spec:
  zzzzzzzzzz: 0
  vrrpInstances: [{zzzzzzzzzz: 0}]
  virtualServers: [{zzzzzzzzzz: 0}]
  services: [{zzzzzzzzzz: 0}]
  backends: {zzzzzzzzzz: 0, static: [{zzzzzzzzzz: 0}], kubernetes: {zzzzzzzzzz: 0}}
  healthCheck: {zzzzzzzzzz: 0}
  status: {zzzzzzzzzz: 0}
";
    let errors = load(document, "f.yaml").unwrap_err();
    let schema = schema();
    let definitions = [
        ("zzzzzzzzzz", None),
        ("zzzzzzzzzz", Some("Spec")),
        ("vrrpInstances[0].zzzzzzzzzz", Some("VrrpInstance")),
        ("virtualServers[0].zzzzzzzzzz", Some("VirtualServerSpec")),
        ("services[0].zzzzzzzzzz", Some("ServiceSpec")),
        ("backends.zzzzzzzzzz", Some("BackendsSpec")),
        ("backends.static[0].zzzzzzzzzz", Some("FullBackendSpec")),
        ("backends.kubernetes.zzzzzzzzzz", Some("KubernetesSpec")),
        ("healthCheck.zzzzzzzzzz", Some("HealthCheckSpec")),
        ("status.zzzzzzzzzz", Some("StatusSpec")),
    ];
    let unknown = || errors.errors().filter(|error| error.rule == "unknown-field");
    assert_eq!(unknown().count(), definitions.len());
    let mut remaining: Vec<_> = unknown().collect();
    for (path, definition) in definitions {
        let at = remaining.iter().position(|error| error.path == path).unwrap_or_else(|| panic!("{path}"));
        let error = remaining.remove(at);
        assert_eq!(error.severity, Severity::Error);
        let reader: BTreeSet<&str> = error.help.strip_prefix("known here: ").unwrap().split(", ").collect();
        let object = definition.map_or(&schema, |name| &schema["$defs"][name]);
        let properties = object["properties"].as_object().unwrap_or_else(|| panic!("{definition:?}"));
        let schema: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
        assert_eq!(reader, schema, "{path}");
    }
}
