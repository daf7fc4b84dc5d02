//! The argument of `--since`.

use std::time::Duration;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp};

use super::time::WallTime;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads a time of RFC 3339, a date or a time of the day in UTC, or a duration before `now`, such as `90m` or `2d`. A time of
/// the day that is later than `now` is of the day before.
///
/// # Errors
/// A text that names the accepted forms.
pub(crate) fn parse(text: &str, now: WallTime) -> Result<WallTime, String> {
    let utc = |time: DateTime| Offset::UTC.to_timestamp(time).ok().map(WallTime::from);
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time.into());
    }
    // A time of the day is also read from a text with a date, and without a colon it would be an hour.
    let is_of_day = text.contains(':') && text.parse::<DateTime>().is_err();
    let of_day = text.parse::<Time>().ok().filter(|_| is_of_day).and_then(|time| {
        let today = Offset::UTC.to_datetime(Timestamp::from(now)).date();
        let found = utc(today.to_datetime(time))?;
        Some(if found > now { found.saturating_sub(DAY) } else { found })
    });
    // A date and time is read as a date, too, so it is tried first.
    let date_time = || text.parse::<DateTime>().ok().and_then(utc);
    let date = || text.parse::<Date>().ok().and_then(|date| utc(date.to_datetime(Time::midnight())));
    let found = of_day.or_else(date_time).or_else(date).or_else(|| Some(now.saturating_sub(duration(text)?)));
    found.ok_or_else(|| {
        "neither a time such as 2026-11-29T02:50:00Z, 2026-11-29 02:50 or 02:50 (UTC) nor a duration such as 90m, 12h or 2d"
            .to_owned()
    })
}

/// A duration such as `90m` or `2d`. Days have 24 hours.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    if let Some(days) = text.strip_suffix('d').and_then(|days| days.parse::<u32>().ok()) {
        return Some(DAY * days);
    }
    Duration::try_from(text.parse::<SignedDuration>().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_several_forms_are_read_in_utc() {
        let time = |text: &str| WallTime::from(text.parse::<Timestamp>().unwrap());
        let now = time("2026-11-29T03:10:20.5Z");
        for (text, expected) in [
            ("2026-11-29T02:57:00Z", "2026-11-29T02:57:00Z"),
            ("2026-11-29T03:57:00+01:00", "2026-11-29T02:57:00Z"),
            ("2026-11-29T02:57", "2026-11-29T02:57:00Z"),
            ("2026-11-29 02:57:03", "2026-11-29T02:57:03Z"),
            ("2026-11-20T02:57", "2026-11-20T02:57:00Z"),
            ("2026-11-20 23:00", "2026-11-20T23:00:00Z"),
            ("2026-11-28", "2026-11-28T00:00:00Z"),
            ("02:57", "2026-11-29T02:57:00Z"),
            ("23:00", "2026-11-28T23:00:00Z"),
            ("90m", "2026-11-29T01:40:20.5Z"),
            ("1h 30m", "2026-11-29T01:40:20.5Z"),
            ("2d", "2026-11-27T03:10:20.5Z"),
            ("30s", "2026-11-29T03:09:50.5Z"),
        ] {
            assert_eq!(parse(text, now), Ok(time(expected)), "{text}");
        }
        for wrong in ["", "yesterday", "-1h", "25:00", "2026-13-01", "10", "d", "-2d"] {
            assert!(parse(wrong, now).is_err(), "{wrong}");
        }
        assert_eq!(now.to_string(), "2026-11-29T03:10:20.500Z");
    }
}
