//! A keeper in a process of its own, which can be killed and stopped. The test binary starts itself for it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use netlink_vip::{Keeper, KeeperOptions, LeaseTime, Release, SpawnError};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fixture::{MS, ONE, SOON, group};

/// Set in the child: state directory, lease in seconds and addresses, separated by blanks.
const TASK: &str = "NETLINK_VIP_TEST_CHILD";

/// Runs the child's part if this process is one.
pub(crate) fn run_if_child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let words: Vec<&str> = task.split(' ').collect();
    let [state, lease, addresses @ ..] = words.as_slice() else { panic!("{task}") };
    if *lease == "unprivileged" {
        // A new user namespace has no say over the network namespace that it came from.
        unshare(CloneFlags::CLONE_NEWUSER).unwrap();
    }
    let lease = LeaseTime::new(Duration::from_secs(lease.parse().unwrap_or(2))).unwrap();
    let config = netlink_vip::VipGroupConfig { lease, ..group(ONE, "eth0", addresses) };
    let sink = Box::new(|event| say(&format!("{event:?}")));
    let keeper = match Keeper::spawn(KeeperOptions::new(*state), vec![config], sink) {
        Ok(keeper) => keeper,
        Err(SpawnError::Permission) => {
            say("no permission");
            std::process::exit(77);
        }
        Err(error) => panic!("{error}"),
    };
    for line in std::io::stdin().lines() {
        match line.unwrap().split_once(' ') {
            Some(("claim", valid_ms)) => keeper.claim(ONE, Instant::now() + MS * valid_ms.parse().unwrap()),
            Some(("release", _)) => keeper.release(ONE, Release::Planned),
            other => panic!("{other:?}"),
        }
    }
    std::process::exit(0);
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A running child; killed when it goes out of scope.
pub(crate) struct Remote {
    process: Child,
    commands: ChildStdin,
    said: Receiver<String>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Remote {
    /// Starts a keeper for `addresses` on eth0 of the calling thread's namespace.
    pub(crate) fn start(state: &Path, lease: &str, addresses: &[&str]) -> Self {
        let task = format!("{} {lease} {}", state.display(), addresses.join(" "));
        let mut process = Command::new(std::env::current_exe().unwrap())
            .env(TASK, task)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (tell, said) = channel();
        std::thread::spawn(move || {
            for line in output.lines() {
                if line.is_ok_and(|line| tell.send(line).is_err()) {
                    return;
                }
            }
        });
        Self { process, commands, said }
    }

    pub(crate) fn claim(&mut self, valid: Duration) {
        writeln!(self.commands, "claim {}", valid.as_millis()).unwrap();
    }

    /// Claims and waits for the addresses.
    pub(crate) fn install(&mut self) {
        self.wait("Interface");
        self.claim(1_800 * MS);
        self.wait("Installed");
    }

    /// The next line that contains `text`; the others are passed over.
    pub(crate) fn wait(&self, text: &str) -> String {
        let end = Instant::now() + SOON;
        let mut passed = Vec::new();
        loop {
            match self.said.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => passed.push(line),
                Err(error) => panic!("no {text} ({error}), only {passed:#?}"),
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.process.id()).unwrap()), signal).unwrap();
    }

    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.process.wait().unwrap().code()
    }
}
