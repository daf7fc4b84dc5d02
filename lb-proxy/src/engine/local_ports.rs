//! Local ports for connections to backends where the kernel finds none by itself.
//!
//! A connection that this side closed first stays in TIME_WAIT for a minute. The kernel passes over its port when it
//! chooses one, so that short connections use all ports up long before as many are open. It does accept such a port for
//! the same backend on request, because timestamps distinguish the segments of the two connections (RFC 6191 section 2;
//! `net.ipv4.tcp_timestamps` is on by default).

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The default range of Linux.
const DEFAULT: Range<u32> = 32_768..61_000;
/// Number of ports tried for one connection.
const TRIES: u32 = 16;
/// Time without another search after no tried port was free for a backend, in milliseconds.
pub(crate) const SEARCH_PAUSE: u64 = 20;

/// The range of ports for outgoing connections (`net.ipv4.ip_local_port_range`, which holds for IPv6, too), swept in
/// turn.
#[derive(Debug)]
pub(crate) struct LocalPorts {
    range: Range<u32>,
    next: AtomicU32,
}

impl LocalPorts {
    /// The ports of this network namespace.
    pub(crate) fn of_host() -> Self {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        Self::new(text.ok().and_then(|text| parse(&text)).unwrap_or(DEFAULT))
    }

    fn new(range: Range<u32>) -> Self {
        LocalPorts { range, next: AtomicU32::new(0) }
    }

    /// Returns the next ports to try. Calls go through all of them in turn.
    pub(crate) fn sweep(&self) -> impl Iterator<Item = u16> {
        let count = self.range.end - self.range.start;
        let tries = TRIES.min(count);
        let begin = self.next.fetch_add(tries, Relaxed);
        let first = self.range.start;
        (0..tries).filter_map(move |i| u16::try_from(first + begin.wrapping_add(i) % count).ok())
    }
}

fn parse(text: &str) -> Option<Range<u32>> {
    let mut bounds = text.split_whitespace().map(str::parse::<u16>);
    let (first, last) = (bounds.next()?.ok()?, bounds.next()?.ok()?);
    (first > 0 && first <= last).then(|| u32::from(first)..u32::from(last) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn sweeps_go_through_all_ports_of_the_range_in_turn() {
        let ports = LocalPorts::new(parse("32768\t33067\n").unwrap());
        let swept: Vec<u16> = (0..19).flat_map(|_| ports.sweep()).collect();
        let all: BTreeSet<u16> = swept.iter().copied().collect();
        assert_eq!((swept.len(), all.len()), (304, 300));
        assert_eq!((all.first(), all.last()), (Some(&32_768), Some(&33_067)));
        let few: Vec<u16> = LocalPorts::new(65_534..65_536).sweep().collect();
        assert_eq!(few, [65_534, 65_535]);
    }

    #[test]
    fn invalid_port_ranges_are_rejected() {
        for text in ["", "1", "0 5", "9 8", "1 65536", "a b"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
