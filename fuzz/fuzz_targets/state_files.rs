//! Any bytes of a state file are a valid content, which is identical after writing and reading, or are refused. The
//! first byte chooses the format.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netlink_vip::fuzzing;

#[allow(dead_code)]
#[path = "../../cplb-bin/src/discovery/store/format.rs"]
mod backends;
#[allow(dead_code)]
#[path = "../../cplb-bin/src/history/format.rs"]
mod history;
#[allow(dead_code)]
#[path = "../../cplb-bin/src/daemon/ipvs/record/format.rs"]
mod ipvs_record;
#[allow(dead_code)]
#[path = "../../cplb-bin/src/history/time.rs"]
mod time;

fuzz_target!(|data: &[u8]| {
    let Some((format, bytes)) = data.split_first() else { return };
    let _ = match format {
        b'v' => fuzzing::vips(bytes),
        b's' => fuzzing::sysctls(bytes),
        b'r' => fuzzing::real_server(bytes),
        b'h' => fuzzing::round_trips::<history::Content>(bytes),
        b'i' => fuzzing::round_trips::<ipvs_record::Content>(bytes),
        _ => fuzzing::round_trips::<backends::Content>(bytes),
    };
});
