//! Durations as Go writes them (`1m`, `1.5s`, `300ms`), which is what `metav1.Duration` reads.

use std::fmt::Write as _;
use std::time::Duration;

/// The reason why a text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DurationError {
    Empty,
    MissingUnit,
    UnknownUnit,
    BadNumber,
    Negative,
    TooLong,
}

impl DurationError {
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::Empty => "an empty text is no duration",
            Self::MissingUnit => "the number has no unit",
            Self::UnknownUnit => "unknown unit",
            Self::BadNumber => "this is no duration",
            Self::Negative => "the duration is negative",
            Self::TooLong => "the duration is longer than 292 years",
        }
    }
}

const UNITS: &[(&str, u128)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// `time.ParseDuration`: decimal numbers, each with a unit, added up; a fraction of a nanosecond is cut off.
pub(crate) fn parse(text: &str) -> Result<Duration, DurationError> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(DurationError::Empty);
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        if number.is_empty() {
            return Err(DurationError::BadNumber);
        }
        if unit.is_empty() {
            return Err(DurationError::MissingUnit);
        }
        let scale = UNITS.iter().find(|(name, _)| *name == unit).ok_or(DurationError::UnknownUnit)?.1;
        total = total.checked_add(scaled(number, scale)?).ok_or(DurationError::TooLong)?;
        rest = tail;
    }
    let nanoseconds = i64::try_from(total).map_err(|_| DurationError::TooLong)?;
    if negative && nanoseconds > 0 {
        return Err(DurationError::Negative);
    }
    Ok(Duration::from_nanos(nanoseconds.unsigned_abs()))
}

fn scaled(number: &str, scale: u128) -> Result<u128, DurationError> {
    // More digits than these change nothing below a nanosecond and could not be held.
    const FRACTION_DIGITS: usize = 18;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(DurationError::BadNumber);
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| DurationError::TooLong)? };
    let fraction = &fraction[..fraction.len().min(FRACTION_DIGITS)];
    let mut nanoseconds = u128::from(whole) * scale;
    if let Ok(digits) = fraction.parse::<u128>() {
        nanoseconds += digits * scale / 10_u128.pow(u32::try_from(fraction.len()).unwrap_or_default());
    }
    Ok(nanoseconds)
}

/// The shortest form that [`parse`] reads back: the largest units that divide it, `1m30s`, `1.5s`, `300ms`.
pub(crate) fn format(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut out = String::new();
    for (unit, scale) in [("h", 3_600_000_000_000), ("m", 60_000_000_000)] {
        if rest >= scale {
            let _ = write!(out, "{}{unit}", rest / scale);
            rest %= scale;
        }
    }
    let (unit, scale) = match rest {
        0 => return out,
        _ if rest >= 1_000_000_000 => ("s", 1_000_000_000),
        _ if rest >= 1_000_000 => ("ms", 1_000_000),
        _ if rest >= 1_000 => ("us", 1_000),
        _ => ("ns", 1),
    };
    let _ = write!(out, "{}", rest / scale);
    if !rest.is_multiple_of(scale) {
        let width = scale.ilog10() as usize;
        let fraction = format!("{:0width$}", rest % scale);
        let _ = write!(out, ".{}", fraction.trim_end_matches('0'));
    }
    out.push_str(unit);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_read_as_go_reads_them() {
        let good = [
            ("1m", 60_000_000_000),
            ("1.5s", 1_500_000_000),
            ("300ms", 300_000_000),
            ("1h2m3.5s", 3_723_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("+5us", 5_000),
            ("1µs1μs", 2_000),
            ("0", 0),
            ("-0", 0),
            ("0.0000000001s", 0),
            ("1.123456789123456789123s", 1_123_456_789),
        ];
        for (text, nanoseconds) in good {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanoseconds)), "{text}");
        }
        let bad = [
            ("", DurationError::Empty),
            ("-", DurationError::Empty),
            ("60", DurationError::MissingUnit),
            ("1m30", DurationError::MissingUnit),
            ("1d", DurationError::UnknownUnit),
            ("1 s", DurationError::UnknownUnit),
            ("s", DurationError::BadNumber),
            (".s", DurationError::BadNumber),
            ("1.2.3s", DurationError::BadNumber),
            ("-1s", DurationError::Negative),
            ("9999999999h", DurationError::TooLong),
            ("99999999999999999999999s", DurationError::TooLong),
        ];
        for (text, error) in bad {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn formatted_durations_parse_to_themselves() {
        for nanoseconds in [0, 1, 999, 1_500, 10_000_000, 40_950_000_000, 60_000_000_000, 3_723_500_000_001] {
            let duration = Duration::from_nanos(nanoseconds);
            assert_eq!(parse(&format(duration)), Ok(duration), "{}", format(duration));
        }
        assert_eq!(format(Duration::from_millis(1_500)), "1.5s");
        assert_eq!(format(Duration::from_secs(90)), "1m30s");
    }
}
