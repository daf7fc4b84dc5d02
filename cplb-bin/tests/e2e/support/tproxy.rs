//! Simulation of a node whose kernel has no `tproxy`.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use testbed::Tool;

/// The availability of the kernel module nft_tproxy on the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tproxy {
    Present,
    Missing,
}

impl Tproxy {
    pub(crate) const BOTH: [Self; 2] = [Self::Present, Self::Missing];

    /// The daemon's mode of delivery.
    pub(crate) fn mode(self) -> &'static str {
        match self {
            Self::Present => "transparent",
            Self::Missing => "dnat",
        }
    }

    /// Sets a command's `PATH` so that `nft` fails as it does without the module, with the kernel's message.
    pub(crate) fn prepare(self, command: &mut Command, directory: &Path) {
        if self == Self::Missing {
            command.env("PATH", path_with_wrapper(directory));
        }
    }
}

fn path_with_wrapper(directory: &Path) -> OsString {
    let nft = Tool::Nft.path().expect("nft is installed");
    let own = directory.join("without-tproxy");
    fs::create_dir_all(&own).expect("a directory");
    let script = format!(
        "#!/bin/sh\nbatch=$(cat)\ncase \"$batch\" in\n*tproxy*)\n    \
         echo 'internal:0:0-0: Error: Could not process rule: No such file or directory' >&2\n    exit 1 ;;\nesac\n\
         printf '%s' \"$batch\" | exec {} \"$@\"\n",
        nft.display()
    );
    let text = own.join("script");
    fs::write(&text, script).expect("the script is written");
    // Not written by this process: a child that another thread forks meanwhile would keep it open for writing, and the
    // kernel refuses to run such a file.
    let installed = Command::new("install").args(["-m", "755"]).arg(&text).arg(own.join("nft")).status();
    assert!(installed.expect("coreutils").success());
    let mut path = own.into_os_string();
    for more in [std::env::var_os("PATH"), Some("/usr/sbin:/sbin".into())].into_iter().flatten() {
        path.push(":");
        path.push(more);
    }
    path
}
