//! The changes that `present` detects, and its cost.

use std::sync::mpsc::{self, TryRecvError};
use std::time::Duration;

use lb_proxy::nft::{Nft, Presence, Table, TableName};
use nix::time::{ClockId, clock_gettime};

use crate::ns::{ip, nft};
use crate::{block_on, find, redirects, table};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("every_change_by_other_software_is_noticed", every_change_by_other_software_is_noticed),
    ("changes_of_other_tables_leave_the_table_intact", changes_of_other_tables_leave_the_table_intact),
    ("only_the_applied_table_is_present", only_the_applied_table_is_present),
    ("removal_deletes_the_table_and_is_idempotent", removal_deletes_the_table_and_is_idempotent),
    ("names_keep_tables_apart", names_keep_tables_apart),
    ("many_vips_and_services_are_watched", many_vips_and_services_are_watched),
    ("a_presence_check_costs_microseconds", a_presence_check_costs_microseconds),
    (
        "concurrent_changes_of_other_tables_do_not_prevent_an_apply",
        concurrent_changes_of_other_tables_do_not_prevent_an_apply,
    ),
];

fn applied(table: &Table) -> Nft {
    let mut nft = find();
    block_on(nft.apply(table)).unwrap();
    assert_eq!(nft.present(table).unwrap(), Presence::Intact);
    nft
}

fn rule_handle(chain: &str) -> String {
    let listing = nft(&format!("list chain inet cplb {chain}"));
    let rule = listing.lines().find(|line| line.contains("dnat")).unwrap();
    rule.rsplit(' ').next().unwrap().to_owned()
}

fn every_change_by_other_software_is_noticed() {
    let changes = [
        "delete table inet cplb".to_owned(),
        "flush ruleset".to_owned(),
        "flush chain inet cplb output".to_owned(),
        "flush chain inet cplb prerouting; delete chain inet cplb prerouting".to_owned(),
        "delete rule inet cplb prerouting handle HANDLE".to_owned(),
        "replace rule inet cplb prerouting handle HANDLE tcp dport 1 accept".to_owned(),
        "insert rule inet cplb output accept".to_owned(),
        "add rule inet cplb output counter".to_owned(),
        "delete element inet cplb vip4 { 10.0.0.100 }".to_owned(),
        "add element inet cplb vip6 { fd00::101 }".to_owned(),
        "delete element inet cplb vip4 { 10.0.0.100 }; add element inet cplb vip4 { 10.0.0.1 }".to_owned(),
        "add chain inet cplb mine { type nat hook prerouting priority -150; }".to_owned(),
        "add chain inet cplb output { policy drop; }".to_owned(),
        "add table inet cplb { flags dormant; }".to_owned(),
        "add set inet cplb other { type ipv4_addr; }".to_owned(),
    ];
    let mut guard = applied(&table());
    for change in changes {
        let change = change.replace("HANDLE", &rule_handle("prerouting"));
        nft(&change);
        assert_eq!(guard.present(&table()).unwrap(), Presence::Missing, "{change}");
        assert_eq!(guard.present(&table()).unwrap(), Presence::Missing, "{change}: still");
        block_on(guard.apply(&table())).unwrap();
        assert_eq!(guard.present(&table()).unwrap(), Presence::Intact, "{change}: healed");
    }
    let listing = nft("list table inet cplb");
    assert!(listing.contains("chain prerouting") && !listing.contains("chain mine"), "{listing}");
}

fn changes_of_other_tables_leave_the_table_intact() {
    nft("add table inet filter; add chain inet filter input { type filter hook input priority 0; }");
    nft("add rule inet filter input tcp dport 22 counter accept");
    nft("add table ip cplb; add chain ip cplb output");
    let foreign = || nft("list table inet filter") + &nft("list table ip cplb");
    let before = foreign();
    let mut guard = applied(&table());
    for number in 1..20 {
        nft(&format!("add table inet other{number}"));
        assert_eq!(guard.present(&table()).unwrap(), Presence::Intact);
    }
    assert_eq!(foreign(), before, "apply touches only its own table");
    block_on(guard.apply(&table())).unwrap();
    block_on(guard.remove(&TableName::default())).unwrap();
    assert_eq!(foreign(), before, "remove touches only its own table");
    assert_eq!(
        nft("list tables").lines().filter(|line| line.contains("cplb")).collect::<Vec<_>>(),
        ["table ip cplb"]
    );
}

fn only_the_applied_table_is_present() {
    let mut guard = find();
    assert_eq!(guard.present(&table()).unwrap(), Presence::Missing, "nothing applied");
    block_on(guard.apply(&table())).unwrap();
    let other = Table { vips: [ip("10.0.0.200")].into(), ..table() };
    assert_eq!(guard.present(&other).unwrap(), Presence::Missing, "another table was applied");
    block_on(guard.apply(&other)).unwrap();
    assert_eq!(guard.present(&other).unwrap(), Presence::Intact);
    assert_eq!(guard.present(&table()).unwrap(), Presence::Missing);
    assert!(!nft("list table inet cplb").contains("10.0.0.100"));
    // A successor process takes over the table by applying its own.
    let mut successor = find();
    assert_eq!(successor.present(&other).unwrap(), Presence::Missing);
    block_on(successor.apply(&other)).unwrap();
    assert_eq!(successor.present(&other).unwrap(), Presence::Intact);
    assert_eq!(guard.present(&other).unwrap(), Presence::Missing, "no longer the predecessor's");
}

fn removal_deletes_the_table_and_is_idempotent() {
    let mut guard = find();
    let name = TableName::default();
    block_on(guard.remove(&name)).unwrap();
    block_on(guard.apply(&table())).unwrap();
    block_on(guard.remove(&name)).unwrap();
    assert_eq!(nft("list ruleset"), "");
    assert_eq!(guard.present(&table()).unwrap(), Presence::Missing);
    block_on(guard.remove(&name)).unwrap();
    assert_eq!(nft("list ruleset"), "");
}

fn names_keep_tables_apart() {
    let second = Table { name: "cplb_52".parse().unwrap(), ..table() };
    let mut guards = [(applied(&table()), table()), (applied(&second), second.clone())];
    nft("delete table inet cplb");
    assert_eq!(
        guards.each_mut().map(|(guard, table)| guard.present(table).unwrap()),
        [Presence::Missing, Presence::Intact]
    );
    block_on(guards[0].0.apply(&table())).unwrap();
    block_on(guards[1].0.remove(&second.name)).unwrap();
    assert_eq!(
        guards.each_mut().map(|(guard, table)| guard.present(table).unwrap()),
        [Presence::Intact, Presence::Missing]
    );
}

fn many_vips_and_services_are_watched() {
    let vips =
        (1..=255u32).flat_map(|n| [format!("10.1.0.{n}"), format!("fd01::{n:x}")]).map(|text| ip(&text));
    let ports: Vec<_> = (1..=20u16).map(|n| (6000 + n, 7000 + n)).collect();
    let large = Table { vips: vips.collect(), redirects: redirects(&ports), ..table() };
    let mut guard = applied(&large);
    nft("delete element inet cplb vip6 { fd01::77 }");
    assert_eq!(guard.present(&large).unwrap(), Presence::Missing);
    let none = Table { vips: [].into(), redirects: [].into(), mark: None, ..table() };
    block_on(guard.apply(&none)).unwrap();
    assert_eq!(guard.present(&none).unwrap(), Presence::Intact);
}

fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

fn a_presence_check_costs_microseconds() {
    const ROUNDS: u32 = 2000;
    let ports = [(6443, 6444), (8132, 8133), (9443, 6446)];
    let table = Table { redirects: redirects(&ports), ..table() };
    let mut guard = applied(&table);
    let start = processor_time();
    for _ in 0..ROUNDS {
        assert_eq!(guard.present(&table).unwrap(), Presence::Intact);
    }
    let unchanged = (processor_time() - start) / ROUNDS;
    let mut changed = Duration::ZERO;
    for _ in 0..50 {
        nft("add table inet other");
        nft("delete table inet other");
        let start = processor_time();
        assert_eq!(guard.present(&table).unwrap(), Presence::Intact);
        changed += (processor_time() - start) / 50;
    }
    println!("present: {unchanged:?} of processor time while nothing changes, {changed:?} after a change");
    // One check each second may take a tenth of the daemon's 0.3 %.
    assert!(unchanged < Duration::from_micros(100), "{unchanged:?}");
    assert!(unchanged * 4 < changed, "the table is read only after a change: {unchanged:?}, {changed:?}");
    assert!(changed < Duration::from_millis(1), "{changed:?}");
}

fn concurrent_changes_of_other_tables_do_not_prevent_an_apply() {
    let (stop, stopped) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        // The noise must also end after a failed assertion below.
        let stop = stop;
        // A thread inherits the namespace of the one that starts it.
        scope.spawn(move || {
            while stopped.try_recv() == Err(TryRecvError::Empty) {
                nft("add table inet noise; delete table inet noise");
            }
        });
        let mut guard = find();
        for _ in 0..20 {
            block_on(guard.apply(&table())).unwrap();
            assert_eq!(guard.present(&table()).unwrap(), Presence::Intact);
        }
        drop(stop);
    });
}
