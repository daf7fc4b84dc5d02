//! The `cplb` binary: parse, build, spawn, supervise, report.

fn main() {}
