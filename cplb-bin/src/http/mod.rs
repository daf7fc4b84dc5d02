//! The HTTP server at `status.listen`, for monitoring: `/metrics`, `/healthz`, `/readyz` and `/api/v1/status`.
//!
//! It runs in a thread of its own and asks the event loop for the status, at most five times a second, so that no number of
//! clients delays anything else. It reads nothing from clients but the head of a GET or HEAD request.

mod family;
mod metrics;
mod process;
mod reply;
mod server;
mod snapshots;

pub(crate) use server::Server;
pub(crate) use snapshots::StatusRequest;
