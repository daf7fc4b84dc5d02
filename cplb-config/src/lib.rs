//! k0s-compatible control plane load balancing configuration: YAML in, validated domain types or located errors out.
//!
//! [`load`] reads a k0s `ClusterConfig`, a k0sctl `Cluster` or the native `ControlPlaneLoadBalancer` of
//! `cplb/v1alpha1`, applies every rule that k0s applies and those that it lacks, and gives one [`Config`] with every
//! default filled in. All mistakes are reported at once: each [`Diagnostic`] has line, column, the offending text and
//! what to write instead.
//!
//! ```
//! let text = "
//! apiVersion: cplb/v1alpha1
//! kind: ControlPlaneLoadBalancer
//! spec:
//!   vrrpInstances:
//!   - virtualIPs: [10.0.0.100]
//!     authPas: Example
//! ";
//! let errors = cplb_config::load(text, "cplb.yaml").unwrap_err();
//! assert_eq!(
//!     errors.report().plain(),
//!     "cplb.yaml:6:18: error: the virtual IP has no prefix length [vrrpInstances[0].virtualIPs[0]]\n    \
//!          help: write `10.0.0.100/24` with the prefix length of its subnet\n\
//!      cplb.yaml:7:5: error: there is no field `authPas` here [vrrpInstances[0].authPas]\n    \
//!          help: did you mean `authPass`?\n"
//! );
//! ```
//!
//! The crate reads no file and no system state. [`Config::check_interfaces`] compares the addresses with the
//! node's interfaces, which the caller has observed.

mod admission;
mod command_line;
mod diagnostic;
mod document;
mod duration;
mod effective;
mod escape;
mod format;
mod interfaces;
mod load;
mod model;
mod native;
mod read;
mod rules;
mod secret;
mod suggest;
mod vrid;
mod walk;
mod yaml;

pub use admission::{BackendRule, Origin, Unfit};
pub use command_line::{RefusedBackend, UnusedKubeconfig};
pub use diagnostic::{Diagnostic, Errors, Location, Report, Severity, Theme};
pub use effective::MAX_IPVS_SERVICES;
pub use escape::{escaped, is_unprintable};
pub use format::Format;
pub use load::{Document, Loaded, MAX_BYTES, load, load_bytes};
pub use model::{
    AuthHmac, Backend, Backends, Config, HmacKey, HmacKeyError, Host, Instance, LbAlgorithm, LbKind, Port,
    Service, Unicast, UnicastPeers, VirtualServer,
};
pub use native::{Redact, WriteError, json_schema};
pub use read::{BackendError, K0S_KUBECONFIG};
