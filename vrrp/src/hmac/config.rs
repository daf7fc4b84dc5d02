//! Keys, modes and limits.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::Duration;

use ::hmac::{Hmac, KeyInit as _};
use sha2::Sha256;
use thiserror::Error;

/// The identifier of a key, 1 to 255.
pub type KeyId = NonZeroU8;

/// A secret key of 32 to 64 bytes.
#[derive(Clone)]
pub struct Key {
    bytes: Vec<u8>,
    /// The state behind the key, so that each message does not derive it again.
    mac: Hmac<Sha256>,
}

/// A key has another length than 32 to 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a key of {len} bytes; {} to {} are allowed", Key::MIN_LEN, Key::MAX_LEN)]
pub struct KeyError {
    /// The length in bytes.
    pub len: usize,
}

impl Key {
    /// The shortest length in bytes: that of the digest before it is truncated.
    pub const MIN_LEN: usize = 32;
    /// The longest length in bytes: the block of SHA-256, beyond which a key would be hashed first.
    pub const MAX_LEN: usize = 64;

    /// The key with these bytes.
    ///
    /// # Errors
    ///
    /// The length is out of range.
    pub fn new(bytes: &[u8]) -> Result<Self, KeyError> {
        let refused = KeyError { len: bytes.len() };
        if !(Self::MIN_LEN..=Self::MAX_LEN).contains(&bytes.len()) {
            return Err(refused);
        }
        let mac = Hmac::new_from_slice(bytes).map_err(|_| refused)?;
        Ok(Self { bytes: bytes.to_vec(), mac })
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn mac(&self) -> Hmac<Sha256> {
        self.mac.clone()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes)", self.bytes.len())
    }
}

/// The use of signatures. A group goes from one to the next, each on all routers before the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Mode {
    /// Signs nothing. Accepts unsigned messages, and signed ones whose signature is right.
    ReceiveOnly,
    /// Signs. Accepts unsigned messages, and signed ones whose signature is right.
    Permissive,
    /// Signs. Accepts only messages whose signature is right.
    #[default]
    Enforce,
}

/// The protection against replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AntiReplay {
    /// The time of signing must be within the window of the receiver's clock, and later than that of the message before.
    #[default]
    Time,
    /// The sequence must grow. For nodes without synchronised clocks: what was recorded can be replayed to a router that
    /// has just started or has not heard the sender for the length of the window.
    Monotonic,
}

/// The authentication of one virtual router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HmacConfig {
    keys: Arc<BTreeMap<KeyId, Key>>,
    active: KeyId,
    /// The use of signatures.
    pub mode: Mode,
    /// The protection against replay.
    pub anti_replay: AntiReplay,
    /// The largest difference between a time of signing and this router's clock.
    pub window: Duration,
}

/// Keys that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HmacConfigError {
    /// The active key is not among the keys.
    #[error("the active key {0} is not among the keys")]
    NoActiveKey(KeyId),
    /// There are more keys than copies of an advertisement may be sent.
    #[error("{count} keys; at most {} are allowed", HmacConfig::MAX_KEYS)]
    TooManyKeys {
        /// The number of keys.
        count: usize,
    },
}

impl HmacConfig {
    /// The most keys: each advertisement is sent once for each of them.
    pub const MAX_KEYS: usize = 4;
    /// The shortest window.
    pub const MIN_WINDOW: Duration = Duration::from_secs(1);
    /// The longest window.
    pub const MAX_WINDOW: Duration = Duration::from_secs(300);

    /// Enforced authentication by time, with the default window for an advertisement interval.
    ///
    /// # Errors
    ///
    /// `active` is not among the keys, or there are too many.
    pub fn new(
        keys: BTreeMap<KeyId, Key>,
        active: KeyId,
        interval: Duration,
    ) -> Result<Self, HmacConfigError> {
        if !keys.contains_key(&active) {
            return Err(HmacConfigError::NoActiveKey(active));
        }
        if keys.len() > Self::MAX_KEYS {
            return Err(HmacConfigError::TooManyKeys { count: keys.len() });
        }
        let window = Self::default_window(interval);
        let keys = Arc::new(keys);
        Ok(Self { keys, active, mode: Mode::default(), anti_replay: AntiReplay::default(), window })
    }

    /// The default window for an advertisement interval: three of them, at least 5 s.
    #[must_use]
    pub fn default_window(interval: Duration) -> Duration {
        (3 * interval).clamp(Duration::from_secs(5), Self::MAX_WINDOW)
    }

    /// All keys, the active one first.
    pub fn keys(&self) -> impl Iterator<Item = (KeyId, &Key)> {
        let active = self.keys.get_key_value(&self.active);
        let others = self.keys.iter().filter(|(id, _)| **id != self.active);
        active.into_iter().chain(others).map(|(id, key)| (*id, key))
    }

    /// The key that signs first.
    #[must_use]
    pub const fn active(&self) -> KeyId {
        self.active
    }

    /// Returns whether advertisements are signed.
    #[must_use]
    pub fn signs(&self) -> bool {
        self.mode != Mode::ReceiveOnly
    }

    pub(super) fn key(&self, id: u8) -> Option<&Key> {
        self.keys.get(&KeyId::new(id)?)
    }
}
