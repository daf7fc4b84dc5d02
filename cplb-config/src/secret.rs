//! The keys that name a password.

use crate::suggest::closest;

/// The text in place of a password that is not shown. It is too long for a password.
pub(crate) const REDACTED: &str = "<redacted>";

/// In lower case.
const SECRETS: [&str; 2] = ["authpass", "password"];

/// The name of a key of `authHMAC`.
const KEY: &str = "key";

/// Returns whether a key names a password, which is never shown, or is likely a misspelt one that does.
pub(crate) fn is_secret(key: &str) -> bool {
    key.eq_ignore_ascii_case(KEY) || names_secret(key) || (resembles(key) && closest(key, &SECRETS).is_some())
}

/// Returns whether a name is `authHMAC`, or likely a misspelt one.
pub(crate) fn holds_keys(name: &str) -> bool {
    const NAME: &str = "authHMAC";
    name.len().abs_diff(NAME.len()) <= 2 && closest(name, &[NAME]).is_some()
}

/// Returns whether a text below `authHMAC` may be a key or a part of one: all other values there are shorter.
pub(crate) fn may_be_key(text: &str) -> bool {
    const LONGEST_WORD: usize = 12;
    text.len() > LONGEST_WORD
}

/// Returns whether the text holds the name of a password, as `oldPassword` does.
pub(crate) fn names_secret(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    SECRETS.iter().any(|secret| lower.contains(secret))
}

/// A key without the value that may be glued to it: without a space, `{authPass:Example}` is one word to YAML.
pub(crate) fn public_part(key: &str) -> &str {
    match key.split_once(':') {
        Some((name, _)) if is_secret(name) => name,
        _ => key,
    }
}

/// A cheap test, so that the edits are not counted for each of a hundred thousand keys: two edits, the most that
/// [`closest`] allows here, bring in two other characters at most.
fn resembles(key: &str) -> bool {
    const EDITS: usize = 2;
    let length = key.chars().take(12).count();
    let near = |secret: &&str| {
        let foreign = || key.chars().filter(|c| !secret.contains(c.to_ascii_lowercase())).count();
        secret.len().abs_diff(length) <= EDITS && foreign() <= EDITS
    };
    SECRETS.iter().any(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_passwords_are_secrets_too() {
        for key in [
            "authPass",
            "AUTHPASS",
            "auhtPass",
            "authpas",
            "auth_pass",
            "autPhas",
            "passwd",
            "pasword",
            "oldPassword",
            "key",
        ] {
            assert!(is_secret(key), "{key}");
        }
        for key in ["", "path", "address", "preempt", "port", "authentication", "f59999", &"s".repeat(1000)] {
            assert!(!is_secret(key), "{key}");
        }
    }

    #[test]
    fn keys_are_found_under_misspelt_names() {
        for name in ["authHMAC", "authhmac", "authHMCA", "authHmac", "authHMACs"] {
            assert!(holds_keys(name), "{name}");
        }
        for name in ["auth", "authPass", "name", ""] {
            assert!(!holds_keys(name), "{name}");
        }
        assert!(may_be_key(&"k".repeat(32)) && !may_be_key("receiveOnly") && !may_be_key("monotonic"));
    }

    #[test]
    fn a_value_glued_to_its_key_is_not_public() {
        assert_eq!(public_part("authPas:Example"), "authPas");
        assert_eq!(public_part("10.0.0.11:6443"), "10.0.0.11:6443");
    }
}
