//! The `cplb` binary: parse, build, spawn, supervise, report.

mod check;
mod cli;
mod control;
mod daemon;
#[cfg(feature = "demo")]
mod demo;
mod discovery;
mod exit;
mod history;
mod http;
mod lock;
mod logging;
mod output;
mod socket;
mod source;
mod status;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command};
use exit::Kind;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors. A failure to print has no other place to be reported.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(Kind::Usage as u8) } else { ExitCode::SUCCESS };
        }
    };
    let result = match &cli.command {
        Command::Run(args) => daemon::run(args).map(|()| ExitCode::SUCCESS),
        Command::Check(args) => check::run(args).map(|()| ExitCode::SUCCESS),
        Command::Status(args) => status::client::run(args),
        Command::History(args) => history::client::run(args).map(|()| ExitCode::SUCCESS),
        Command::Handover(args) => control::client::hand_over(args).map(|()| ExitCode::SUCCESS),
        Command::Standby(args) => control::client::stand_by(args).map(|()| ExitCode::SUCCESS),
        Command::Active(args) => control::client::end_standby(args).map(|()| ExitCode::SUCCESS),
        Command::Reload(args) => control::client::reload(args).map(|()| ExitCode::SUCCESS),
        Command::Connections(args) => control::client::list_connections(args).map(|()| ExitCode::SUCCESS),
        Command::LogLevel(args) => control::client::set_log_level(args).map(|()| ExitCode::SUCCESS),
        Command::Drain(args) => control::client::drain(args).map(|()| ExitCode::SUCCESS),
        Command::Undrain(args) => control::client::undrain(args).map(|()| ExitCode::SUCCESS),
        #[cfg(feature = "demo")]
        Command::Demo(args) => demo::run(args),
        Command::Completions { shell } => {
            // The generator panics if it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "cplb", &mut script);
            output::print(&String::from_utf8_lossy(&script)).map(|_| ExitCode::SUCCESS)
        }
    };
    logging::flush();
    result.unwrap_or_else(|failure| {
        output::print_error(format_args!("cplb: {failure}"));
        failure.code()
    })
}
