use super::*;

fn at(seconds: u64) -> WallTime {
    WallTime::from_millis(seconds * 1000)
}

fn empty() -> History {
    History::new("c1", Content::default())
}

fn peer(node: &str, clock_ahead: i64, transitions: &[(u64, &'static str)]) -> PeerReport {
    let transition = |(seconds, to): &(u64, &'static str)| PeerTransition {
        time: at(*seconds),
        vrid: 51,
        from: None,
        to,
        reason: "why".to_owned(),
        silence_milliseconds: None,
    };
    PeerReport {
        node: node.to_owned(),
        addresses: vec!["10.0.0.12".parse().unwrap(), "fe80::12".parse().unwrap()],
        clock_ahead,
        transitions: transitions.iter().map(transition).collect(),
        is_full: false,
    }
}

fn own(seconds: u64, to: &'static str) -> OwnTransition {
    OwnTransition {
        time: at(seconds),
        address: None,
        vrid: 51,
        from: "backup",
        to,
        reason: "why".to_owned(),
        silence_milliseconds: None,
    }
}

fn lines(history: &History) -> Vec<String> {
    let line = |entry: &Arc<Entry>| {
        let Entry { time, kind, node, to, .. } = &**entry;
        let what = to.clone().unwrap_or_else(|| format!("{kind:?}"));
        format!("{} {node} {what}", time.millis() / 1000)
    };
    history.entries().map(line).collect()
}

#[test]
fn entries_are_in_the_order_of_this_nodes_clock() {
    let mut history = empty();
    history.start(at(100));
    history.own(own(110, "active"));
    history.peer(&peer("c2", 7_000, &[(112, "backup"), (125, "active")]), at(1_000_000));
    assert_eq!(lines(&history), ["100 c1 Started", "105 c2 backup", "110 c1 active", "118 c2 active"]);
}

#[test]
fn a_transition_that_is_reported_again_is_not_added_again() {
    let mut history = empty();
    history.peer(&peer("c2", 0, &[(10, "backup"), (20, "active")]), at(1_000_000));
    let revision = history.revision();
    // By another link, when the clocks have drifted apart.
    history.peer(&peer("c2", 90, &[(10, "backup"), (20, "active")]), at(1_000_000));
    assert_eq!((lines(&history).len(), history.revision()), (2, revision));
    history.peer(&peer("c2", 90, &[(20, "active"), (30, "backup")]), at(1_000_000));
    assert_eq!(lines(&history).len(), 3);
    assert_ne!(history.revision(), revision);
}

#[test]
fn reports_under_the_own_name_or_none_are_ignored() {
    let mut history = empty();
    history.peer(&peer("c1", 0, &[(10, "active")]), at(1_000_000));
    history.peer(&peer("", 0, &[(10, "active")]), at(1_000_000));
    assert_eq!(lines(&history), [""; 0]);
}

#[test]
fn missed_transitions_of_a_peer_are_a_gap() {
    let mut history = empty();
    let full = |transitions: &[_]| PeerReport { is_full: true, ..peer("c2", 0, transitions) };
    history.peer(&full(&[(10, "backup"), (20, "active")]), at(1_000_000));
    assert_eq!(lines(&history), ["10 c2 backup", "20 c2 active"], "nothing is known from before");
    history.peer(&full(&[(20, "active"), (30, "backup")]), at(1_000_000));
    history.peer(&full(&[(50, "backup"), (60, "active")]), at(1_000_000));
    let expected =
        ["10 c2 backup", "20 c2 active", "30 c2 backup", "50 c2 Gap", "50 c2 backup", "60 c2 active"];
    assert_eq!(lines(&history), expected);
    let gap = history.entries().find(|entry| entry.kind == Kind::Gap).unwrap();
    assert_eq!(gap.since, Some(at(30)));
}

#[test]
fn a_router_that_is_heard_before_it_reports_itself_is_named_later() {
    let mut history = empty();
    for address in ["10.0.0.12", "fe80::12", "10.0.0.99"] {
        let address = address.parse().unwrap();
        history.active_seen(ActiveSeen { time: at(5), vrid: 51, address, reason: String::new() });
    }
    history.peer(&peer("c2", 0, &[]), at(1_000_000));
    let names: Vec<_> = history.entries().map(|entry| entry.node.as_str()).collect();
    assert_eq!(names, ["c2", "c2", ""]);
    history.active_seen(ActiveSeen {
        time: at(6),
        vrid: 51,
        address: "10.0.0.12".parse().unwrap(),
        reason: String::new(),
    });
    assert_eq!(history.entries().next_back().unwrap().node, "c2");
}

#[test]
fn the_oldest_entries_go_and_do_not_come_back() {
    let mut history = empty();
    history.peer(&peer("c2", 0, &[(1, "active")]), at(1_000_000));
    for second in 0..MAX_ENTRIES as u64 + 10 {
        history.own(own(10 + second, "backup"));
    }
    assert_eq!(history.entries().count(), MAX_ENTRIES);
    assert_eq!(lines(&history)[..2], ["1 c2 active", "21 c1 backup"]);
    let revision = history.revision();
    history.peer(&peer("c2", 0, &[(1, "active")]), at(1_000_000));
    assert_eq!(history.revision(), revision, "it is known");
    let content = Content { entries: history.entries().map(|entry| (**entry).clone()).collect() };
    let text = serde_json::to_string(&content).unwrap();
    assert_eq!(serde_json::from_str::<Content>(&text).unwrap(), content);
}

#[test]
fn a_restart_tells_of_the_run_before_and_reports_its_transitions_again() {
    let mut history = empty();
    history.start(at(1));
    history.own(own(10, "active"));
    history.peer(&peer("c2", 0, &[(11, "backup")]), at(1_000_000));
    let content = Content { entries: history.entries().map(|entry| (**entry).clone()).collect() };
    let mut history = History::new("c1", content);
    history.start(at(60));
    let started = history.entries().next_back().unwrap();
    assert_eq!((started.kind, started.since), (Kind::Started, Some(at(11))));
    history.own(own(61, "backup"));
    let own: Vec<_> = history.last_own(8).iter().map(|entry| entry.to.clone().unwrap()).collect();
    assert_eq!(own, ["active", "backup"]);
    assert_eq!(history.last_own(1)[0].time, at(61));
}

#[test]
fn a_clock_that_is_set_back_hides_no_transition() {
    let mut history = empty();
    (0..20).for_each(|second| history.own(own(1_000 + second, "backup")));
    history.own(own(10, "active"));
    let last: Vec<_> = history.last_own(8).iter().map(|entry| entry.to.clone().unwrap()).collect();
    assert_eq!(last.last().unwrap(), "active");
    let entries: Vec<_> = history.entries().collect();
    assert!(
        entries.iter().all(|entry| entry.time == at(10))
            && entries.last().unwrap().to == Some("active".into())
    );
    // A peer whose times are wrong.
    history.peer(&peer("c2", 0, &[(999_999, "active")]), at(11));
    assert_eq!(history.entries().next_back().unwrap().time, at(11));
}

#[test]
fn a_node_with_many_entries_does_not_displace_the_others() {
    let mut history = empty();
    history.start(at(1));
    history.own(own(2, "active"));
    for second in 0..2_000 {
        history.peer(&peer("c2", 0, &[(10 + second, "backup")]), at(100_000));
    }
    assert_eq!(history.entries().count(), MAX_ENTRIES);
    assert_eq!(lines(&history)[..2], ["1 c1 Started", "2 c1 active"]);
    assert_eq!(lines(&history).last().unwrap(), "2009 c2 backup");
}

#[test]
fn forged_contents_are_refused() {
    let entry = serde_json::to_value(Entry::new(at(7), Kind::Started, "c1")).unwrap();
    let with = |field: &str, value: serde_json::Value| {
        let mut entry = entry.clone();
        entry[field] = value;
        serde_json::from_value::<Content>(serde_json::json!({"entries": [entry]}))
    };
    assert!(with("node", "c2".into()).is_ok());
    let long = "x".repeat(256);
    let forged: [(&str, serde_json::Value); 9] = [
        ("kind", "other".into()),
        ("kind", "transition".into()),
        ("kind", "heard".into()),
        ("kind", "gap".into()),
        ("node", long.clone().into()),
        ("reason", long.into()),
        ("time", "yesterday".into()),
        ("address", "10.0.0".into()),
        ("unknown", 1.into()),
    ];
    for (field, value) in forged {
        assert!(with(field, value.clone()).is_err(), "{field} {value}");
    }
    let [later, earlier] = [at(9), at(8)].map(|time| Entry::new(time, Kind::Stopped, "c1"));
    let unordered = serde_json::json!({"entries": [later, earlier]});
    assert!(serde_json::from_value::<Content>(unordered).is_err());
}
