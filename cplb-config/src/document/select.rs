//! Selects the configuration among the documents of a file.

use crate::format::Format;
use crate::suggest::closest;
use crate::walk::{Finding, Reporter};
use crate::yaml::{Child, Document, Span};

use super::multi;

const NATIVE_API: &str = "cplb/v1alpha1";
const KINDS: &[&str] = &["ControlPlaneLoadBalancer", "ClusterConfig", "Cluster"];

/// The kind of a document by its beginning.
enum Head {
    Known(Format),
    /// Nearly one of the known kinds.
    Wrong {
        at: Span,
        finding: Finding,
    },
    Foreign {
        at: Span,
        what: String,
    },
}

/// Finds the document to read. `None` only if something was reported.
///
/// In a file for k0sctl, ClusterConfigs beside the Cluster are parts of it.
pub(crate) fn select(documents: &[Document], out: &Reporter<'_>) -> Option<(Format, Child)> {
    let mut known = Vec::new();
    let (mut wrong, mut foreign) = (None, None);
    for document in documents {
        match head(&document.root) {
            Head::Known(format) => known.push((format, &document.root)),
            Head::Wrong { at, finding } => wrong = wrong.or(Some((at, finding))),
            Head::Foreign { at, what } => foreign = foreign.or(Some((at, what))),
        }
    }
    if let Some(cluster) = known.iter().position(|(format, _)| *format == Format::K0sctl)
        && known.iter().enumerate().all(|(index, (format, _))| index == cluster || *format == Format::K0s)
    {
        let (_, root) = known.remove(cluster);
        if let Some((_, part)) = known.iter().find(|(_, part)| !has_head(part)) {
            let message = "k0sctl refuses a file with a document that lacks apiVersion or kind";
            let help = "begin it with `apiVersion: k0s.k0sproject.io/v1beta1` and `kind: ClusterConfig`";
            out.error("", part.at, Finding::new("wrong-kind", message, help));
            return None;
        }
        // k0sctl takes other kinds and versions of k0s's group for manifests.
        let (parts, others): (Vec<&Child>, Vec<&Child>) =
            known.iter().map(|(_, part)| *part).partition(|part| is_cluster_config(part));
        for other in others {
            let message = "k0sctl reads no configuration from this document";
            let help = "k0sctl takes `apiVersion: k0s.k0sproject.io/v1beta1` with `kind: ClusterConfig` only";
            out.warn("", other.at, Finding::new("unused-document", message, help));
        }
        return Some((Format::K0sctl, multi::with_configs(root, &parts, out)?));
    }
    if let [(_, first), (format, second), ..] = known.as_slice() {
        let message =
            format!("a second configuration ({format}) in one file; the first is on line {}", first.at.line);
        let help = "keep one of them, or put them into files of their own";
        out.error("", second.at, Finding::new("ambiguous", message, help));
        return None;
    }
    if let Some(&(format, root)) = known.first() {
        return Some((format, root.clone()));
    }
    if let Some((at, finding)) = wrong {
        out.error("", at, finding);
    } else if let Some((at, what)) = foreign {
        let help = "the file must hold a k0s ClusterConfig, a k0sctl Cluster, or a ControlPlaneLoadBalancer of \
                    apiVersion cplb/v1alpha1";
        out.error("kind", at, Finding::new("wrong-kind", what, help));
    } else {
        let help = "write a ControlPlaneLoadBalancer of apiVersion cplb/v1alpha1, or give your k0s.yaml or k0sctl.yaml";
        let at = Span { line: 1, column: 1, ..Span::default() };
        out.error("", at, Finding::new("empty", "the file holds no document", help));
    }
    None
}

/// Returns whether k0sctl merges a document into the Cluster's configuration (`readConfig` compares in any case).
fn is_cluster_config(root: &Child) -> bool {
    let is = |key: &str, expected: &str| {
        let value = root.mapping().and_then(|mapping| mapping.child(key)).and_then(|child| child.text());
        value.is_some_and(|text| text.eq_ignore_ascii_case(expected))
    };
    is("apiVersion", "k0s.k0sproject.io/v1beta1") && is("kind", "ClusterConfig")
}

/// k0s looks neither at apiVersion nor at kind (`MergedWithYAML`), k0sctl compares both in any case and needs both
/// (`manifest.Reader`).
fn head(root: &Child) -> Head {
    let Some(mapping) = root.mapping() else {
        return Head::Foreign {
            at: root.at,
            what: "this document is no mapping (`key: value` lines)".to_owned(),
        };
    };
    let (api, kind) = (mapping.child("apiVersion"), mapping.child("kind"));
    let text = |child: Option<&'_ Child>| child.and_then(|child| child.text()).unwrap_or_default().to_owned();
    let (api_text, kind_text) = (text(api), text(kind));
    if api_text.is_empty() && kind_text.is_empty() {
        return by_shape(root);
    }
    let kind_at = kind.map_or(root.at, |child| child.at);
    let api_at = api.map_or(kind_at, |child| child.at);
    let group = api_text.split('/').next().unwrap_or_default().to_ascii_lowercase();
    match (group.as_str(), kind_text.to_ascii_lowercase().as_str()) {
        ("k0s.k0sproject.io", "clusterconfig" | "cluster" | "") | ("", "clusterconfig") => {
            Head::Known(Format::K0s)
        }
        // cfctl is a k0sctl of the same shape.
        ("k0sctl.k0sproject.io" | "cfctl.clusterfactory.io", "cluster") => Head::Known(Format::K0sctl),
        ("cplb", _) if api_text == NATIVE_API && kind_text == KINDS[0] => Head::Known(Format::Native),
        ("", "cluster") => cluster_without_group(root),
        (_, "controlplaneloadbalancer") if kind_text == KINDS[0] => Head::Wrong {
            at: api_at,
            finding: Finding::new(
                "wrong-version",
                format!("`{api_text}` is no apiVersion of a ControlPlaneLoadBalancer"),
                format!("write `apiVersion: {NATIVE_API}`"),
            ),
        },
        ("cplb" | "k0s.k0sproject.io" | "k0sctl.k0sproject.io" | "cfctl.clusterfactory.io", _) => {
            let right = match group.as_str() {
                "cplb" => "ControlPlaneLoadBalancer",
                "k0s.k0sproject.io" => "ClusterConfig",
                _ => "Cluster",
            };
            let message = match kind_text.as_str() {
                "" => format!("the kind of {api_text} is missing"),
                kind => format!("the kind `{kind}` does not belong to {api_text}"),
            };
            Head::Wrong {
                at: kind_at,
                finding: Finding::new("wrong-kind", message, format!("write `kind: {right}`")),
            }
        }
        _ => match closest(&kind_text, KINDS) {
            Some(meant) => Head::Wrong {
                at: api_at,
                finding: Finding::new(
                    "wrong-kind",
                    format!("apiVersion `{api_text}` and kind `{kind_text}` are not read"),
                    format!("did you mean `apiVersion: {}` and `kind: {meant}`?", api_of(meant)),
                ),
            },
            None => Head::Foreign { at: kind_at, what: format!("the kind `{kind_text}` is not read") },
        },
    }
}

/// Returns whether both apiVersion and kind are there.
fn has_head(root: &Child) -> bool {
    let has = |key| {
        let child = root.mapping().and_then(|mapping| mapping.child(key));
        child.and_then(Child::text).is_some_and(|text| !text.is_empty())
    };
    has("apiVersion") && has("kind")
}

/// Early k0s called its configuration so, too.
fn cluster_without_group(root: &Child) -> Head {
    if !matches!(by_shape(root), Head::Known(Format::K0sctl)) {
        return Head::Known(Format::K0s);
    }
    let help = format!("write `apiVersion: {}`, without which k0sctl refuses the file", api_of("Cluster"));
    let finding = Finding::new("wrong-version", "the apiVersion of the Cluster is missing", help);
    Head::Wrong { at: root.at, finding }
}

fn api_of(kind: &str) -> &'static str {
    match kind {
        "ClusterConfig" => "k0s.k0sproject.io/v1beta1",
        "Cluster" => "k0sctl.k0sproject.io/v1beta1",
        _ => NATIVE_API,
    }
}

/// k0s reads a file without apiVersion and kind, and documentation often leaves them out.
fn by_shape(root: &Child) -> Head {
    let has = |child: Option<&Child>, names: &[&str]| {
        child
            .and_then(Child::mapping)
            .is_some_and(|mapping| names.iter().any(|name| mapping.child(name).is_some()))
    };
    let spec = root.mapping().and_then(|mapping| mapping.child("spec"));
    if has(spec, &["hosts", "k0s"]) {
        return Head::Known(Format::K0sctl);
    }
    if has(spec, &["api", "network", "storage", "controlPlaneLoadBalancing"]) || has(Some(root), &["network"])
    {
        return Head::Known(Format::K0s);
    }
    if has(spec, &["vrrpInstances", "services", "backends"]) || has(Some(root), &["vrrpInstances"]) {
        let help = format!("begin with `apiVersion: {NATIVE_API}` and `kind: ControlPlaneLoadBalancer`");
        let finding = Finding::new("wrong-kind", "apiVersion and kind are missing", help);
        return Head::Wrong { at: root.at, finding };
    }
    Head::Foreign { at: root.at, what: "this document has neither apiVersion nor kind".to_owned() }
}
