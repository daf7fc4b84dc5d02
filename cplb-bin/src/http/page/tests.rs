use crate::status::schema::{Backend, Instance, Peer, PeerInstance, Service, Serving};

use super::*;

fn entry(text: &str) -> Arc<Entry> {
    Arc::new(serde_json::from_str(text).unwrap())
}

fn view() -> View {
    let backend = |address: &str, state: &str| Backend {
        address: address.to_owned(),
        state: state.to_owned(),
        reason: (state == "down").then(|| "connection refused".to_owned()),
        ..Backend::default()
    };
    let service = Service {
        name: "kube-apiserver".to_owned(),
        port: 6443,
        backends: vec![backend("10.0.0.11:6443", "up"), backend("10.0.0.12:6443", "down")],
        ..Service::default()
    };
    let instance = Instance {
        virtual_router_id: 51,
        virtual_ips: vec!["10.0.0.100/24".to_owned()],
        state: "active".to_owned(),
        ..Instance::default()
    };
    let peer = Peer {
        node: "c2".to_owned(),
        address: "10.0.0.12".to_owned(),
        serving: Some(false),
        reason: Some("no healthy backend".to_owned()),
        degraded: vec!["the disk is full".to_owned()],
        instances: vec![PeerInstance {
            virtual_router_id: 51,
            state: "backup".to_owned(),
            ..PeerInstance::default()
        }],
        ..Peer::default()
    };
    let status = Status {
        serving: Serving { serving: true, ..Serving::default() },
        instances: vec![instance],
        services: vec![service],
        peers: vec![peer],
        ..Status::default()
    };
    let entries = vec![
        entry(
            r#"{"time": "2026-11-29T02:40:04Z", "kind": "transition", "node": "c2", "address": "10.0.0.12",
             "virtualRouterID": 51, "to": "active", "reason": "no active router was heard"}"#,
        ),
        entry(
            r#"{"time": "2026-11-29T02:57:03Z", "kind": "transition", "node": "c1", "address": "10.0.0.11",
             "virtualRouterID": 51, "to": "active", "reason": "10.0.0.12 fell silent", "silenceMilliseconds": 3200}"#,
        ),
    ];
    View { status, node: "c1".to_owned(), entries }
}

fn now() -> WallTime {
    serde_json::from_str("\"2026-11-29T02:58:03Z\"").unwrap()
}

fn html(view: &View) -> String {
    page(view, &Samples::default(), now()).into_string()
}

#[test]
fn the_page_shows_the_whole_group() {
    let text = html(&view());
    for expected in [
        "<title>c1: serving · cplb</title>",
        "<span class=\"badge good\">Active</span> <strong>c1</strong> for 60 s: c2 (10.0.0.12) fell silent",
        "<strong>no</strong>: no healthy backend",
        "<li>the disk is full</li>",
        "<span class=\"badge warn\">1 of 2 up</span>",
        "<span class=\"badge bad\">down</span>",
        "connection refused, none yet",
        "Actives of 10.0.0.100 within the last 18 min",
        "2026-11-29T02:40:04.000Z",
    ] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
}

#[test]
fn problems_are_hidden_on_a_sound_group_only() {
    let mut sound = view();
    sound.status.peers[0].degraded.clear();
    assert!(html(&sound).contains("<li>it cannot serve: no healthy backend</li>"));
    sound.status.peers[0].serving = Some(true);
    assert!(html(&sound).contains("aria-labelledby=\"problems-title\" hidden>"));
    assert!(!html(&view()).contains("aria-labelledby=\"problems-title\" hidden>"));
}

#[test]
fn a_controller_that_has_fallen_silent_is_a_problem_for_a_day() {
    let mut lost = view();
    lost.status.peers.clear();
    lost.entries.push(entry(
        r#"{"time": "2026-11-29T02:57:30Z", "kind": "transition", "node": "c3", "to": "backup", "virtualRouterID": 51,
            "nodeTime": "2026-11-29T02:57:30Z"}"#,
    ));
    let text = html(&lost);
    assert!(text.contains("<h3>c3</h3><ul><li>it does not report itself"), "{text}");
    let later = now().saturating_add(MISSED);
    assert!(!page(&lost, &Samples::default(), later).into_string().contains("does not report itself"));
}

#[test]
fn an_instance_without_a_known_active_says_so() {
    let mut lost = view();
    lost.status.instances[0].state = "backup".to_owned();
    let text = html(&lost);
    assert!(text.contains("no Active") && text.contains("no router holds it"), "{text}");
    // By the group channel, where its advertisements are not heard.
    lost.status.peers[0].instances[0].state = "active".to_owned();
    assert!(html(&lost).contains("<span class=\"badge good\">Active</span> <strong>c2</strong>"));
}

#[test]
fn texts_of_others_are_escaped() {
    let mut hostile = view();
    let text = "<script>alert(1)</script>\"'&";
    hostile.node = text.to_owned();
    hostile.status.peers[0].node = text.to_owned();
    hostile.status.degraded = vec![text.to_owned()];
    hostile.status.services[0].name = text.to_owned();
    hostile.status.services[0].backends[1].reason = Some(text.to_owned());
    let html = html(&hostile);
    assert!(!html.contains("<script>") && html.contains("&lt;script&gt;"), "{html}");
    assert!(!html.contains("=\"<"), "{html}");
}

#[test]
fn a_page_without_anything_is_complete() {
    let text = html(&View::default());
    for expected in ["no <code>vrrpInstances</code>", "No service is balanced", "No router has been Active"] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
}
