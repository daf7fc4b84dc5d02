//! The guest kernel's modules, for tests that unload them.

use std::{ffi::CString, fs::File, io, path::Path};

use nix::{
    errno::Errno,
    kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module},
};

use super::{kernel::module_name, shared_guest::OWN_GUEST};
use crate::Error;

/// The files of all modules, each after those it depends on.
pub(super) const LIST: &str = "/etc/cplb-guest-modules";

/// Loads every module that the guest has, at its start.
pub(super) fn load_all() -> io::Result<()> {
    for file in std::fs::read_to_string(LIST)?.lines() {
        load_file(Path::new(file)).map_err(|error| io::Error::other(format!("module {file}: {error}")))?;
    }
    Ok(())
}

/// Loads a module of the guest's kernel again, with its dependencies.
///
/// # Errors
/// [`Error::Misuse`] outside of a guest or for a module that the guest does not have; [`Error::System`] with the
/// kernel's error.
pub fn load_module(name: &str) -> Result<(), Error> {
    let list = std::fs::read_to_string(LIST)
        .map_err(|_| Error::Misuse("modules are loaded in a guest only".to_owned()))?;
    // The module's dependencies come before it in the list and have been loaded at the start.
    let file = list.lines().find(|file| module_name(file) == name);
    let file = file.ok_or_else(|| Error::Misuse(format!("the guest has no module {name}")))?;
    load_file(Path::new(file)).map_err(Error::system(format!("load module {name}")))
}

/// Unloads a module, in a test that has its guest for itself ([`crate::Test::in_own_guest`]): the kernel keeps the namespaces
/// of ended tests, with the objects in them that use modules, for as long as a connection in them may be retried.
///
/// # Errors
/// [`Error::Misuse`] in a test that shares its guest; [`Error::System`] with the kernel's error, such as that the module is in
/// use.
pub fn unload_module(name: &str) -> Result<(), Error> {
    if std::env::var_os(OWN_GUEST).is_none() {
        return Err(Error::Misuse("a test that unloads modules needs Test::in_own_guest".to_owned()));
    }
    let c_name = CString::new(name).map_err(|_| Error::Misuse(format!("no module is called {name:?}")))?;
    match delete_module(&c_name, DeleteModuleFlags::O_NONBLOCK) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(Error::errno(format!("unload module {name}"))(errno)),
    }
}

fn load_file(file: &Path) -> io::Result<()> {
    match finit_module(&File::open(file)?, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
