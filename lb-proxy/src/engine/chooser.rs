//! The four algorithms that choose a backend, without I/O, clock or shared state.

use std::net::{IpAddr, SocketAddr};

use crate::balance::Balance;

/// Full readiness of a [`Candidate`].
pub(crate) const READY: u32 = 1000;

/// The properties of a backend that a choice depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    /// Configured weight; 0 excludes it.
    pub weight: u32,
    /// Share of its normal load that it may get now, in thousandths; 0 excludes it, less than [`READY`] is slow start.
    pub ready: u32,
    /// Its sessions and connects under way.
    pub load: usize,
    /// Its identity for hashing; see [`backend_key`].
    pub key: u64,
}

impl Candidate {
    fn usable(&self) -> bool {
        self.weight > 0 && self.ready > 0
    }
}

/// The algorithm with its state. Candidates are identified by position, so their order must not change.
#[derive(Debug)]
pub(crate) struct Chooser {
    balance: Balance,
    /// Credit of each candidate in smooth weighted round robin.
    credit: Vec<i64>,
    /// Position at which the search for the least loaded starts, so that ties go in turn.
    next: usize,
}

impl Chooser {
    pub(crate) fn new(balance: Balance, candidates: usize) -> Self {
        Chooser { balance, credit: vec![0; candidates], next: 0 }
    }

    /// The position of the candidate to use for a client with this [`client_key`]; `None` if none is usable.
    pub(crate) fn choose(&mut self, candidates: &[Candidate], client: u64) -> Option<usize> {
        match self.balance {
            Balance::RoundRobin => self.in_turn(candidates, |_| 1),
            Balance::Weighted => self.in_turn(candidates, |c| c.weight),
            Balance::LeastConnections => self.least_loaded(candidates),
            Balance::SourceHash => by_hash(candidates, client),
        }
    }

    /// Smooth weighted round robin: every candidate is credited its share, the one with the most credit is chosen and
    /// debited the sum of the shares. Equal shares give plain rotation.
    fn in_turn(&mut self, candidates: &[Candidate], weight: impl Fn(&Candidate) -> u32) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<usize> = None;
        for (i, candidate) in candidates.iter().enumerate().filter(|(_, c)| c.usable()) {
            let share = i64::from(weight(candidate)) * i64::from(candidate.ready);
            total += share;
            self.credit[i] += share;
            if best.is_none_or(|b| self.credit[i] > self.credit[b]) {
                best = Some(i);
            }
        }
        let best = best?;
        self.credit[best] -= total;
        Some(best)
    }

    /// The candidate with the fewest connections for its readiness.
    ///
    /// One is added to each load; otherwise a recovered backend without sessions would be the least loaded at any
    /// readiness and get every new connection at once.
    fn least_loaded(&mut self, candidates: &[Candidate]) -> Option<usize> {
        let cost = |i: usize| (candidates[i].load as u128 + 1, u128::from(candidates[i].ready));
        let mut best: Option<usize> = None;
        for step in 0..candidates.len() {
            let i = (self.next + step) % candidates.len();
            if !candidates[i].usable() {
                continue;
            }
            let better = best.is_none_or(|b| {
                let ((load, ready), (best_load, best_ready)) = (cost(i), cost(b));
                load * best_ready < best_load * ready
            });
            if better {
                best = Some(i);
            }
        }
        let best = best?;
        self.next = (best + 1) % candidates.len();
        Some(best)
    }
}

/// Weighted rendezvous hashing: each candidate gets a draw from (client, candidate), and the least `-log(draw) / weight` wins,
/// so a lost candidate moves only its own clients. A candidate in slow start takes part for a growing, fixed part of clients.
fn by_hash(candidates: &[Candidate], client: u64) -> Option<usize> {
    let best = |only_ready: bool| {
        let drawn = candidates.iter().enumerate().filter(|(_, c)| c.usable()).filter_map(|(i, c)| {
            let draw = mix(client ^ c.key.rotate_left(32));
            let admitted = !only_ready || mix(draw ^ c.key) % u64::from(READY) < u64::from(c.ready);
            admitted.then(|| (i, c, neg_log2(draw)))
        });
        // a / b < c / d where a * d < c * b.
        let times = |log: u64, weight: u32| u128::from(log) * u128::from(weight);
        let least = drawn.min_by(|(_, a, a_log), (_, b, b_log)| {
            times(*a_log, b.weight).cmp(&times(*b_log, a.weight)).then(a.key.cmp(&b.key))
        });
        least.map(|(i, ..)| i)
    };
    best(true).or_else(|| best(false))
}

/// Binary digits of [`neg_log2`] after the point.
const LOG_DIGITS: u32 = 32;

/// `-log2(draw / 2^64)` with [`LOG_DIGITS`] digits; 0 counts as 1. In integers, so that every node computes the same, whatever
/// its processor and its mathematical library are.
fn neg_log2(draw: u64) -> u64 {
    let zeros = draw.max(1).leading_zeros();
    // The mantissa, from 1 up to 2, with 63 digits. Squaring it doubles its logarithm: what exceeds 1 is the next digit.
    let mut mantissa = u128::from(draw.max(1)) << zeros;
    let mut fraction = 0;
    for _ in 0..LOG_DIGITS {
        mantissa = (mantissa * mantissa) >> 63;
        let digit = mantissa >> 64;
        mantissa >>= digit;
        fraction = (fraction << 1) | digit as u64;
    }
    (u64::from(zeros + 1) << LOG_DIGITS) - fraction
}

/// The identity of a client for [`Balance::SourceHash`]; the same on every node and after every restart, so that a
/// client keeps its backend when the address moves. IPv4-mapped addresses count as IPv4.
pub(crate) fn client_key(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(ip) => mix(u64::from(u32::from(ip))),
        IpAddr::V6(ip) => {
            let bits = u128::from(ip);
            mix((bits >> 64) as u64).wrapping_add(mix(bits as u64 ^ 6))
        }
    }
}

/// The identity of a backend for [`Balance::SourceHash`].
pub(crate) fn backend_key(addr: SocketAddr) -> u64 {
    mix(client_key(addr.ip()) ^ u64::from(addr.port()))
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn candidates(weights: &[u32]) -> Vec<Candidate> {
        let addr = |i: usize| SocketAddr::from(([10, 0, 0, i as u8 + 1], 6443));
        let candidate = |(i, &weight): (usize, &u32)| Candidate {
            weight,
            ready: READY,
            load: 0,
            key: backend_key(addr(i)),
        };
        weights.iter().enumerate().map(candidate).collect()
    }

    fn run(balance: Balance, candidates: &[Candidate], rounds: usize) -> Vec<usize> {
        let mut chooser = Chooser::new(balance, candidates.len());
        let mut counts = vec![0; candidates.len()];
        for client in 0..rounds {
            let ip = Ipv4Addr::from(0x0a01_0000 + client as u32);
            counts[chooser.choose(candidates, client_key(ip.into())).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn round_robin_goes_in_turn_and_ignores_weights() {
        let candidates = candidates(&[1, 7, 1]);
        let mut chooser = Chooser::new(Balance::RoundRobin, 3);
        let order: Vec<_> = (0..6).map(|_| chooser.choose(&candidates, 0).unwrap()).collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn weighted_is_exact_and_smooth() {
        let candidates = candidates(&[5, 1, 1]);
        let mut chooser = Chooser::new(Balance::Weighted, 3);
        let order: Vec<_> = (0..7).map(|_| chooser.choose(&candidates, 0).unwrap()).collect();
        // The published example of the algorithm: the heavy one is interleaved, never five in a row.
        assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(run(Balance::Weighted, &candidates, 7000), [5000, 1000, 1000]);
    }

    #[test]
    fn least_connections_takes_the_least_loaded_and_breaks_ties_in_turn() {
        let mut set = candidates(&[1, 1, 1]);
        let mut chooser = Chooser::new(Balance::LeastConnections, 3);
        let order: Vec<_> = (0..4).map(|_| chooser.choose(&set, 0).unwrap()).collect();
        assert_eq!(order, [0, 1, 2, 0]);
        set[0].load = 3;
        set[1].load = 1;
        set[2].load = 2;
        assert_eq!(chooser.choose(&set, 0), Some(1));
    }

    #[test]
    fn least_connections_does_not_flood_a_backend_in_slow_start() {
        let mut set = candidates(&[1, 1]);
        set[0].load = 40;
        set[1].ready = READY / 10;
        let mut chooser = Chooser::new(Balance::LeastConnections, 2);
        for _ in 0..100 {
            let chosen = chooser.choose(&set, 0).unwrap();
            set[chosen].load += 1;
        }
        assert!(set[1].load <= set[0].load / 9, "{set:?}");
        assert!(set[1].load >= 5, "{set:?}");
    }

    #[test]
    fn slow_start_scales_the_share() {
        let mut set = candidates(&[1, 1, 1]);
        set[2].ready = READY / 5;
        let counts = run(Balance::RoundRobin, &set, 2200);
        assert_eq!(counts, [1000, 1000, 200]);
        let counts = run(Balance::SourceHash, &set, 30_000);
        assert!((1200..2800).contains(&counts[2]), "{counts:?}");
    }

    #[test]
    fn source_hash_is_even_weighted_and_moves_only_the_clients_of_a_lost_backend() {
        let mut set = candidates(&[1, 1, 2]);
        let counts = run(Balance::SourceHash, &set, 40_000);
        for (count, expected) in counts.iter().zip([10_000, 10_000, 20_000]) {
            assert!(count.abs_diff(expected) < expected / 20, "{counts:?}");
        }
        let chosen = |set: &[Candidate]| -> Vec<usize> {
            (0..5000).map(|c| by_hash(set, client_key(Ipv4Addr::from(c).into())).unwrap()).collect()
        };
        let before = chosen(&set);
        set[1].ready = 0;
        let after = chosen(&set);
        for (before, after) in before.iter().zip(&after) {
            assert_ne!(*after, 1);
            assert!(before == after || *before == 1);
        }
    }

    #[test]
    fn the_logarithm_is_exact_to_its_last_digits() {
        let exact = |draw: u64| (64.0 - (draw as f64).log2()) * f64::from(1 << 16) * f64::from(1 << 16);
        let mut draw = 1;
        for _ in 0..10_000 {
            draw = mix(draw);
            let (log, exact) = (neg_log2(draw) as f64, exact(draw));
            assert!((log - exact).abs() < 8.0, "{draw}: {log} {exact}");
        }
        for power in 0..64u32 {
            assert_eq!(neg_log2(1 << power), u64::from(64 - power) << LOG_DIGITS);
        }
        assert_eq!(neg_log2(0), neg_log2(1));
        assert!(neg_log2(u64::MAX) < 4, "it is 0 but for the last digits");
    }

    /// Another release must not move clients.
    #[test]
    fn source_hash_chooses_as_with_floating_point() {
        let set = candidates(&[3, 1, 2, 256]);
        let score = |c: &Candidate, client: u64| {
            let unit = ((mix(client ^ c.key.rotate_left(32)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            -f64::from(c.weight) / unit.ln()
        };
        for client in (0..20_000u32).map(|client| client_key(Ipv4Addr::from(client).into())) {
            let scored = set.iter().enumerate().map(|(i, c)| (i, score(c, client)));
            let expected = scored.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i);
            assert_eq!(by_hash(&set, client), expected);
        }
    }

    #[test]
    fn a_mapped_address_is_the_same_client() {
        let v4: IpAddr = "192.0.2.7".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.7".parse().unwrap();
        assert_eq!(client_key(v4), client_key(mapped));
    }

    #[test]
    fn choose_returns_none_without_usable_candidates() {
        for balance in
            [Balance::RoundRobin, Balance::Weighted, Balance::LeastConnections, Balance::SourceHash]
        {
            assert_eq!(Chooser::new(balance, 0).choose(&[], 1), None);
            assert_eq!(Chooser::new(balance, 2).choose(&candidates(&[0, 0]), 1), None);
        }
    }
}
