//! Words for quantities.

use std::time::Duration;

use crate::history::WallTime;

/// An age in the largest unit that it has at least two of, in seconds below two minutes.
pub(super) fn age(seconds: f64) -> String {
    match seconds {
        _ if seconds < 10.0 => format!("{seconds:.1} s"),
        _ if seconds < 120.0 => format!("{seconds:.0} s"),
        _ if seconds < 7_200.0 => format!("{:.0} min", seconds / 60.0),
        _ if seconds < 172_800.0 => format!("{:.0} h", seconds / 3_600.0),
        _ => format!("{:.0} d", seconds / 86_400.0),
    }
}

/// The age of a time.
pub(super) fn age_of(time: WallTime, now: WallTime) -> String {
    age(now.since(time).as_secs_f64())
}

pub(super) fn milliseconds(millis: u32) -> String {
    age(Duration::from_millis(millis.into()).as_secs_f64())
}

/// The number with its noun.
pub(super) fn plural(count: usize, noun: &str) -> String {
    let end = if count == 1 || noun == "more" { "" } else { "s" };
    format!("{count} {noun}{end}")
}

/// An amount of data in the largest unit that it has at least one of.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut amount = count as f64;
    let mut unit = 0;
    while amount >= 999.95 && unit + 1 < UNITS.len() {
        (amount, unit) = (amount / 1000.0, unit + 1);
    }
    if unit == 0 { format!("{count} B") } else { format!("{amount:.1} {}", UNITS[unit]) }
}

/// A number with a thin space between groups of three digits.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_readable() {
        let ages = [0.04, 9.94, 10.0, 119.0, 121.0, 7_199.0, 7_300.0, 172_801.0].map(age);
        assert_eq!(ages, ["0.0 s", "9.9 s", "10 s", "119 s", "2 min", "120 min", "2 h", "2 d"]);
        assert_eq!(
            [0, 999, 1_000, 999_990, u64::MAX].map(bytes),
            ["0 B", "999 B", "1.0 kB", "1.0 MB", "18446744.1 TB"]
        );
        assert_eq!(
            [0, 1, 2].map(|count| plural(count, "problem")),
            ["0 problems", "1 problem", "2 problems"]
        );
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(grouped),
            ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]
        );
    }
}
