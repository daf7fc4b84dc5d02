//! The mount, network and PID namespaces that the program runs in.

use std::{
    env, fs, io,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitCode},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::Signal,
    },
    unistd::{Pid, getegid, geteuid, getpid},
};

use crate::netns;

/// Environment variable of the second process; its value is the PID of the first, which has prepared the namespaces.
pub(crate) const MARKER: &str = "CPLB_TESTBED_PARENT";

/// The role of this process, one of the two that [`enter`] makes of the program.
#[derive(Debug)]
#[must_use = "the first process must end with the code of the second"]
pub enum Entered {
    /// This process is in its own namespaces (and the init of its PID namespace): go on.
    Inside,
    /// This process waited outside for the second one; it must now end with this code.
    Finished(ExitCode),
}

/// The reason why the namespaces could not be entered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnterError {
    /// A process with several threads cannot change its user namespace.
    #[error(
        "namespaces must be entered while the process has one thread, but it has {0}: call testbed::enter() first in main"
    )]
    Threads(usize),
    /// The kernel or its configuration forbids user namespaces.
    #[error(
        "cannot {step}: {source}\n  Ordinary users may not create user namespaces here. Either run as root, or allow them:\n  \
         sysctl -w kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0 user.max_user_namespaces=10000"
    )]
    Forbidden {
        /// The step that failed.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another system call failed.
    #[error("cannot {step}: {source}")]
    Step {
        /// The step that failed.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Moves the program into mount, network and PID namespaces of its own, and, unless it is root, into a user
/// namespace in which it is root.
///
/// Call it first in `main`, before any thread starts. A process cannot enter a PID namespace itself, only its next
/// child does, so the program is started a second time with the same arguments: the first process gets
/// [`Entered::Finished`] once the second has ended, and must return that code; the second gets [`Entered::Inside`]. If
/// the first one is killed, the kernel kills the second, and with it, as it is the init of its PID namespace, every
/// process that was started from it. So no process survives, whichever is killed.
///
/// Inside, `/run` is an empty tmpfs, `/proc` shows the new PID namespace only, `lo` is up, and mounts are private.
/// Root of the initial user namespace stays there, because real-time scheduling and `mlockall` need it.
///
/// # Errors
/// [`EnterError::Threads`] if called too late, [`EnterError::Forbidden`] with the sysctls to set where ordinary
/// users may not create user namespaces.
pub fn enter() -> Result<Entered, EnterError> {
    match env::var(MARKER) {
        Ok(parent) if getpid() == Pid::from_raw(1) => set_up_namespaces(&parent).map(|()| Entered::Inside),
        _ => run_in_namespaces().map(Entered::Finished),
    }
}

/// Returns whether this process is root of the initial user namespace, so that it can get real-time scheduling.
#[must_use]
pub fn is_initial_root() -> bool {
    let identity = fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
    identity && geteuid().is_root()
}

/// Returns whether this process is the second one, which runs in the namespaces.
pub(crate) fn is_inside() -> bool {
    env::var_os(MARKER).is_some() && getpid() == Pid::from_raw(1)
}

/// The first process: makes the namespaces, starts the second and waits for it.
fn run_in_namespaces() -> Result<ExitCode, EnterError> {
    let threads = thread_count().map_err(step("count the threads of this process"))?;
    if threads != 1 {
        return Err(EnterError::Threads(threads));
    }
    let program = env::current_exe().map_err(step("find this program's own file"))?;
    let parent = getpid();
    unshare_namespaces()?;
    let mut child = Command::new(program)
        .args(env::args_os().skip(1))
        .env(MARKER, parent.to_string())
        .spawn()
        .map_err(step("start this program again in its namespaces"))?;
    let status = child.wait().map_err(step("wait for this program in its namespaces"))?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn unshare_namespaces() -> Result<(), EnterError> {
    let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
    let (uid, gid) = (geteuid(), getegid());
    // Root in a container may lack the capability, and is then in the position of an ordinary user.
    if !uid.is_root() || unshare(own).is_err() {
        unshare(CloneFlags::CLONE_NEWUSER | own)
            .map_err(|errno| forbidden("create a user namespace")(errno.into()))?;
        write_map("setgroups", "deny")?;
        write_map("uid_map", &format!("0 {uid} 1"))?;
        write_map("gid_map", &format!("0 {gid} 1"))?;
    }
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(|errno| forbidden("make mounts private")(errno.into()))
}

fn write_map(file: &'static str, content: &str) -> Result<(), EnterError> {
    fs::write(format!("/proc/self/{file}"), content).map_err(forbidden("map users into the user namespace"))
}

/// The second process: binds its life to the first one's and mounts the file systems of the new namespaces.
fn set_up_namespaces(parent: &str) -> Result<(), EnterError> {
    let errno = |what| move |errno: nix::Error| step(what)(errno.into());
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(errno("bind this process to its parent"))?;
    // The parent may have died before the request above. This /proc is still the parent's, so it shows the
    // parent's PID as the parent knows it.
    if outer_parent().map_err(step("read /proc/self/stat"))? != parent {
        return Err(step("continue")(io::Error::other("the parent process is gone")));
    }
    let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("proc"), "/proc", Some("proc"), hardened | MsFlags::MS_NOEXEC, None::<&str>).map_err(
        errno("mount /proc for the new PID namespace (a container that masks parts of /proc forbids it)"),
    )?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), hardened, Some("mode=0755"))
        .map_err(errno("mount a tmpfs over /run"))?;
    // Probes use many sockets at once.
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(errno("raise the limit of open files"))?;
    }
    netns::loopback_up_here().map_err(step("bring the loopback interface up"))
}

fn thread_count() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

/// The fourth field of `/proc/self/stat`; the second one may hold spaces, but ends with the last parenthesis.
fn outer_parent() -> io::Result<String> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    Ok(after_name.split_whitespace().nth(1).unwrap_or_default().to_owned())
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> EnterError {
    move |source| EnterError::Step { step, source }
}

fn forbidden(step: &'static str) -> impl FnOnce(io::Error) -> EnterError {
    move |source| match source.raw_os_error() {
        Some(libc_errno) if is_permission_error(libc_errno) => EnterError::Forbidden { step, source },
        _ => EnterError::Step { step, source },
    }
}

fn is_permission_error(errno: i32) -> bool {
    use nix::Error as Errno;
    matches!(
        Errno::from_raw(errno),
        Errno::EPERM | Errno::EACCES | Errno::ENOSPC | Errno::EUSERS | Errno::ENOSYS
    )
}
