//! Any file is a configuration whose effective form loads to itself, or a list of located errors.
#![no_main]

use cplb_config::{Redact, load, load_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match load_bytes(data, "cplb.yaml") {
        Ok(loaded) => {
            let text = loaded.config.to_native_yaml(Redact::Nothing).expect("it can be written");
            let again = load(&text, "effective.yaml").expect("the effective configuration loads");
            assert_eq!(again.config, loaded.config, "{text}");
        }
        Err(errors) => {
            assert!(errors.errors().next().is_some());
            let _ = errors.report().plain();
        }
    }
});
