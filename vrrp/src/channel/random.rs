//! Unpredictable numbers from a seed.

use sha2::{Digest as _, Sha256};

/// Numbers that follow from a seed, and that do not show it (SHA-256 of the seed and a counter).
#[derive(Debug)]
pub(super) struct Random {
    seed: [u64; 2],
    count: u64,
}

impl Random {
    pub(super) const fn new(seed: [u64; 2]) -> Self {
        Self { seed, count: 0 }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.count += 1;
        let mut hash = Sha256::new();
        for number in [self.seed[0], self.seed[1], self.count] {
            hash.update(number.to_be_bytes());
        }
        let digest = hash.finalize();
        digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}
