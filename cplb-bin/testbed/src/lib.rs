//! A LAN of controllers in network namespaces, for cplb's tests, benchmarks and demonstration.
