//! The text of `cplb history`.

use std::fmt::Write;

use super::document::Document;
use super::format::{Entry, Kind};
use super::names::Names;
use super::terms::Term;
use super::time::WallTime;

/// A line: the time, the subject and the text.
type Line = (WallTime, String, String);

/// The terms of the Actives, and the times at which this node knew less; with `all`, each transition of each controller. What
/// was over before `since` is left out.
pub(crate) fn text(document: &Document, all: bool, since: WallTime) -> String {
    let lines_of = Lines::of(document);
    let entries = document.entries.iter().filter(|entry| entry.time >= since);
    let mut lines: Vec<Line> = entries.filter_map(|entry| lines_of.entry(entry, all)).collect();
    if !all {
        let shown =
            document.terms.iter().enumerate().filter(|(index, _)| document.lasts_until(*index, since));
        lines.extend(shown.map(|(index, term)| {
            let former = document.terms[..index].iter().rfind(|former| former.vrid == term.vrid);
            lines_of.term(term, former)
        }));
    }
    // Stable: of one time, what began earlier comes first.
    lines.sort_by_key(|(time, ..)| *time);
    let width = lines.iter().map(|(_, subject, _)| subject.chars().count()).max().unwrap_or_default();
    let mut out = String::new();
    for (time, subject, text) in &lines {
        let _ = writeln!(out, "{time}  {subject:width$}  {text}");
    }
    out
}

struct Lines(Names);

impl Lines {
    fn of(document: &Document) -> Self {
        let entries = document.entries.iter();
        let nodes = entries.filter_map(|entry| Some((entry.address?, entry.node.clone())));
        let instances = document.instances.iter();
        Self(Names::new(nodes, instances.map(|instance| (instance.vrid, instance.virtual_ips.clone()))))
    }

    fn term(&self, term: &Term, former: Option<&Term>) -> Line {
        let mut text = format!("Active: {}: {}", term.node, self.0.explained(&term.reason));
        let end = former.and_then(|former| Some((&former.node, former.end_reason.as_ref()?)));
        match (end, term.silence_milliseconds) {
            (Some((node, why)), _) => _ = write!(text, " ({node}: {})", self.0.explained(why)),
            (None, Some(silence)) => _ = write!(text, ", last heard {} before", seconds(silence)),
            (None, None) => {}
        }
        if term.is_heard {
            text.push_str(" (as heard from here; it does not report itself)");
        }
        (term.begin, self.0.instance(term.vrid), text)
    }

    /// The line of an entry; `None` for one of which a term tells.
    fn entry(&self, entry: &Entry, all: bool) -> Option<Line> {
        let Entry { time, node, since, .. } = entry;
        let (subject, text) = match entry.kind {
            Kind::Transition | Kind::Heard if !all => return None,
            Kind::Transition => {
                let from = entry.from.as_deref().map(|from| format!("{from} → ")).unwrap_or_default();
                let to = entry.to.as_deref().unwrap_or_default();
                let reason = self.0.explained(&entry.reason);
                (self.0.instance(entry.vrid?), format!("{node}: {from}{to}: {reason}"))
            }
            Kind::Heard => {
                let address = entry.address?;
                let name = if node.is_empty() { address.to_string() } else { format!("{node} ({address})") };
                let reason = self.0.explained(&entry.reason);
                (self.0.instance(entry.vrid?), format!("heard from here: {name} is Active: {reason}"))
            }
            Kind::Started => {
                let unknown = since.map_or_else(
                    || "what was before is not known".to_owned(),
                    |since| format!("from {since} until then only what the others report is known"),
                );
                (String::new(), format!("cplb started on {node}; {unknown}"))
            }
            Kind::Stopped => (String::new(), format!("cplb stopped on {node}")),
            Kind::Gap => {
                let since = (*since)?;
                (String::new(), format!("some transitions of {node} between {since} and then are not known"))
            }
        };
        Some((*time, subject, text))
    }
}

fn seconds(milliseconds: u32) -> String {
    format!("{:.3} s", f64::from(milliseconds) / 1000.0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::document::Instance;
    use super::super::terms::terms;
    use super::*;

    #[test]
    fn the_actives_are_shown_with_names_and_causes() {
        let entries = r#"[
            {"time": "2026-11-29T02:40:01Z", "kind": "started", "node": "c1"},
            {"time": "2026-11-29T02:40:04.5Z", "kind": "transition", "node": "c1", "address": "10.0.0.11", "from": "backup",
             "to": "active", "virtualRouterID": 51, "reason": "no active router was heard"},
            {"time": "2026-11-29T02:57:03.004Z", "kind": "transition", "node": "c2", "address": "10.0.0.12",
             "to": "active", "virtualRouterID": 51, "reason": "10.0.0.11 fell silent", "silenceMilliseconds": 3200},
            {"time": "2026-11-29T02:59:00Z", "kind": "transition", "node": "c2", "address": "10.0.0.12", "from": "active",
             "to": "resigning", "virtualRouterID": 51, "reason": "handover on request"},
            {"time": "2026-11-29T02:59:00.004Z", "kind": "transition", "node": "c1", "address": "10.0.0.11",
             "from": "backup", "to": "active", "virtualRouterID": 51, "reason": "10.0.0.12 resigned", "silenceMilliseconds": 1},
            {"time": "2026-11-29T03:00:00Z", "kind": "heard", "node": "", "address": "10.0.0.13",
             "virtualRouterID": 52, "reason": "10.0.0.12 resigned"}
        ]"#;
        let entries: Vec<Entry> = serde_json::from_str(entries).unwrap();
        let terms = terms(&entries.iter().cloned().map(Arc::new).collect::<Vec<_>>());
        let instances = vec![Instance { vrid: 51, virtual_ips: vec!["10.0.0.100/24".to_owned()] }];
        let document = Document { instances, terms, entries, ..Document::default() };
        assert_eq!(
            text(&document, false, WallTime::default()),
            "2026-11-29T02:40:01.000Z                     cplb started on c1; what was before is not known\n\
             2026-11-29T02:40:04.500Z  10.0.0.100         Active: c1: no active router was heard\n\
             2026-11-29T02:57:03.004Z  10.0.0.100         Active: c2: c1 (10.0.0.11) fell silent, last heard 3.200 s before\n\
             2026-11-29T02:59:00.004Z  10.0.0.100         Active: c1: c2 (10.0.0.12) resigned (c2: handover on request)\n\
             2026-11-29T03:00:00.000Z  virtual router 52  Active: 10.0.0.13: c2 (10.0.0.12) resigned (as heard from here; it \
             does not report itself)\n"
        );
        let all = text(&document, true, WallTime::default());
        assert!(all.contains("c1: backup → active: no active router was heard\n"), "{all}");
        // The entries that explain a line may be earlier than `since`.
        let since: WallTime = serde_json::from_str("\"2026-11-29T02:58:00Z\"").unwrap();
        let late = text(&document, false, since);
        let lines: Vec<&str> = late.lines().collect();
        assert!(lines.len() == 3 && lines[0].contains("c1 (10.0.0.11) fell silent"), "{late}");
        assert!(lines[1].contains("c2 (10.0.0.12) resigned (c2: handover on request)"), "{late}");
        assert!(all.contains("heard from here: 10.0.0.13 is Active: c2 (10.0.0.12) resigned\n"), "{all}");
    }
}
