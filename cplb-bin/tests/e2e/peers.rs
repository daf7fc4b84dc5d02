//! `unicastPeers: auto`: controllers that join, leave and start with lists that are incomplete or out of date.

use std::time::{Duration, Instant};

use testbed::{AddressWatch, Lan, Test, Tool, wait_until};

use crate::support::{Cluster, PORT, Plan, TIMEOUT};

pub(crate) fn tests() -> Vec<Test> {
    let tests = vec![
        Test::new("a_fourth_controller_joins_and_leaves_without_a_flap", || join(plan())),
        Test::new("a_fourth_controller_joins_at_100_ms", || {
            join(Plan::v3("100ms").instance("unicastPeers: auto"));
        }),
        Test::new("a_fourth_controller_joins_ipv6", || join(plan().v6_only())),
        Test::new("a_fourth_controller_joins_a_group_with_keys", || {
            join(plan().instance("authHMAC: {keys: [{id: 1, key: 0123456789abcdef0123456789abcdef}]}"));
        }),
        Test::new("reload_from_a_list_to_auto_moves_nothing", || {
            reload(
                Plan::v3("100ms").instance("unicastPeers: [10.9.0.1, 10.9.0.2, 10.9.0.3, 10.9.0.4]"),
                true,
            );
        }),
        Test::new("reload_from_multicast_to_auto_moves_nothing", || reload(Plan::v3("100ms"), false)),
        Test::new("a_cold_start_has_one_active", || start(&Lists::Complete)),
        Test::new("a_start_from_out_of_date_lists_has_one_active", || start(&Lists::Chain)),
        Test::new("no_controller_takes_part_until_one_is_known", unknown),
        Test::new("a_split_by_lists_without_a_common_member_is_seen", split),
    ];
    tests.into_iter().map(|test| test.needs([Tool::Nft])).collect()
}

/// Active_Down_Interval of `interval: 1s` and priority 200.
const DOWN: Duration = Duration::from_millis(3220);

fn plan() -> Plan {
    Plan::v3("1s").instance("unicastPeers: auto")
}

fn cluster(plan: Plan) -> Cluster {
    Cluster::build(Lan::builder().controllers(4), plan)
}

/// The backends as the configuration lists them.
fn backends(hosts: &[u8]) -> String {
    let hosts: Vec<String> = hosts.iter().map(|host| format!("10.9.0.{host}")).collect();
    format!("backends: {{static: [{}]}}", hosts.join(", "))
}

fn backends_v6(hosts: &[u8]) -> String {
    let hosts: Vec<String> = hosts.iter().map(|host| format!("'fd09::{host}'")).collect();
    format!("backends: {{static: [{}]}}", hosts.join(", "))
}

fn watches(cluster: &Cluster) -> Vec<AddressWatch> {
    cluster.lan.controllers().iter().map(|node| AddressWatch::on(node).expect("the watch starts")).collect()
}

/// The controllers that have the VIP at a moment.
fn holders(cluster: &Cluster, watches: &[AddressWatch], at: Instant) -> Vec<usize> {
    let has = |watch: &AddressWatch| {
        let periods = watch.periods(cluster.vip());
        periods.iter().any(|period| period.from <= at && period.until.is_none_or(|until| at < until))
    };
    (0..watches.len()).filter(|index| has(&watches[*index])).collect()
}

fn pass(cluster: &Cluster, duration: Duration) {
    let end = Instant::now() + duration;
    wait_until("the time is over", duration * 2, || Instant::now() >= end)
        .unwrap_or_else(|error| cluster.fail(&error.to_string()));
}

/// The fourth controller is in no list, and comes while the group is at rest.
fn join(plan: Plan) {
    let listed = if plan.v4 { backends(&[1, 2, 3]) } else { backends_v6(&[1, 2, 3]) };
    let mut cluster = cluster(plan.spec(listed));
    (0..3).for_each(|index| cluster.start_daemon(index));
    let owner = cluster.wait_until_settled();
    let watches = watches(&cluster);
    cluster.start_daemon(3);
    cluster.wait("the fourth follows the Active", || {
        let instance = &cluster.status(3)["instances"][0];
        instance["state"] == "backup" && !instance["activeRouter"]["address"].is_null()
    });
    pass(&cluster, DOWN * 2);
    for (index, watch) in watches.iter().enumerate() {
        let periods = watch.periods(cluster.vip()).len();
        cluster.check(periods == usize::from(index == owner), || format!("node {index}: {periods} periods"));
        let shown = cluster.degraded(index);
        cluster.check(shown == "[]", || format!("node {index}: {shown}"));
    }

    // It is a full member: it takes over when it is the last, and follows when others come back.
    for index in 0..3 {
        cluster.signal(index, testbed::Signal::SIGTERM);
        cluster.wait_until_ended(index);
    }
    cluster.wait("the fourth has the VIP", || cluster.owners() == [3]);
    (0..3).for_each(|index| cluster.start_daemon(index));
    cluster.wait("the others follow it", || {
        (0..3).all(|index| cluster.state(index).as_deref() == Some("backup"))
    });
    cluster.signal(3, testbed::Signal::SIGTERM);
    cluster.wait_until_ended(3);
    let owner = cluster.wait_for_owner(Some(3));
    let left = Instant::now();
    pass(&cluster, DOWN);
    for at in [left, Instant::now()] {
        let found = holders(&cluster, &watches, at);
        cluster.check(found == [owner], || format!("{found:?}"));
    }
}

/// Each node reloads; the Active first, or last where the others would not hear its unicast before.
fn reload(plan: Plan, active_first: bool) {
    let mut cluster = cluster(plan.spec(backends(&[1, 2, 3, 4])));
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    let watches = watches(&cluster);
    cluster.plan = cluster.plan.clone().instance("unicastPeers: auto");
    let others = (0..4).filter(|index| *index != owner);
    let order: Vec<usize> = if active_first {
        [owner].into_iter().chain(others).collect()
    } else {
        others.chain([owner]).collect()
    };
    for index in order {
        std::fs::write(cluster.config_file(index), cluster.plan.render(&cluster.lan)).expect("it is written");
        let mark = cluster.daemon(index).log().len();
        cluster.signal(index, testbed::Signal::SIGHUP);
        let reloaded = cluster.daemon(index).log().wait_for_line_after(mark, "is reloaded", TIMEOUT);
        cluster.check(reloaded.is_ok(), || format!("{reloaded:?}"));
        pass(&cluster, DOWN / 3);
    }
    for (index, watch) in watches.iter().enumerate() {
        let periods = watch.periods(cluster.vip()).len();
        cluster.check(periods == usize::from(index == owner), || format!("node {index}: {periods} periods"));
        let shown = cluster.degraded(index);
        cluster.check(shown == "[]", || format!("node {index}: {shown}"));
    }
    cluster.signal(owner, testbed::Signal::SIGKILL);
    cluster.wait_for_owner(Some(owner));
}

/// The lists of servers in the state directories.
enum Lists {
    /// Each node knows all.
    Complete,
    /// Each knows one neighbour, and addresses that no controller has.
    Chain,
}

fn start(lists: &Lists) {
    let mut cluster = cluster(plan());
    let file = cluster.lan.directory().join("admin.conf");
    cluster.plan =
        cluster.plan.clone().spec(format!("backends: {{kubernetes: {{kubeconfig: {}}}}}", file.display()));
    for index in 0..4u8 {
        let hosts: Vec<u8> = match lists {
            Lists::Complete => vec![1, 2, 3, 4],
            Lists::Chain => vec![index + 1, if index < 3 { index + 2 } else { 72 }, 71],
        };
        let servers: Vec<String> = hosts.iter().map(|host| format!("\"10.9.0.{host}:{PORT}\"")).collect();
        let text = format!(
            r#"{{"version":1,"boot_id":"","content":{{"clusters":[{{"kubeconfig":"{}","servers":[{}]}}]}}}}"#,
            file.display(),
            servers.join(",")
        );
        let directory = cluster.state_dir(index.into());
        std::fs::create_dir_all(&directory).expect("the directory is made");
        std::fs::write(directory.join("backends.json"), text).expect("the file is written");
    }
    let watches = watches(&cluster);
    cluster.start_all();
    let started = Instant::now();
    pass(&cluster, DOWN * 2);
    let from = Instant::now();
    pass(&cluster, DOWN);
    // From twice Active_Down_Interval on there is one holder at each moment, the same.
    let first = holders(&cluster, &watches, from);
    cluster.check(first.len() == 1, || format!("{first:?} after {:?}", from - started));
    for step in 0..DOWN.as_millis() / 10 {
        let at = from + Duration::from_millis(10) * u32::try_from(step).unwrap();
        let found = holders(&cluster, &watches, at);
        cluster.check(found == first, || format!("{found:?} {:?} after the start", at - started));
    }
    cluster.check(cluster.takeovers() <= 2, || format!("{} takeovers", cluster.takeovers()));
}

fn unknown() {
    let mut cluster = cluster(plan());
    let file = cluster.lan.directory().join("admin.conf");
    cluster.plan =
        cluster.plan.clone().spec(format!("backends: {{kubernetes: {{kubeconfig: {}}}}}", file.display()));
    cluster.start_daemon(0);
    cluster.wait("the wait is reported", || cluster.degraded(0).contains("no controller is known yet"));
    pass(&cluster, DOWN + Duration::from_secs(1));
    cluster.check(cluster.owners().is_empty(), || "it took the VIP".to_owned());
    // One that is known by its reports suffices.
    cluster.plan = plan().spec(backends(&[1, 2, 3, 4]));
    cluster.start_daemon(1);
    let owner = cluster.wait_for_owner(None);
    cluster.wait("the other follows", || cluster.state(1 - owner).as_deref() == Some("backup"));
    cluster.wait("the wait is over", || !cluster.degraded(0).contains("no controller is known yet"));
}

/// Two pairs that cannot know of each other: both have an Active, and each names the other.
fn split() {
    let mut cluster = cluster(plan());
    for (pair, hosts) in [([0, 1], [1, 2]), ([2, 3], [3, 4])] {
        cluster.plan = plan().spec(backends(&hosts));
        pair.into_iter().for_each(|index| cluster.start_daemon(index));
    }
    cluster.wait("both pairs have an Active", || cluster.owners().len() == 2);
    let since = Instant::now();
    for index in 0..4 {
        let left = Duration::from_secs(35 + 3).saturating_sub(since.elapsed());
        match wait_until("the other Active is named", left, || {
            cluster.degraded(index).contains("answers for")
        }) {
            Ok(took) => println!("MEASURED the other Active is named after {took:?}"),
            Err(error) => cluster.fail(&error.to_string()),
        }
    }
}
