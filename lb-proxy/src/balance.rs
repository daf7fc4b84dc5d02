//! The algorithm by which a service chooses a backend.

use std::fmt;

/// The algorithm that chooses a backend for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Balance {
    /// Each backend in turn.
    #[default]
    RoundRobin,
    /// The backend with the fewest connections; ties in turn. Good for long-lived watches.
    LeastConnections,
    /// In proportion to the weights, smoothly interleaved.
    Weighted,
    /// By the client's address: the same client gets the same backend while that is healthy, and only the clients
    /// of a lost backend move (rendezvous hashing).
    SourceHash,
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Balance::RoundRobin => "roundRobin",
            Balance::LeastConnections => "leastConnections",
            Balance::Weighted => "weighted",
            Balance::SourceHash => "sourceHash",
        })
    }
}
