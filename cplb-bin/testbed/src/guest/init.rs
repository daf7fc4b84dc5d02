//! The first process of a guest: sets the system up, runs the programs that the host requests, and never ends.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read},
    os::unix::{fs::symlink, process::ExitStatusExt},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CpuSet, sched_setaffinity},
    sys::{
        reboot::{RebootMode, reboot},
        termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
    },
    unistd::{Pid, getpid},
};

use super::{
    modules,
    wire::{Frame, PIECE, Request},
};
use crate::netns::{self, Netns};

/// Environment variable of the processes in a guest. The kernel passes it on from its command line.
pub(super) const VARIABLE: &str = "CPLB_GUEST";
/// The variable's value for the first process; the processes that it starts have another value.
pub(super) const INIT: &str = "init";
const CONSOLE: &str = "/dev/ttyS0";
const PORT: &str = "/dev/ttyS1";
/// The longest time in which a guest that works passes its check, with a wide margin: it takes a few milliseconds.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the guest if this is its first process, and then never returns; returns at once in any other process.
///
/// [`crate::main`] calls it by itself.
pub fn run_if_init() {
    if getpid() != Pid::from_raw(1) || std::env::var_os(VARIABLE).is_none_or(|value| value != INIT) {
        return;
    }
    let ended = set_up_system().and_then(|()| serve());
    // PID 1 has no caller to return to: the error goes to the console, and the host sees the machine stop.
    if let Err(error) = ended {
        print_on_console(&format!("guest: {error}\n"));
        print_kernel_state();
    }
    let _ = reboot(RebootMode::RB_POWER_OFF);
    std::process::exit(1);
}

fn set_up_system() -> io::Result<()> {
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run")] {
        mount(Some(kind), place, Some(kind), MsFlags::MS_NOSUID, None::<&str>)?;
    }
    for directory in ["/dev/shm", "/dev/pts"] {
        fs::create_dir_all(directory)?;
    }
    mount(Some("tmpfs"), "/dev/shm", Some("tmpfs"), MsFlags::MS_NOSUID, None::<&str>)?;
    mount(Some("devpts"), "/dev/pts", Some("devpts"), MsFlags::MS_NOSUID, None::<&str>)?;
    for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        symlink(format!("/proc/self/fd{target}"), format!("/dev/{name}"))?;
    }
    modules::load_all()?;
    netns::loopback_up_here()?;
    if works() { Ok(()) } else { Err(io::Error::other("a processor or the kernel's network hangs")) }
}

/// Returns whether each emulated processor runs threads and timers, and the kernel makes and removes network namespaces. An
/// emulated machine can hang in part, and each of its tests would then wait in vain.
fn works() -> bool {
    let (sender, done) = mpsc::channel();
    thread::spawn(move || _ = sender.send(use_processors_and_network()));
    let result = done.recv_timeout(CHECK_TIMEOUT).unwrap_or_else(|error| Err(io::Error::other(error)));
    if let Err(error) = &result {
        print_on_console(&format!("guest: check failed: {error}\n"));
    }
    result.is_ok()
}

fn use_processors_and_network() -> io::Result<()> {
    let processors = thread::available_parallelism()?.get();
    for processor in 0..processors {
        let mut only = CpuSet::new();
        only.set(processor)?;
        sched_setaffinity(Pid::from_raw(0), &only)?;
        thread::sleep(Duration::from_millis(1));
    }
    Netns::create()?.run(netns::loopback_up_here)?
}

fn print_on_console(text: &str) {
    if let Ok(mut console) = OpenOptions::new().write(true).open(CONSOLE) {
        let _ = io::Write::write_all(&mut console, text.as_bytes());
    }
}

/// Makes the kernel print on the console what its processors do, and where tasks hang.
fn print_kernel_state() {
    // The first one raises the console's log level.
    for key in ["8", "l", "w"] {
        let _ = fs::write("/proc/sysrq-trigger", key);
    }
}

/// Answers one request after the other until the port is closed.
fn serve() -> io::Result<()> {
    let mut port = raw(OpenOptions::new().read(true).write(true).open(PORT)?)?;
    let mut requests = BufReader::new(port.try_clone()?);
    Frame::Ready.write(&mut port)?;
    loop {
        let mut line = String::new();
        if requests.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let request: Request = serde_json::from_str(&line)?;
        let last = match start(&request) {
            Ok((child, output)) => follow(child, output, Duration::from_secs(request.seconds), &mut port)?,
            Err(error) => Frame::NotStarted(format!("{}: {error}", request.program.display())),
        };
        last.write(&mut port)?;
    }
}

/// Sets the port to raw mode: no echo, no translation of line ends.
fn raw(port: File) -> io::Result<File> {
    let mut settings = tcgetattr(&port)?;
    cfmakeraw(&mut settings);
    tcsetattr(&port, SetArg::TCSANOW, &settings)?;
    Ok(port)
}

fn start(request: &Request) -> io::Result<(Child, io::PipeReader)> {
    fs::create_dir_all(&request.directory)?;
    let (output, input) = io::pipe()?;
    let child = Command::new(&request.program)
        .args(&request.arguments)
        .env_clear()
        .envs(request.environment.iter().map(|(name, value)| (name, value)))
        .env(VARIABLE, "yes")
        .env("HOME", "/root")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir(&request.directory)
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input)
        .spawn()?;
    Ok((child, output))
}

/// Passes the program's output on until it has ended or its time limit is over, and returns the final frame.
fn follow(mut child: Child, output: io::PipeReader, limit: Duration, port: &mut File) -> io::Result<Frame> {
    let deadline = Instant::now() + limit;
    let (sender, pieces) = mpsc::channel();
    thread::spawn(move || {
        let mut output = output;
        let mut piece = [0; PIECE];
        while let Ok(length @ 1..) = output.read(&mut piece) {
            if sender.send(piece[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut overdue = false;
    loop {
        match pieces.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(piece) => Frame::Output(piece).write(port)?,
            // Every process that could write has ended.
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if overdue => break,
            // Processes that the program started may hold the output open for a moment longer.
            Err(RecvTimeoutError::Timeout) => {
                overdue = true;
                print_kernel_state();
                child.kill()?;
            }
        }
    }
    if overdue {
        // A program that hangs in the kernel does not end.
        thread::spawn(move || child.wait());
        return Ok(Frame::Overdue { guest_works: works() });
    }
    Ok(Frame::Ended(code(child.wait()?)))
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Returns whether this process runs in a guest.
#[must_use]
pub fn is_guest() -> bool {
    std::env::var_os(VARIABLE).is_some() && Path::new(modules::LIST).exists()
}
