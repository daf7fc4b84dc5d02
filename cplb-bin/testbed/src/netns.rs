//! A network namespace, kept open by a descriptor.

use std::{
    fmt,
    fs::File,
    future::Future,
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    panic,
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace. It exists as long as this descriptor, a thread, a process or a socket in it.
#[derive(Clone)]
pub(crate) struct Netns {
    file: Arc<File>,
}

/// A thread in a node's namespace, made by [`crate::Node::thread`].
#[derive(Debug)]
pub struct Thread<T>(thread::JoinHandle<io::Result<T>>);

impl<T> Thread<T> {
    /// Waits for the thread to end.
    ///
    /// # Errors
    /// If the thread could not enter the namespace.
    ///
    /// # Panics
    /// If the thread panicked, with its panic.
    pub fn join(self) -> io::Result<T> {
        match self.0.join() {
            Ok(result) => result,
            Err(payload) => panic::resume_unwind(payload),
        }
    }
}

impl Netns {
    /// Creates a namespace; its loopback interface is still down.
    pub(crate) fn create() -> io::Result<Self> {
        let make = || -> io::Result<Self> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(Self { file: Arc::new(File::open("/proc/thread-self/ns/net")?) })
        };
        thread::Builder::new()
            .name("new namespace".into())
            .spawn(make)?
            .join()
            .unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    /// Runs `work` in the namespace, on a new thread, so that the calling thread's namespace does not change. A panic
    /// of `work` continues in the caller.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = thread::Builder::new().name("in namespace".into()).spawn_scoped(scope, || {
                self.join_here()?;
                Ok(work())
            })?;
            inside.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
        })
    }

    /// Runs the future that `work` makes in the namespace, on a separate current-thread runtime.
    pub(crate) fn block_on<T, F, W>(&self, work: W) -> io::Result<T>
    where
        T: Send,
        F: Future<Output = T>,
        W: FnOnce() -> F + Send,
    {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(async { work().await }))
        })?
    }

    /// Starts a thread in the namespace.
    pub(crate) fn thread<T: Send + 'static>(
        &self,
        name: String,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Thread<T>> {
        let namespace = self.clone();
        let handle = thread::Builder::new().name(name).spawn(move || {
            namespace.join_here()?;
            // The thread alone must not keep the descriptor open: the namespace is freed once the thread has ended.
            drop(namespace);
            Ok(work())
        })?;
        Ok(Thread(handle))
    }

    /// The inode number, which identifies the namespace among all existing ones.
    pub(crate) fn inode(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.ino())
    }

    pub(crate) fn raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    fn join_here(&self) -> io::Result<()> {
        Ok(setns(&*self.file, CloneFlags::CLONE_NEWNET)?)
    }
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Netns").field(&self.inode().ok()).finish()
    }
}

/// Brings `lo` up in the namespace of the calling thread.
pub(crate) fn loopback_up_here() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let up = rtnetlink::LinkUnspec::new_with_index(LOOPBACK_INDEX).up().build();
        let result = handle.link().set(up).execute().await.map_err(io::Error::other);
        connection.abort();
        result
    })
}

/// `lo` is always the first interface of a namespace.
const LOOPBACK_INDEX: u32 = 1;
