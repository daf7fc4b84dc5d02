//! Means of the tests: any value of the model, and a model of the kernel.

pub(crate) mod kernel;
#[cfg(feature = "client")]
pub(crate) mod socket;
pub(crate) mod strategies;
