//! Entry points of the fuzz targets, which are no part of the API: the formats of the state files are private.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files::{Loaded, Outlives, decode, encode};
use crate::{real_server, record, sysctl};

/// Decodes the bytes of a state file and checks that an accepted content is written and read again as it was. Returns
/// whether it was accepted.
///
/// # Panics
/// If the content changes on its way.
pub fn round_trips<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> bool {
    let Loaded::Content(content) = decode::<T>(bytes, Outlives::Boot, "") else { return false };
    let again = encode(&content, "").expect("a content can be written");
    assert_eq!(decode::<T>(&again, Outlives::Process, ""), Loaded::Content(content));
    true
}

/// `vips.json`; see [`round_trips`].
pub fn vips(bytes: &[u8]) -> bool {
    round_trips::<record::Record>(bytes)
}

/// `sysctls.json`; see [`round_trips`].
pub fn sysctls(bytes: &[u8]) -> bool {
    round_trips::<Vec<sysctl::Change>>(bytes)
}

/// `real-server.json`; see [`round_trips`].
pub fn real_server(bytes: &[u8]) -> bool {
    round_trips::<real_server::Record>(bytes)
}
