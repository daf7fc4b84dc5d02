//! Runs a program in a guest with a distribution's kernel: `guest [--file PATH]… PROGRAM [ARGUMENT]…`
//!
//! Used as cargo's runner for tests, see `.ci/guest`.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use testbed::{
    Entered, Tool, enter,
    guest::{Guest, GuestCommand, GuestEnd, GuestError, is_for_tests, run_if_init},
};

/// Every tool that tests use and that is not too large.
const TOOLS: &[Tool] = &[
    Tool::Nft,
    Tool::Ip,
    Tool::Tc,
    Tool::Ipvsadm,
    Tool::Keepalived,
    Tool::Tcpdump,
    Tool::Curl,
    Tool::Openssl,
    Tool::Haproxy,
    Tool::Nginx,
    Tool::Arping,
    Tool::Setpriv,
    Tool::Strace,
];
const USAGE: &str = "usage: guest [--file PATH]... PROGRAM [ARGUMENT]...";

fn main() -> ExitCode {
    run_if_init();
    let mut files = Vec::new();
    let mut arguments = std::env::args().skip(1).peekable();
    while arguments.next_if_eq("--file").is_some() {
        files.extend(arguments.next().map(PathBuf::from));
    }
    let Some(program) = arguments.next().filter(|program| !program.starts_with('-')) else {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    };
    // The guest ends with this process, whatever ends the process.
    match enter() {
        Ok(Entered::Inside) => {}
        Ok(Entered::Finished(code)) => return code,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    }
    match run(files, &program, arguments.collect()) {
        Ok(GuestEnd::Exited(code)) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Ok(GuestEnd::Overdue) => {
            eprintln!("error: {program} was killed: its time was over");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut files: Vec<PathBuf>, program: &str, arguments: Vec<String>) -> Result<GuestEnd, GuestError> {
    let program = std::path::absolute(program).unwrap_or_else(|_| program.into());
    files.push(program.clone());
    let tools = TOOLS.iter().copied().filter(|tool| tool.path().is_ok());
    let mut guest = Guest::builder().tools(tools).files(files).boot()?;
    eprintln!("guest up in {:?}", guest.booted_in());
    let mut command = GuestCommand::new(program).args(arguments).within(Duration::from_secs(3600));
    if let Ok(directory) = std::env::current_dir() {
        command = command.current_dir(directory);
    }
    for (name, value) in std::env::vars().filter(|(name, _)| is_for_tests(name)) {
        command = command.env(name, value);
    }
    guest.run(&command, |bytes| {
        let _ = io::stdout().write_all(bytes).and_then(|()| io::stdout().flush());
    })
}
