//! The encoding of reports, and their parts.

use super::*;

#[test]
fn parts_of_two_rounds_are_no_report() {
    let report = Report { degraded: vec!["x".repeat(200); 20], ..full_report() };
    let parts = report.to_parts(ROOM);
    let [first, second, ..] = &parts[..] else { panic!("{} parts", parts.len()) };
    let (mut peer, count) = (peer::Peer::new(Instant::now()), u8::try_from(parts.len()).unwrap());
    assert!(!peer.assemble(1, 0, count, first.clone()));
    for (part, records) in (1..count).zip(&parts[1..]) {
        assert!(!peer.assemble(2, part, count, records.clone()));
    }
    assert_eq!(peer.report, None);
    assert!(!peer.assemble(3, 1, count, second.clone()));
    let again = (0..count).zip(&parts).filter(|(part, _)| *part != 1);
    let complete: Vec<bool> =
        again.map(|(part, records)| peer.assemble(3, part, count, records.clone())).collect();
    assert_eq!(complete.iter().filter(|complete| **complete).count(), 1, "in any order");
}

#[test]
fn reports_survive_their_encoding() {
    let report = full_report();
    let parts = report.to_parts(ROOM);
    assert_eq!(parts.len(), 1);
    assert_eq!(Report::decode(&parts.concat()), Ok(report));
}

#[test]
fn large_reports_take_several_parts_and_count_missing_entries() {
    let mut large = full_report();
    large.instances = (1..=255)
        .map(|vrid| InstanceReport {
            vrid,
            state: Some(StateName::Backup),
            priority: 200,
            group: 9,
            claim: 0,
        })
        .collect();
    large.degraded = (0..100).map(|number| format!("{number} {}", "é".repeat(200))).collect();
    let parts = large.to_parts(ROOM);
    assert!(parts.len() <= usize::from(report::MAX_PARTS));
    let decoded = Report::decode(&parts.concat()).unwrap();
    assert_eq!(decoded.instances, large.instances);
    assert!(decoded.degraded.len() > 2);
    assert_eq!(decoded.degraded.len() + usize::from(decoded.unlisted), 100);
    assert!(decoded.degraded.iter().all(|text| text.len() <= 255 && text.len() > 250));
}

#[test]
fn unknown_records_are_skipped() {
    let mut records = full_report().to_parts(ROOM).concat();
    records.extend([200, 0, 3, 1, 2, 3]);
    assert_eq!(Report::decode(&records), Ok(full_report()));
}
