//! The value of a scalar in Go's YAML (the one behind k0s and k0sctl, `sigs.k8s.io/yaml`).
//!
//! It follows YAML 1.1: `yes`, `on` and `off` are booleans and a leading zero means octal. Where k0s wants text and the
//! scalar is a number or a boolean, it writes that number or boolean out again, so an unquoted password `0123` is
//! really `83` on the wire. A node that joins such a group has to arrive at the same password.

use super::{Scalar, Tag};

/// The value of a scalar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Resolved<'a> {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(&'a str),
}

/// Resolves a scalar. Quoted and block scalars are text, as are plain ones tagged `!!str`.
pub(crate) fn resolve(scalar: &Scalar) -> Resolved<'_> {
    let text = scalar.text.as_str();
    if scalar.tag == Tag::Text || (!scalar.plain && scalar.tag == Tag::Absent) {
        return Resolved::Text(text);
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Resolved::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Resolved::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Resolved::Bool(false);
        }
        ".nan" | ".NaN" | ".NAN" => return Resolved::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Resolved::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Resolved::Float(f64::NEG_INFINITY),
        _ => {}
    }
    if !text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '.')) {
        return Resolved::Text(text);
    }
    let plain: String = text.chars().filter(|&c| c != '_').collect();
    if let Some(value) = integer(&plain) {
        return Resolved::Int(value);
    }
    if is_float(&plain)
        && let Ok(value) = plain.parse()
    {
        return Resolved::Float(value);
    }
    Resolved::Text(text)
}

/// The text that Go's YAML gives to a text field, if there is one.
pub(crate) fn go_text(value: Resolved<'_>) -> Option<String> {
    match value {
        Resolved::Text(text) => Some(text.to_owned()),
        Resolved::Bool(value) => Some(value.to_string()),
        Resolved::Int(value) => Some(value.to_string()),
        Resolved::Float(value) => Some(shortest_float(value)),
        Resolved::Null => None,
    }
}

/// Returns whether a plain integer has a leading zero, which makes it octal.
pub(crate) fn is_octal(scalar: &Scalar) -> bool {
    let digits = scalar.text.trim_start_matches(['+', '-']);
    scalar.plain
        && digits.len() > 1
        && digits.starts_with('0')
        && digits.bytes().all(|b| b.is_ascii_digit() || b == b'_')
        && matches!(resolve(scalar), Resolved::Int(_))
}

/// `strconv.ParseInt(text, 0, 64)`, and `ParseUint` for what is larger.
fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    let value = i128::from(u64::from_str_radix(digits, radix).ok()?);
    Some(if negative { -value } else { value })
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let mantissa = match mantissa.split_once('.') {
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
        None => digits(mantissa),
    };
    mantissa && exponent.is_none_or(|e| digits(e.strip_prefix(['-', '+']).unwrap_or(e)))
}

/// `strconv.FormatFloat(value, 'g', -1, 32)`: single precision, shortest digits, an exponent from 1e6 on and
/// below 1e-4.
#[expect(clippy::cast_possible_truncation, reason = "Go formats single precision here")]
fn shortest_float(value: f64) -> String {
    let value = value as f32;
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..6).contains(&exponent) {
        return format!("{value}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Scalar {
        Scalar { text: text.to_owned(), plain: true, tag: Tag::Absent }
    }

    #[test]
    fn plain_scalars_resolve_as_in_go() {
        let int = |value| Resolved::Int(value);
        let cases = [
            ("", Resolved::Null),
            ("~", Resolved::Null),
            ("Null", Resolved::Null),
            ("nULL", Resolved::Text("nULL")),
            ("on", Resolved::Bool(true)),
            ("N", Resolved::Bool(false)),
            ("tRue", Resolved::Text("tRue")),
            ("51", int(51)),
            ("+51", int(51)),
            ("-51", int(-51)),
            ("010", int(8)),
            ("0o10", int(8)),
            ("0x1F", int(31)),
            ("0B11", int(3)),
            ("1_000", int(1000)),
            ("08", Resolved::Float(8.0)),
            ("1e3", Resolved::Float(1000.0)),
            (".5", Resolved::Float(0.5)),
            ("1.", Resolved::Float(1.0)),
            ("-.inf", Resolved::Float(f64::NEG_INFINITY)),
            ("0x", Resolved::Text("0x")),
            ("1.2.3", Resolved::Text("1.2.3")),
            ("10.0.0.1/24", Resolved::Text("10.0.0.1/24")),
            ("1e", Resolved::Text("1e")),
            ("+", Resolved::Text("+")),
            (".", Resolved::Text(".")),
            ("inf", Resolved::Text("inf")),
            ("-nan", Resolved::Text("-nan")),
            ("1:30", Resolved::Text("1:30")),
            ("18446744073709551615", int(18_446_744_073_709_551_615)),
        ];
        for (text, value) in cases {
            assert_eq!(resolve(&plain(text)), value, "{text}");
        }
        assert!(matches!(resolve(&plain(".NaN")), Resolved::Float(value) if value.is_nan()));
    }

    #[test]
    fn quotes_and_tags_decide() {
        let quoted = |text: &str, tag| Scalar { text: text.to_owned(), plain: false, tag };
        assert_eq!(resolve(&quoted("51", Tag::Absent)), Resolved::Text("51"));
        assert_eq!(resolve(&quoted("51", Tag::Other)), Resolved::Int(51));
        assert_eq!(resolve(&Scalar { tag: Tag::Text, ..plain("yes") }), Resolved::Text("yes"));
        assert_eq!(resolve(&quoted("", Tag::Absent)), Resolved::Text(""));
    }

    #[test]
    fn numbers_where_text_is_wanted_are_written_as_go_writes_them() {
        let cases = [
            ("0123", "83"),
            ("12345678", "12345678"),
            ("0x10", "16"),
            ("yes", "true"),
            ("1.50", "1.5"),
            ("1e5", "100000"),
            ("1e6", "1e+06"),
            ("1234567.0", "1.234567e+06"),
            ("0.00001", "1e-05"),
            ("0.0001", "0.0001"),
            ("0.1", "0.1"),
            (".inf", "+Inf"),
            ("09", "9"),
            ("word", "word"),
        ];
        for (text, written) in cases {
            assert_eq!(go_text(resolve(&plain(text))).as_deref(), Some(written), "{text}");
        }
        assert_eq!(go_text(Resolved::Null), None);
    }

    #[test]
    fn only_integers_with_a_leading_zero_are_octal() {
        for (text, octal) in
            [("063", true), ("-010", true), ("0", false), ("08", false), ("0x10", false), ("10", false)]
        {
            assert_eq!(is_octal(&plain(text)), octal, "{text}");
        }
    }
}
