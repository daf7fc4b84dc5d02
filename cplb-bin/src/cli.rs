//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{NonEmptyStringValueParser, OsStringValueParser, TypedValueParser as _};
use clap::{Args, Parser, Subcommand, ValueEnum};
use nix::unistd::Gid;

use crate::{history, logging, socket};

/// The default path of the status socket.
pub(crate) const DEFAULT_SOCKET: &str = "/run/cplb/cplb.sock";
/// The default directory for the records of what the daemon owns.
pub(crate) const DEFAULT_STATE_DIR: &str = "/var/lib/cplb";

/// A highly available address and load balancer for a Kubernetes control plane.
#[derive(Debug, Parser)]
#[command(name = "cplb", version, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon in the foreground
    ///
    /// Elects the holder of each virtual IP over VRRP, holds it while elected, and balances the TCP
    /// connections that arrive at it over every healthy backend. SIGTERM or SIGINT hands over and cleans up,
    /// SIGHUP reloads the configuration without dropping a connection, SIGUSR1 writes the status to the log.
    Run(RunArgs),
    /// Validate a configuration and print the effective one
    ///
    /// Reads a k0s.yaml, a k0sctl.yaml or a native document. Exits with 0, or with 65 after printing every
    /// error with its line and column. Warnings go to standard error.
    #[command(override_usage = "cplb check [OPTIONS] --config <FILE>\n       cplb check --print schema")]
    Check(CheckArgs),
    /// Show which router is Active, why and since when, and the backends
    Status(StatusArgs),
    /// Show which router was Active when, and why
    ///
    /// Prints the Actives of each virtual IP as this node knows them: from its own daemon, from the reports of the other
    /// controllers, and from what it has heard; also those before a restart. Times are UTC, by the clock of this node. If no
    /// daemon runs, the file that it has left is read.
    History(HistoryArgs),
    /// Move virtual IPs to another controller
    ///
    /// Asks the controller that has them, through this node's daemon, and waits until another one has them. Prints the old and
    /// the new holder, and the blackout as both measured it. Refused, with the reason, if no other controller can serve.
    Handover(HandoverArgs),
    /// Move all virtual IPs away from this node, and take none until `cplb active`
    ///
    /// This node stays in the group with the degraded priority: if no other controller can serve, it keeps its virtual
    /// IPs, or takes them again. Standby outlasts a restart of the daemon.
    Standby(ControlArgs),
    /// End `cplb standby`
    ///
    /// This node takes part in the election as before. It does not take the virtual IPs back by itself, unless it
    /// always preempts.
    Active(ControlArgs),
    /// Read the configuration again, and show what has changed
    ///
    /// As SIGHUP, with the result: exits with 0 once the new configuration is in effect, or with 65 after printing the
    /// errors of the file, which then changes nothing.
    Reload(ControlArgs),
    /// List the open connections of clients through the load balancer of this node
    Connections(ConnectionsArgs),
    /// Log other lines from now on, until the daemon ends, or show which are logged
    #[command(name = "log-level")]
    LogLevel(LogLevelArgs),
    /// Give a backend no new connections; its open ones continue
    ///
    /// Holds for the load balancer of this node, so run it on each controller, or on the Active. It outlasts a reload and ends
    /// with the daemon. Refused if it would leave a service without a backend that takes connections.
    Drain(DrainArgs),
    /// End `cplb drain`
    Undrain(UndrainArgs),
    /// Show a failover on this machine, without privileges
    ///
    /// The controllers are network namespaces; the daemons, their virtual IP and the traffic are real. The
    /// demonstration kills the Active, measures the blackout of a client, starts the daemon again, and cleans up.
    #[cfg(feature = "demo")]
    Demo(crate::demo::DemoArgs),
    /// Print a shell's completion script
    Completions {
        /// The shell to write for
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigArg {
    /// The configuration: k0s.yaml, k0sctl.yaml or a native document
    #[arg(long, short, value_name = "FILE", env = "CPLB_CONFIG")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BackendArgs {
    /// A backend in addition to those of the configuration: an address or a name, with or without :PORT (repeatable)
    #[arg(long = "backend", value_name = "ADDR")]
    pub(crate) backends: Vec<cplb_config::Backend>,
    /// Find the API servers through the Kubernetes API with this kubeconfig, which may not exist yet [default: with
    /// a k0s.yaml or k0sctl.yaml k0s's own, /var/lib/k0s/pki/admin.conf]
    // An environment file may leave it empty.
    #[arg(long, value_name = "FILE", env = "CPLB_KUBECONFIG", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub(crate) kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArg,
    #[command(flatten)]
    pub(crate) backends: BackendArgs,
    #[command(flatten)]
    pub(crate) socket: SocketArg,
    /// The group, by name or number, whose members may read the status and the history [default: that of the daemon]
    #[arg(long, value_name = "GROUP", env = "CPLB_SOCKET_GROUP", value_parser = socket::group)]
    pub(crate) socket_group: Option<Gid>,
    /// The directory for the records of what the daemon owns, by which a restart cleans up after a crash
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR, env = "CPLB_STATE_DIR")]
    pub(crate) state_dir: PathBuf,
    /// The name of this node in the status of the other controllers; by default the host name
    #[arg(long, value_name = "NAME", env = "CPLB_NODE_NAME")]
    pub(crate) node_name: Option<String>,
    /// The format of the log on standard error
    #[arg(long, value_name = "FORMAT", default_value = "text", env = "CPLB_LOG_FORMAT")]
    pub(crate) log_format: LogFormat,
    /// The lines to log: error, warn, info, debug, trace or off, for parts as in `info,vrrp=trace`
    /// [default: that of RUST_LOG, or info]
    #[arg(long, value_name = "LEVEL", env = "CPLB_LOG", value_parser = filter_text)]
    pub(crate) log_level: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The configuration: k0s.yaml, k0sctl.yaml or a native document, - for standard input; not needed to print the
    /// schema
    #[arg(
        long,
        short,
        value_name = "FILE",
        env = "CPLB_CONFIG",
        required_unless_present = "print",
        required_if_eq_any = [("print", "effective"), ("print", "none")]
    )]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) backends: BackendArgs,
    /// The document to print
    #[arg(long, value_name = "DOCUMENT", default_value = "effective")]
    pub(crate) print: Print,
    /// Print passwords and keys in clear text instead of a placeholder
    #[arg(long)]
    pub(crate) show_secrets: bool,
    /// Exit with 65 also for warnings
    #[arg(long)]
    pub(crate) strict: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) socket: SocketArg,
    /// Print the documented JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Repeat every second until interrupted, also while no daemon answers (with --json: one document per line)
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// Print one line instead, and exit with 0 if this node can serve, 1 if it can and is degraded, 2 if it cannot, 3 if no daemon tells
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    pub(crate) check: bool,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Leave out what was before: a time in UTC such as 2026-11-29T02:50, 02:50 or 2026-11-29, or a duration before now
    /// such as 90m or 2d
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Print every transition of every controller instead of the Actives
    #[arg(long)]
    pub(crate) all: bool,
    /// Print the documented JSON, which has both
    #[arg(long, conflicts_with = "all")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) socket: SocketArg,
    /// The directory with the records of a daemon that does not run
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR, env = "CPLB_STATE_DIR")]
    pub(crate) state_dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct HandoverArgs {
    /// The virtual IPs to move: one of their addresses, or their virtualRouterID; needed if there are several instances
    #[arg(value_name = "VIP|INSTANCE")]
    pub(crate) instance: Option<String>,
    /// The controller that is to have them: its node name or its address; by default the best one that can serve
    #[arg(long, value_name = "NODE", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) to: Option<String>,
    #[command(flatten)]
    pub(crate) control: ControlArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConnectionsArgs {
    /// Only those to this backend: an address, with or without its port
    #[arg(long, value_name = "ADDR")]
    pub(crate) backend: Option<String>,
    /// Only those of this service
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,
    /// Only those of this client
    #[arg(long, value_name = "IP")]
    pub(crate) client: Option<IpAddr>,
    #[command(flatten)]
    pub(crate) control: ControlArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LogLevelArgs {
    /// As --log-level of `cplb run`, or `default` for that of the start; without it, prints the one in use
    #[arg(value_name = "LEVEL", value_parser = level_text)]
    pub(crate) level: Option<String>,
    #[command(flatten)]
    pub(crate) control: ControlArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    pub(crate) target: BackendTarget,
    /// End it by itself after this time, such as 30m or 2h
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// Wait until no connection to the backend is open
    #[arg(long, short)]
    pub(crate) wait: bool,
    /// Exit with 75 if connections are still open after this time
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "wait")]
    pub(crate) timeout: Option<Duration>,
    /// Drain it also if no other backend takes connections
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UndrainArgs {
    #[command(flatten)]
    pub(crate) target: BackendTarget,
}

#[derive(Debug, Args)]
pub(crate) struct BackendTarget {
    /// The backend as `cplb status` shows it: an address, with or without its port
    #[arg(value_name = "BACKEND")]
    pub(crate) backend: String,
    /// Only as a backend of this service [default: all services]
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,
    #[command(flatten)]
    pub(crate) control: ControlArgs,
}

/// A duration of whole seconds, from 1 s to 10 years.
fn duration(text: &str) -> Result<Duration, String> {
    history::duration(text)
        .map(|duration| Duration::from_secs(duration.as_secs()))
        .filter(|duration| (1..=10 * 365 * 24 * 3600).contains(&duration.as_secs()))
        .ok_or_else(|| "not a duration from 1s to 10 years, such as 90s, 30m, 2h or 1d".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct ControlArgs {
    #[command(flatten)]
    pub(crate) socket: SocketArg,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct SocketArg {
    /// The daemon's status socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, env = "CPLB_SOCKET")]
    pub(crate) socket: PathBuf,
}

/// A text that is a filter of the log.
fn filter_text(text: &str) -> Result<String, String> {
    logging::filter(text).map(|_| text.to_owned())
}

/// The same, or the word for the filter of the start.
fn level_text(text: &str) -> Result<String, String> {
    if text == logging::DEFAULT_WORD { Ok(text.to_owned()) } else { filter_text(text) }
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// One line of text per event
    Text,
    /// One JSON object per event
    Json,
}

/// The document that `cplb check` prints on success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Print {
    /// The effective native configuration with every default filled in
    Effective,
    /// The JSON schema of the native document
    Schema,
    /// Nothing
    None,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn backends_are_addresses_with_or_without_a_port() {
        let parse =
            |text: &str| Cli::try_parse_from(["cplb", "run", "--config", "c.yaml", "--backend", text]);
        for right in ["10.0.0.11", "10.0.0.11:7443", "fd00::11", "[fd00::11]:6443"] {
            assert!(parse(right).is_ok(), "{right}");
        }
        for wrong in ["10.0.0.11:0", "10.0.0.11:66000", ""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
