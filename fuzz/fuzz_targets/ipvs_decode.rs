//! Any bytes after a netlink header decode to a request and a reply that encode to themselves, or to errors.
#![no_main]

use ipvs::wire::{Command, Reply, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[command, ..], body)) = data.split_first_chunk::<4>() else { return };
    let mut bytes = Vec::new();
    if let Ok(request) = Request::decode(Command(command), body) {
        request.encode(&mut bytes);
        assert_eq!(Request::decode(request.command(), &bytes).as_ref(), Ok(&request));
    }
    bytes.clear();
    if let Ok(reply) = Reply::decode(Command(command), body) {
        reply.encode(&mut bytes);
        assert_eq!(Reply::decode(reply.command(), &bytes).as_ref(), Ok(&reply));
        let mut again = Vec::new();
        Reply::decode(reply.command(), &bytes).expect("it decoded above").encode(&mut again);
        assert_eq!(again, bytes);
    }
});
