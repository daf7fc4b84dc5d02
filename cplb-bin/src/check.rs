//! `cplb check`: validate a configuration and print the effective one.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cplb_config::{Config, Diagnostic, Host, Loaded, Redact, Severity, json_schema};
use netlink_vip::{FoundInterface, Inventory};

use crate::cli::{CheckArgs, Print};
use crate::exit::{Failure, Kind};
use crate::{daemon, output, source};

/// Names that are not resolved within this time are reported.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the command.
pub(crate) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let loaded = args.config.as_deref().map(|path| check(path, args)).transpose()?;
    let redact = if args.show_secrets { Redact::Nothing } else { Redact::Passwords };
    let text = match (args.print, loaded) {
        (Print::Effective, Some(loaded)) => {
            loaded.config.to_native_yaml(redact).map_err(|error| Failure::new(Kind::Internal, error))?
        }
        (Print::Schema, _) => serde_json::to_string_pretty(&json_schema())
            .map_err(|error| Failure::new(Kind::Internal, error))?,
        (Print::Effective | Print::None, _) => return Ok(()),
    };
    output::print(&text).map(|_| ())
}

/// Reads the configuration and prints its warnings to standard error.
///
/// # Errors
/// The report of all its errors; with `--strict` also if there are warnings.
fn check(path: &Path, args: &CheckArgs) -> Result<Loaded, Failure> {
    let mut loaded = source::load_or_stdin(path)?;
    let warnings = source::add_backends(&mut loaded, &args.backends);
    for warning in &warnings {
        output::print_error(format_args!("warning: {warning}"));
    }
    let mut count = warnings.len();
    let mut findings = std::mem::take(&mut loaded.warnings);
    match Inventory::read() {
        Ok(inventory) => findings.extend(check_interfaces(&loaded.config, &inventory)),
        Err(error) => {
            count += 1;
            output::print_error(format_args!(
                "warning: the configuration is not checked against the interfaces of this machine, which cannot be read: {error}"
            ));
        }
    }
    findings.extend(unresolved(&loaded.config));
    findings.extend(loaded.propose_vrids());
    findings.extend(loaded.config.check_effective());
    let report = loaded.document.report(findings).accepted().map_err(|errors| source::refusal(&errors))?;
    if !report.diagnostics.is_empty() {
        output::print_error(source::render(&report).trim_end());
    }
    count += report.diagnostics.len();
    if args.strict && count > 0 {
        let message = format_args!("{count} warning{}, with --strict", if count == 1 { "" } else { "s" });
        return Err(Failure::new(Kind::Config, message));
    }
    Ok(loaded)
}

/// Findings about the interfaces of this machine, chosen as `run` chooses them.
fn check_interfaces(config: &Config, inventory: &Inventory) -> Vec<Diagnostic> {
    let reaches_vrfs = daemon::accepts_vrfs();
    let mut interfaces: Vec<FoundInterface> = inventory.interfaces().collect();
    if reaches_vrfs {
        interfaces.iter_mut().for_each(|interface| interface.vrf = None);
    }
    config.check_interfaces(&interfaces, |instance| {
        inventory.select(&instance.interface, &instance.virtual_ips).map(str::to_owned)
    })
}

/// Warnings about names of backends that the resolver of this machine does not know. All names are resolved at once.
fn unresolved(config: &Config) -> Vec<Diagnostic> {
    let (sender, answers) = mpsc::channel();
    let mut pending = BTreeMap::new();
    for (path, name) in backend_names(config) {
        if pending.insert(name.clone(), path).is_none() {
            let sender = sender.clone();
            // The command does not wait for a thread whose name server does not answer.
            std::thread::spawn(move || {
                let answer = (name.as_str(), 0).to_socket_addrs().map(drop);
                let _ = sender.send((name, answer));
            });
        }
    }
    drop(sender);
    let until = Instant::now() + RESOLVE_TIMEOUT;
    let mut found = Vec::new();
    while let Ok((name, answer)) = answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
        let Some(path) = pending.remove(&name) else { continue };
        found.extend(answer.err().map(|error| unresolved_name(path, &name, &error.to_string())));
    }
    let late = pending.into_iter().map(|(name, path)| unresolved_name(path, &name, "no answer in time"));
    found.extend(late);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn unresolved_name(path: String, name: &str, why: &str) -> Diagnostic {
    Diagnostic {
        severity: Severity::Warning,
        rule: "unresolved-name",
        path,
        location: None,
        text: String::new(),
        message: format!("the backend name {name} cannot be resolved on this machine: {why}"),
        help: "cplb run tries again; correct the name, or write the server's address".to_owned(),
    }
}

/// The host names among the backends, each with its path in the configuration.
fn backend_names(config: &Config) -> Vec<(String, String)> {
    let shared = ("backends".to_owned(), &config.backends);
    let own = config.services.iter().enumerate().filter_map(|(index, service)| {
        Some((format!("services[{index}].backends"), service.backends.as_ref()?))
    });
    let lists = std::iter::once(shared).chain(own);
    let names = lists.flat_map(|(path, list)| {
        list.fixed.iter().enumerate().filter_map(move |(index, backend)| match &backend.host {
            Host::Name(name) => Some((format!("{path}.static[{index}]"), name.clone())),
            Host::Address(_) => None,
        })
    });
    names.collect()
}
