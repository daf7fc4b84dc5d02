//! k0s-compatible control plane load balancing configuration: YAML in, validated domain types or located errors out.
