//! The nft program: searched once, run once per change, bounded in time and output.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

/// The directories in which distributions install `nft`; services and unprivileged users often lack them in PATH.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Limit on nft's error text in bytes.
const STDERR_MAX: u64 = 16 * 1024;

/// nft failed, and the kernel's tables are as they were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The program could not be started.
    #[error("{} could not be started: {source}", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The program did not end in time and was killed.
    #[error("{} did not end within {after:?} and was stopped{}", path.display(), quoted(text))]
    TimedOut {
        /// The program.
        path: PathBuf,
        /// The time limit.
        after: Duration,
        /// Its output to standard error.
        text: String,
    },
    /// The kernel refused because the process lacks a privilege.
    #[error("nft needs CAP_NET_ADMIN (run as root or grant the capability){}", quoted(text))]
    Permission {
        /// nft's error text.
        text: String,
    },
    /// nft opens `/dev/stdin` for its input, and there is none.
    #[error("nft cannot read its input, as /dev/stdin is missing: mount /dev and /proc{}", quoted(text))]
    NoInput {
        /// nft's error text.
        text: String,
    },
    /// The kernel lacks something the table uses.
    #[error(
        "the kernel lacks an nftables feature this needs (nf_tables, nft_chain_nat, nft_fib_inet, nft_ct, \
         nft_reject_inet, for a transparent delivery nft_tproxy, IPv6 included){}",
        quoted(text)
    )]
    Unsupported {
        /// nft's error text.
        text: String,
    },
    /// nft failed for another reason.
    #[error("nft failed ({status}){}", quoted(text))]
    Failed {
        /// Its exit status.
        status: ExitStatus,
        /// nft's error text.
        text: String,
    },
}

fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("; nft reported: {text}") }
}

/// Returns the first executable `nft` in the directories of `path` (as in `$PATH`), then the system directories; as an
/// error the directories searched.
pub(super) fn find(path: Option<&OsStr>) -> Result<PathBuf, Vec<PathBuf>> {
    let mut directories: Vec<PathBuf> = path.map(std::env::split_paths).into_iter().flatten().collect();
    // An empty entry means the working directory, which a privileged daemon must not trust.
    directories.retain(|directory| directory.is_absolute());
    directories.extend(SYSTEM_DIRECTORIES.map(PathBuf::from));
    find_in(&directories).ok_or(directories)
}

/// Returns the first executable `nft` in `directories`.
pub(super) fn find_in(directories: &[PathBuf]) -> Option<PathBuf> {
    directories.iter().map(|directory| directory.join("nft")).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Feeds `batch` to `nft -j -f -` and waits for its end, at most `timeout`.
pub(super) async fn run(path: &Path, batch: &[u8], timeout: Duration) -> Result<(), RunError> {
    let start = |source| RunError::Start { path: path.to_owned(), source };
    let mut child = Command::new(path)
        .args(["-j", "-f", "-"])
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let mut text = Vec::new();
    let Ok(ended) = tokio::time::timeout(timeout, exchange(&mut child, batch, &mut text)).await else {
        // Reaps the process as well, unless even the kernel cannot end it; then tokio does later.
        let _ = tokio::time::timeout(Duration::from_secs(1), child.kill()).await;
        return Err(RunError::TimedOut { path: path.to_owned(), after: timeout, text: printable(&text) });
    };
    let status = ended.map_err(start)?;
    if status.success() { Ok(()) } else { Err(classify(status, printable(&text))) }
}

async fn exchange(child: &mut Child, batch: &[u8], text: &mut Vec<u8>) -> io::Result<ExitStatus> {
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let write = async {
        let Some(mut stdin) = stdin else { return };
        // A program that fails before it has read its whole input breaks the pipe; its exit status is more specific.
        let _ = stdin.write_all(batch).await;
        let _ = stdin.shutdown().await;
    };
    let read = async {
        let Some(mut stderr) = stderr else { return };
        let _ = (&mut stderr).take(STDERR_MAX).read_to_end(text).await;
        // The rest of the output is discarded, so that the program does not block on a full pipe.
        let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    };
    tokio::join!(write, read);
    child.wait().await
}

fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).trim().to_owned()
}

/// Maps nft's error text, which contains the kernel's error (in English: see `LC_ALL`), to an error; its exit status is
/// always the same.
fn classify(status: ExitStatus, text: String) -> RunError {
    let contains = |needle| text.contains(needle);
    if contains("Operation not permitted") || contains("must be root") {
        RunError::Permission { text }
    } else if contains("/dev/stdin") {
        RunError::NoInput { text }
    } else if contains("Operation not supported")
        || contains("Protocol not supported")
        || contains("No such file or directory")
    {
        // The batch refers only to objects that it creates, so a kernel module is missing.
        RunError::Unsupported { text }
    } else {
        RunError::Failed { status, text }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_missing_standard_input_is_not_mistaken_for_a_kernel_without_nftables() {
        let refused = |text: &str| classify(ExitStatus::from_raw(256), text.to_owned());
        let input = "internal:0:0-0: Error: Could not open file \"/dev/stdin\": No such file or directory";
        let error = refused(input);
        assert!(matches!(error, RunError::NoInput { .. }));
        assert!(error.to_string().contains("mount /dev") && !error.to_string().contains("kernel"), "{error}");
        let missing = "Error: Could not process rule: No such file or directory";
        assert!(matches!(refused(missing), RunError::Unsupported { .. }));
    }
}
