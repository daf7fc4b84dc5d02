//! The keeper against the real kernel, in network namespaces that the tests make.
//!
//! As an ordinary user the process enters a user namespace first, which it can only while it has one thread; that is
//! why there is no libtest here. As root it does not, so that real-time priority is tried as well.

mod basic;
mod child;
mod crash;
mod disturbance;
mod fixture;
mod interfaces;
mod scale;
mod survival;
mod system;

use libtest_mimic::{Arguments, Trial};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};

fn main() {
    child::run_if_child();
    become_root_of_a_namespace();
    let mut arguments = Arguments::from_args();
    // Nearly all the time is spent waiting for leases.
    arguments.test_threads.get_or_insert(8);
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(basic::trials());
    trials.extend(disturbance::trials());
    trials.extend(interfaces::trials());
    trials.extend(crash::trials());
    trials.extend(scale::trials());
    trials.extend(survival::trials());
    trials.extend(system::trials());
    libtest_mimic::run(&arguments, trials).exit();
}

fn become_root_of_a_namespace() {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    if uid.is_root() {
        return;
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .expect("user namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1");
    std::fs::write("/proc/self/setgroups", "deny").unwrap();
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
}

/// A test by the name of its function, in its own namespace.
macro_rules! trials {
    ($($name:ident),* $(,)?) => {
        pub(crate) fn trials() -> Vec<libtest_mimic::Trial> {
            let module = module_path!().rsplit("::").next().unwrap_or_default();
            vec![$(libtest_mimic::Trial::test(format!("{module}::{}", stringify!($name)), || {
                crate::fixture::in_namespace($name);
                Ok(())
            })),*]
        }
    };
}
pub(crate) use trials;
