//! `authPass`, `authPassPrevious` and `authHMAC`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use vrrp::hmac::{AntiReplay, HmacConfig, KeyId, Mode};
use vrrp::{AdvertInterval, AuthPass, Version};

use crate::escape::is_unprintable;
use crate::model::{AuthHmac, HmacKey};
use crate::secret::REDACTED;
use crate::walk::{Field, Finding, Table};

use super::{Dialect, Reported, finish};

const MODES: &[(&str, Mode)] =
    &[("receiveOnly", Mode::ReceiveOnly), ("permissive", Mode::Permissive), ("enforce", Mode::Enforce)];
const ANTI_REPLAY: &[(&str, AntiReplay)] =
    &[("time", AntiReplay::Time), ("monotonic", AntiReplay::Monotonic)];

/// The need for a password in a version 2 instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Auth {
    Required,
    Optional,
}

/// The authentication of an instance.
#[derive(Debug)]
pub(super) struct Authentication {
    pub(super) pass: Option<AuthPass>,
    pub(super) pass_previous: Option<AuthPass>,
    pub(super) hmac: Option<AuthHmac>,
}

pub(super) fn authentication(
    table: &Table<'_>,
    dialect: Dialect,
    version: Option<Version>,
    interval: Option<AdvertInterval>,
    auth: Auth,
) -> Result<Authentication, Reported> {
    let pass = auth_pass(table, version, auth);
    if dialect == Dialect::K0s {
        return Ok(Authentication { pass: pass?, pass_previous: None, hmac: None });
    }
    let pass_previous = auth_pass_previous(table, version);
    let hmac = table.field("authHMAC").map(|field| auth_hmac(&field, dialect, interval)).transpose();
    let (pass, pass_previous, hmac) = (pass?, pass_previous?, hmac?);
    if let (Some(field), Some(previous)) = (table.field("authPassPrevious"), pass_previous) {
        let help = "`authPass` is the new one; remove this once it is on every controller";
        let message = match pass {
            None => "`authPassPrevious` needs `authPass`",
            Some(pass) if pass == previous => "`authPassPrevious` is `authPass` itself",
            Some(_) => "",
        };
        if !message.is_empty() {
            field.error(Finding::new("auth-previous", message, help));
            return Err(Reported);
        }
    }
    if let (Some(field), Some(hmac)) = (table.field("authPass"), &hmac)
        && hmac.mode == Mode::Enforce
    {
        let help =
            "remove `authPass`; with mode `receiveOnly` or `permissive` it holds for unsigned advertisements";
        field.error(Finding::new("auth-both", "where signatures are enforced there is no password", help));
        return Err(Reported);
    }
    Ok(Authentication { pass, pass_previous, hmac })
}

/// 1 to 8 bytes, or none where that is allowed.
fn auth_pass(table: &Table<'_>, version: Option<Version>, auth: Auth) -> Result<Option<AuthPass>, Reported> {
    let Some(field) = table.field("authPass") else {
        if auth == Auth::Required {
            table.missing("authPass", missing_help());
            return Err(Reported);
        }
        return Ok(None);
    };
    let (pass, text) = password(&field)?;
    if version == Some(Version::V3) {
        warn_unused(&field, auth);
    } else {
        warn_about_keepalived(&field, &text);
    }
    Ok(Some(pass))
}

fn auth_pass_previous(table: &Table<'_>, version: Option<Version>) -> Result<Option<AuthPass>, Reported> {
    let Some(field) = table.field("authPassPrevious") else { return Ok(None) };
    let (pass, _) = password(&field)?;
    if version == Some(Version::V3) {
        warn_unused(&field, Auth::Optional);
    }
    Ok(Some(pass))
}

/// The field is 8 bytes long (RFC 2338 §5.3.10).
const LONGEST_PASSWORD: usize = 8;

fn missing_help() -> String {
    format!("add `authPass:` with 1 to {LONGEST_PASSWORD} characters, the same on every controller")
}

fn password(field: &Field<'_>) -> Result<(AuthPass, String), Reported> {
    let text = field.string().ok_or(Reported)?;
    let finding = if text.is_empty() {
        let name = field.path.rsplit('.').next().unwrap_or_default();
        Finding::new("required-field", format!("`{name}` is empty"), missing_help())
    } else if text == REDACTED {
        let help = "write the real one; `cplb check` shows passwords only when asked to";
        Finding::new("auth-pass", "the password was taken out of this document", help)
    } else if text.len() > LONGEST_PASSWORD {
        let message =
            format!("the password has {} bytes, and VRRP has room for {LONGEST_PASSWORD}", text.len());
        let help = format!("shorten it to 1 to {LONGEST_PASSWORD} characters on every controller");
        Finding::new("auth-pass", message, help)
    } else if text.contains(is_unprintable) {
        let help = "write printable characters; a block scalar (`|`) ends with a line break, so use quotes";
        Finding::new("auth-pass", "the password contains a control character", help)
    } else {
        return AuthPass::new(&text).map(|pass| (pass, text)).map_err(|_| Reported);
    };
    field.error(finding);
    Err(Reported)
}

fn warn_unused(field: &Field<'_>, auth: Auth) {
    let help = match auth {
        Auth::Required => "nothing to do: k0s asks for it all the same",
        Auth::Optional => "remove it",
    };
    field.warn(Finding::new("auth-unused", "VRRP version 3 has no password; this one is not used", help));
}

/// k0s writes the password unquoted into keepalived's configuration.
fn warn_about_keepalived(field: &Field<'_>, text: &str) {
    let special = |c: char| matches!(c, '#' | '!' | '"' | '{' | '}') || c.is_whitespace();
    if let Some(special) = text.chars().find(|&c| special(c)) {
        let message = format!("keepalived, as k0s configures it, does not read a password past `{special}`");
        let help = "fine if every node runs cplb; while a keepalived is in the group use letters and digits";
        field.warn(Finding::new("auth-keepalived", message, help));
    }
}

fn auth_hmac(
    field: &Field<'_>,
    dialect: Dialect,
    interval: Option<AdvertInterval>,
) -> Result<AuthHmac, Reported> {
    let table = field.table().ok_or(Reported)?;
    let keys = keys(&table, dialect);
    let active = table.field("activeKey").map(|field| Ok((key_id(&field)?, field))).transpose();
    let mode = match table.field("mode") {
        Some(field) => field.choice(MODES).ok_or(Reported),
        None => Ok(Mode::default()),
    };
    let anti_replay = match table.field("antiReplay") {
        Some(field) => field.choice(ANTI_REPLAY).ok_or(Reported),
        None => Ok(AntiReplay::default()),
    };
    let window = match table.field("window") {
        Some(field) => field.duration(HmacConfig::MIN_WINDOW, HmacConfig::MAX_WINDOW).ok_or(Reported),
        None => Ok(HmacConfig::default_window(interval.map_or(Duration::from_secs(1), AdvertInterval::get))),
    };
    finish(table, dialect);
    let keys = keys?;
    let active = match active? {
        Some((active, _)) if keys.contains_key(&active) => active,
        Some((active, field)) => {
            let help = format!("write one of {}", ids(&keys));
            field.error(Finding::new("active-key", format!("there is no key {active}"), help));
            return Err(Reported);
        }
        None => only_key(field, &keys)?,
    };
    Ok(AuthHmac { keys, active, mode: mode?, anti_replay: anti_replay?, window: window? })
}

fn only_key(field: &Field<'_>, keys: &BTreeMap<KeyId, HmacKey>) -> Result<KeyId, Reported> {
    match keys.keys().next() {
        Some(only) if keys.len() == 1 => Ok(*only),
        _ => {
            let help = format!("add `activeKey:` with one of {}", ids(keys));
            field.error(Finding::new("active-key", "of several keys one is the active one", help));
            Err(Reported)
        }
    }
}

fn ids(keys: &BTreeMap<KeyId, HmacKey>) -> String {
    keys.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn keys(table: &Table<'_>, dialect: Dialect) -> Result<BTreeMap<KeyId, HmacKey>, Reported> {
    let help = "add `keys:` with at least one, such as `[{id: 1, key: \"file:/etc/cplb/vrrp.key\"}]`";
    let Some(list) = table.field("keys") else {
        table.missing("keys", help);
        return Err(Reported);
    };
    let most = "remove keys that no controller signs with any more";
    let items = list.items_up_to(HmacConfig::MAX_KEYS, most).ok_or(Reported)?;
    if items.is_empty() {
        list.error(Finding::new("required-field", "`keys` is empty", help));
        return Err(Reported);
    }
    let mut keys = BTreeMap::new();
    let mut sound = true;
    for item in &items {
        match key(item, dialect) {
            Ok((id, key)) if !keys.contains_key(&id) => _ = keys.insert(id, key),
            Ok((id, _)) => {
                let help = "give each key an identifier of its own";
                item.error(Finding::new("duplicate-key-id", format!("key {id} was already given"), help));
                sound = false;
            }
            Err(Reported) => sound = false,
        }
    }
    if sound { Ok(keys) } else { Err(Reported) }
}

fn key(item: &Field<'_>, dialect: Dialect) -> Result<(KeyId, HmacKey), Reported> {
    let table = item.table().ok_or(Reported)?;
    let id = match table.field("id") {
        Some(field) => key_id(&field),
        None => {
            table.missing("id", "add `id:` with a number from 1 to 255, the same on every controller");
            Err(Reported)
        }
    };
    let key = match table.field("key") {
        Some(field) => key_value(&field),
        None => {
            table
                .missing("key", "add `key:` with `file:` and a path, `hex:` and 64 to 128 digits, or a text");
            Err(Reported)
        }
    };
    finish(table, dialect);
    Ok((id?, key?))
}

fn key_id(field: &Field<'_>) -> Result<KeyId, Reported> {
    field.integer(1..=u8::MAX).and_then(KeyId::new).ok_or(Reported)
}

fn key_value(field: &Field<'_>) -> Result<HmacKey, Reported> {
    let text = field.string().ok_or(Reported)?;
    let (message, help) = if text == REDACTED {
        let help = "write the real one; `cplb check` shows keys only when asked to";
        ("the key was taken out of this document".to_owned(), help)
    } else if let Some(path) = text.strip_prefix("file:") {
        let path = PathBuf::from(path);
        if path.is_absolute() {
            return Ok(HmacKey::File(path));
        }
        ("the path of a key is absolute".to_owned(), "write it as in `file:/etc/cplb/vrrp.key`")
    } else {
        match HmacKey::parse(&text) {
            Ok(key) => return Ok(HmacKey::Inline(key)),
            Err(error) => {
                (error.to_string(), "make one with `openssl rand -hex 32`, and write `hex:` before it")
            }
        }
    };
    field.error(Finding::new("hmac-key", message, help));
    Err(Reported)
}
