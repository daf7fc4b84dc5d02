//! A link with hosts that answer for addresses.

use proptest::prelude::*;

use super::*;

const VIP: [u8; 4] = [10, 9, 0, 100];
const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn mac(host: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, host])
}

fn address(host: u8) -> IpAddr {
    [10, 9, 0, host].into()
}

/// This node is host 1; hosts 2 and 3 are controllers, too.
struct Link {
    owners: Owners,
    now: Instant,
    start: Instant,
    /// The hosts that answer, with the addresses that they answer for.
    answers: BTreeSet<(IpAddr, MacAddr)>,
    /// A router that answers for every address, but no probe.
    proxy: Option<MacAddr>,
    /// One of so many answers is lost, but never three in a row of one host for one address.
    lost_of: u32,
    frames: u32,
    lost_in_a_row: BTreeMap<(IpAddr, MacAddr), u32>,
    asked: u32,
}

impl Link {
    fn new(holder: u8) -> Self {
        let now = Instant::now();
        let mut owners = Owners::new(Timing::default(), Vrid::new(51).unwrap(), OWN, now);
        owners.handle_addresses([VIP.into()].into(), (1..4).map(address).collect());
        let answers = (2..10).map(|host| (address(host), mac(host))).collect();
        let mut link = Self {
            owners,
            now,
            start: now,
            answers,
            proxy: None,
            lost_of: u32::MAX,
            frames: 0,
            lost_in_a_row: BTreeMap::new(),
            asked: 0,
        };
        link.hold(holder);
        link
    }

    fn hold(&mut self, host: u8) {
        self.answers.retain(|(ip, mac)| *ip != IpAddr::from(VIP) || mac.0[5] > 3);
        if host != 1 {
            self.answers.insert((VIP.into(), mac(host)));
        }
        let holder = Holder { reference: address(host), is_own: host == 1 };
        self.owners.handle_holder(self.now, Some(holder));
    }

    fn claim(&mut self, ip: impl Into<IpAddr>, mac: MacAddr) {
        self.frames += 1;
        let ip = ip.into();
        let lost_in_a_row = self.lost_in_a_row.entry((ip, mac)).or_default();
        let is_lost = (self.frames.wrapping_mul(2_654_435_761) >> 16).is_multiple_of(self.lost_of);
        if is_lost && *lost_in_a_row < 2 {
            *lost_in_a_row += 1;
        } else {
            *lost_in_a_row = 0;
            self.owners.handle_claim(self.now, Announcement { ip, mac });
        }
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.owners.poll_timeout() <= end {
            self.now = self.now.max(self.owners.poll_timeout());
            self.owners.handle_timeout(self.now);
            while let Some(question) = self.owners.poll_question() {
                self.asked += 1;
                let (asked, proxy) = match question {
                    Question::Probe(ip) => (ip, None),
                    Question::Request(ip) => (ip, self.proxy),
                };
                let answers = self.answers.clone();
                answers.into_iter().filter(|(ip, _)| *ip == asked).for_each(|(ip, mac)| self.claim(ip, mac));
                proxy.into_iter().for_each(|mac| self.claim(asked, mac));
            }
        }
        self.now = end;
    }

    fn foreign(&self) -> Vec<MacAddr> {
        self.owners.foreign().map(|owner| owner.mac).collect()
    }

    /// Runs until an owner is named, or no one is, and returns how long it took.
    fn until(&mut self, named: bool) -> Duration {
        let before = self.now;
        while self.foreign().is_empty() == named {
            self.run(Duration::from_millis(500));
            assert!(self.now < before + secs(120), "{:?}", self.owners);
        }
        self.now - before
    }
}

#[test]
fn a_host_with_the_address_is_named_within_35_s_and_forgotten_70_s_after_its_end() {
    for holder in [1, 2] {
        for delay in 0..30 {
            let mut link = Link::new(holder);
            link.run(secs(60 + delay));
            assert_eq!(link.foreign(), []);
            link.answers.insert((VIP.into(), mac(99)));
            assert!(link.until(true) <= secs(35));
            let [owner] = link.owners.foreign().collect::<Vec<_>>()[..] else { panic!("one owner") };
            assert_eq!((owner.ip, owner.mac, owner.controller), (VIP.into(), mac(99), None));
            assert!(owner.first >= link.start + secs(60 + delay));
            link.run(secs(600));
            assert_eq!(link.foreign(), [mac(99)], "as long as it answers");
            link.answers.remove(&(VIP.into(), mac(99)));
            assert!(link.until(false) <= secs(45));
        }
    }
}

#[test]
fn forged_claims_are_named_also_if_their_sender_answers_no_question() {
    let mut link = Link::new(2);
    link.run(secs(40));
    for _ in 0..4 {
        link.claim(VIP, mac(99));
        link.run(secs(1));
    }
    assert_eq!(link.foreign(), [mac(99)]);
    assert!(link.until(false) <= secs(70));
    link.claim(VIP, mac(98));
    link.run(secs(10));
    assert_eq!(link.foreign(), [], "a single one proves nothing");
}

#[test]
fn a_leftover_address_of_a_controller_is_named_with_that_controller() {
    let mut link = Link::new(2);
    link.run(secs(40));
    link.answers.insert((VIP.into(), mac(3)));
    link.until(true);
    link.run(secs(30));
    let [owner] = link.owners.foreign().collect::<Vec<_>>()[..] else { panic!("one owner") };
    assert_eq!(owner.controller, Some(address(3)));
}

#[test]
fn proxies_bonds_and_virtual_macs_are_innocent() {
    for holder in [1, 2] {
        let mut link = Link::new(holder);
        // A router that answers for everything.
        for ip in [address(1), address(2), VIP.into()] {
            link.answers.insert((ip, mac(254)));
        }
        link.run(secs(600));
        assert_eq!(link.foreign(), []);
    }
    let mut link = Link::new(2);
    link.answers.extend([(address(2), mac(22)), (VIP.into(), mac(22))]);
    link.answers.insert((VIP.into(), MacAddr([0, 0, 0x5e, 0, 1, 51])));
    link.run(secs(600));
    assert_eq!(link.foreign(), []);
    link.answers.insert((VIP.into(), MacAddr([0, 0, 0x5e, 0, 1, 52])));
    link.until(true);
    let mut link = Link::new(1);
    link.answers.insert((VIP.into(), MacAddr([0, 0, 0x5e, 0, 1, 51])));
    link.until(true);
}

/// Linux answers no probe for others. It does answer when this node's kernel asks for a virtual address.
#[test]
fn a_proxy_that_answers_no_probe_is_innocent() {
    let mut link = Link::new(2);
    link.proxy = Some(mac(254));
    for _ in 0..60 {
        link.claim(VIP, mac(254));
        link.run(secs(10));
        assert_eq!(link.foreign(), []);
    }
    link.answers.insert((VIP.into(), mac(99)));
    link.until(true);
    assert_eq!(link.foreign(), [mac(99)]);
}

#[test]
fn nothing_is_judged_without_an_active_or_its_answer() {
    let mut link = Link::new(2);
    link.answers.insert((VIP.into(), mac(99)));
    link.answers.remove(&(address(2), mac(2)));
    link.run(secs(200));
    assert_eq!(link.foreign(), [], "the Active's own link-layer address is not known");
    link.answers.insert((address(2), mac(2)));
    link.until(true);
    link.owners.handle_holder(link.now, None);
    link.run(secs(200));
    assert_eq!(link.foreign(), []);
}

#[test]
fn questions_are_few() {
    let mut link = Link::new(2);
    link.run(secs(3600));
    assert!(link.asked <= 2 * 121, "{}", link.asked);
}

#[test]
fn forged_claims_cost_no_memory() {
    let mut link = Link::new(2);
    link.run(secs(40));
    for number in 0..10_000u32 {
        let [.., a, b] = number.to_be_bytes();
        for ip in [VIP.into(), address(2), address(3)] {
            link.owners.handle_claim(link.now, Announcement { ip, mac: MacAddr([4, 0, 0, 0, a, b]) });
        }
    }
    let owners = &link.owners;
    assert!(owners.claims.len() <= MAX_OWNERS && owners.references.len() <= MAX_OWNERS);
    assert!(owners.hosts.len() <= MAX_OWNERS);
}

proptest! {
    /// On a healthy link no owner is named, however often the addresses move and answers are lost. The former holder still
    /// answers and announces for up to 2 s.
    #[test]
    fn moves_on_a_healthy_link_name_no_one(
        moves in proptest::collection::vec((1..4u8, 0..50_000u64, 0..2000u64), 1..30),
        lost_of in 2..20u32,
    ) {
        let mut link = Link::new(1);
        link.lost_of = lost_of;
        for (host, pause, overlap) in moves {
            link.run(Duration::from_millis(pause));
            prop_assert_eq!(link.foreign(), []);
            let former: Vec<_> = link.answers.iter().filter(|(ip, _)| *ip == IpAddr::from(VIP)).copied().collect();
            link.hold(host);
            link.claim(VIP, mac(host));
            for (ip, mac) in former {
                link.claim(ip, mac);
                link.run(Duration::from_millis(overlap / 2));
                link.claim(ip, mac);
            }
            link.run(Duration::from_millis(overlap / 2));
            prop_assert_eq!(link.foreign(), []);
        }
    }

    /// A foreign host is found beside moves and losses, once the holder stays: within 120 s, as the third round at the latest
    /// (3 + 2 x 30 s) hears the host, and the third question of those that follow (1 + 2 x 10 s) hears it again.
    #[test]
    fn a_foreign_host_is_named_beside_moves_and_losses(
        moves in proptest::collection::vec((1..4u8, 0..50_000u64), 0..10),
        lost_of in 3..20u32,
    ) {
        let mut link = Link::new(1);
        link.lost_of = lost_of;
        link.answers.insert((VIP.into(), mac(99)));
        for (host, pause) in moves {
            link.run(Duration::from_millis(pause));
            link.hold(host);
        }
        link.until(true);
        prop_assert!(link.foreign().contains(&mac(99)));
        prop_assert_eq!(link.foreign().len(), 1);
    }
}
