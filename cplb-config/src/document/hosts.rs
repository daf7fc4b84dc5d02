//! The controllers of a k0sctl file become static backends.

use std::collections::HashMap;

use crate::model::{Backend, Host};
use crate::read::{Placed, PlacedBackend, host};
use crate::suggest::closest;
use crate::walk::{Field, Finding, Table};

const FLAG: &str = "endpoint-reconciler";
const ROLES: [&str; 4] = ["controller", "controller+worker", "single", "worker"];
const ENVSUBST: &str =
    "k0sctl replaces `${…}` from its environment and cplb does not: pass the file through envsubst first";
/// The flags with which k0s runs a kubelet beside the control plane.
const WORKER_FLAGS: [&str; 2] = ["--enable-worker", "--single"];

/// The controllers among the hosts.
#[derive(Debug, Default)]
pub(super) struct Controllers {
    pub(super) backends: Vec<PlacedBackend>,
    /// Set if every controller disables the component; `false` if there is none.
    pub(super) endpoint_reconciler_disabled: bool,
    /// Those that are declared as workers too, by name.
    pub(super) workers: Vec<Placed<String>>,
    /// Set if there are controllers and none of them is a worker too.
    pub(super) none_is_worker: bool,
}

pub(super) fn read_controllers(list: &Field<'_>) -> Controllers {
    let mut controllers = Controllers { endpoint_reconciler_disabled: true, ..Controllers::default() };
    let (mut seen, mut any) = (HashMap::new(), false);
    for item in list.items().unwrap_or_default() {
        let Some(table) = item.table().filter(is_controller) else { continue };
        any = true;
        controllers.endpoint_reconciler_disabled &= disables_reconciler(&table);
        let backend = read_host(&table);
        if let Some(field) = worker(&table) {
            let name = backend.as_ref().map(|backend| backend.value.to_string());
            controllers.workers.push(Placed::new(name.unwrap_or_else(|| item.path.clone()), &field));
        }
        let Some(backend) = backend else { continue };
        if let Some(line) = seen.get(&backend.value.host) {
            let message = format!("{} is already a controller on line {line}", backend.value.host);
            let help = "give each host its own address";
            list.out.warn(&backend.path, backend.at, Finding::new("duplicate-backend", message, help));
            continue;
        }
        seen.insert(backend.value.host.clone(), backend.at.line);
        controllers.backends.push(backend);
    }
    controllers.endpoint_reconciler_disabled &= !controllers.backends.is_empty();
    controllers.none_is_worker = any && controllers.workers.is_empty();
    controllers
}

/// Returns whether k0sctl runs a controller on the host, and not to remove it (`reset: true`).
fn is_controller(host: &Table<'_>) -> bool {
    let role = host.field("role").filter(|role| role.child.text() != Some(""));
    let known = match &role {
        None => None,
        Some(role) => match role.child.text() {
            Some(text) if ROLES.contains(&text) => Some(text != "worker"),
            _ => {
                unknown_role(role);
                return false;
            }
        },
    };
    // k0sctl takes the flag for the role (`Host.SetDefaults`).
    let runs = known == Some(true) || worker_flags(host).is_some();
    if known.is_none() && !runs {
        let message = "this host has no role, so it is no controller";
        let help = "add `role: controller`, `controller+worker`, `single` or `worker`";
        host.out().warn(&host.path, host.first_key(), Finding::new("host-role", message, help));
    }
    let reset = host.field("reset").and_then(|reset| reset.bool()).unwrap_or(false);
    runs && !reset
}

/// k0sctl refuses the whole file.
fn unknown_role(role: &Field<'_>) {
    let Some(text) = role.child.text() else { return role.wrong_type("a single text value") };
    let help = match text {
        _ if text.contains("${") => ENVSUBST.to_owned(),
        "master" | "server" | "control-plane" => "write `role: controller`".to_owned(),
        _ => match closest(text, &ROLES) {
            Some(meant) => format!("did you mean `role: {meant}`?"),
            None => format!("write one of {}", ROLES.join(", ")),
        },
    };
    role.error(Finding::new(
        "host-role",
        format!("k0sctl knows no role `{text}` and refuses the file"),
        help,
    ));
}

/// The field that makes a controller a worker too.
fn worker<'a>(host: &Table<'a>) -> Option<Field<'a>> {
    let role = host.field("role");
    if let Some(role) = role.filter(|role| matches!(role.child.text(), Some("controller+worker" | "single")))
    {
        return Some(role);
    }
    worker_flags(host)
}

/// The flags of the host, if one of them makes it controller and worker.
fn worker_flags<'a>(host: &Table<'a>) -> Option<Field<'a>> {
    let flags = host.field("installFlags")?;
    let items = flags.child.sequence().unwrap_or_default();
    let mut flags_of = items.iter().filter_map(|item| item.text());
    flags_of
        .any(|flag| {
            let (name, value) = flag.split_once('=').unwrap_or((flag, "true"));
            WORKER_FLAGS.contains(&name.trim()) && value.trim() != "false"
        })
        .then_some(flags)
}

fn disables_reconciler(host: &Table<'_>) -> bool {
    let mentions = |field: &Field<'_>| {
        let items = field.child.sequence().unwrap_or_default();
        items.iter().filter_map(|item| item.text()).any(|flag| flag.contains(FLAG))
    };
    if host.field("installFlags").is_some_and(|flags| mentions(&flags)) {
        return true;
    }
    let ssh = host.field("ssh").filter(|ssh| ssh.child.mapping().is_some()).and_then(|ssh| ssh.table());
    if let Some(flags) = ssh.and_then(|ssh| ssh.field("installFlags")).filter(|flags| mentions(flags)) {
        let message = "k0sctl does not look for installFlags under `ssh`";
        let help = "move it out of `ssh`, beside `role`";
        flags.out.warn(&flags.path, flags.key, Finding::new("misplaced", message, help));
    }
    false
}

/// privateAddress, else an IP address of the connection, else its name, to be resolved when needed.
fn read_host(table: &Table<'_>) -> Option<PlacedBackend> {
    let connection: Vec<Field<'_>> = ["ssh", "openSSH"]
        .into_iter()
        .filter_map(|name| table.field(name))
        .filter(|connection| connection.child.mapping().is_some())
        .filter_map(|connection| connection.table()?.field("address"))
        .collect();
    let private = table.field("privateAddress").filter(|field| field.child.text() != Some(""));
    let literal = |field: &&Field<'_>| matches!(field.child.text().map(host), Some(Ok(Host::Address(_))));
    let Some(field) = private.as_ref().or(connection.iter().find(literal)).or(connection.first()) else {
        let message = "this controller has no address, so it is no server of the load balancer";
        table.out().warn(
            &table.path,
            table.first_key(),
            Finding::new("host-address", message, "add `privateAddress:`"),
        );
        return None;
    };
    let text = field.string()?;
    if private.is_none() {
        warn_about_private_interface(table, &text);
    }
    let host = match host(&text) {
        Ok(host) => host,
        Err(error) => {
            let help =
                if text.contains("${") { ENVSUBST } else { "write the controller's IP address or host name" };
            field.error(Finding::new("host-address", error.to_string(), help));
            return None;
        }
    };
    let name = match &host {
        Host::Name(_) => None,
        Host::Address(_) => connection
            .first()
            .and_then(|field| field.child.text())
            .filter(|text| matches!(self::host(text), Ok(Host::Name(_))))
            .map(str::to_owned),
    };
    Some(Placed::new(Backend { host, port: None, weight: 1, name }, field))
}

/// k0sctl looks the address of the interface up on the host.
fn warn_about_private_interface(table: &Table<'_>, used: &str) {
    let Some(field) = table.field("privateInterface") else { return };
    let Some(name) = field.child.text().filter(|name| !name.is_empty()) else { return };
    let message = format!(
        "k0sctl takes the private address of this host from its interface {name}, which cannot be looked up from here: \
         {used} is used"
    );
    let help = format!("add `privateAddress:` with the address of {name}");
    field.warn(Finding::new("private-interface", message, help));
}
