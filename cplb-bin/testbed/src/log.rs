//! The output of processes, line by line, with the time of each line.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::wait::TimedOut;

/// The stream that a line was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A line that a process wrote.
#[derive(Debug, Clone)]
pub struct Line {
    /// The time at which it was read.
    pub at: Instant,
    /// The stream that it was written to.
    pub stream: Stream,
    /// The text, without the line end; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// The output of a process so far. Clones are the same log.
#[derive(Debug, Clone)]
pub struct Log(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    start: Instant,
    lines: Mutex<Vec<Line>>,
    grown: Condvar,
    file: Option<Mutex<File>>,
}

/// The logs and process ids of a LAN.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    start: Instant,
    /// Logs in the order in which the processes started.
    logs: Arc<Mutex<Vec<Log>>>,
    /// The ids of processes that a [`crate::Process`] waits for.
    owned: Arc<Mutex<BTreeSet<i32>>>,
}

impl Log {
    /// The lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.guard().clone()
    }

    /// The texts of all lines, joined.
    #[must_use]
    pub fn text(&self) -> String {
        self.guard().iter().fold(String::new(), |mut text, line| {
            text.push_str(&line.text);
            text.push('\n');
            text
        })
    }

    /// The number of lines; a mark for [`Log::wait_for_line_after`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.guard().len()
    }

    /// Returns whether the log has no lines.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for a line that contains `text`, and returns the first one; it may already be there.
    ///
    /// # Errors
    /// [`TimedOut`] if no line matches within `timeout`.
    pub fn wait_for_line(&self, text: &str, timeout: Duration) -> Result<Line, TimedOut> {
        self.wait_for_line_after(0, text, timeout)
    }

    /// Like [`Log::wait_for_line`], but skips the first `mark` lines.
    ///
    /// # Errors
    /// [`TimedOut`] if no line matches within `timeout`.
    pub fn wait_for_line_after(&self, mark: usize, text: &str, timeout: Duration) -> Result<Line, TimedOut> {
        self.wait_for(mark, timeout, |line| line.text.contains(text))
            .ok_or_else(|| TimedOut { what: format!("{} writes a line with {text:?}", self.0.name), timeout })
    }

    /// Waits for the first line after `mark` lines that `matches`.
    pub fn wait_for(&self, mark: usize, timeout: Duration, matches: impl Fn(&Line) -> bool) -> Option<Line> {
        let deadline = Instant::now() + timeout;
        let mut lines = self.guard();
        let mut seen = mark;
        loop {
            if let Some(line) = lines.iter().skip(seen).find(|line| matches(line)) {
                return Some(line.clone());
            }
            seen = seen.max(lines.len());
            let left = deadline.checked_duration_since(Instant::now())?;
            lines = self.0.grown.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) fn new(name: String, start: Instant, file: Option<File>) -> Self {
        let lines = Mutex::new(Vec::new());
        Self(Arc::new(Inner { name, start, lines, grown: Condvar::new(), file: file.map(Mutex::new) }))
    }

    /// Reads a stream on a separate thread until its end.
    pub(crate) fn follow(&self, source: impl Read + Send + 'static, stream: Stream) -> io::Result<()> {
        let log = self.clone();
        thread::Builder::new()
            .name(format!("log {}", self.0.name))
            .spawn(move || log.read(source, stream))?;
        Ok(())
    }

    fn read(&self, source: impl Read, stream: Stream) {
        let mut source = BufReader::new(source);
        let mut bytes = Vec::new();
        while source.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
            let at = Instant::now();
            let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
            bytes.clear();
            if let Some(file) = &self.0.file {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                // The copy on disk is a convenience; a full disk must not stop the process.
                let _ = writeln!(file, "{:10.4} {text}", (at - self.0.start).as_secs_f64());
            }
            self.guard().push(Line { at, stream, text });
            self.0.grown.notify_all();
        }
    }

    fn guard(&self) -> MutexGuard<'_, Vec<Line>> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), logs: Arc::default(), owned: Arc::default() }
    }

    pub(crate) fn open(&self, name: String, file: Option<File>) -> Log {
        let log = Log::new(name, self.start, file);
        self.logs.lock().unwrap_or_else(PoisonError::into_inner).push(log.clone());
        log
    }

    /// The ids of processes that have a [`crate::Process`], which must collect their exit status.
    pub(crate) fn owned(&self) -> MutexGuard<'_, BTreeSet<i32>> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All lines of all processes in chronological order, each with seconds since the LAN was built.
    pub(crate) fn report(&self) -> String {
        let logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut all: Vec<(Line, &str)> = logs
            .iter()
            .flat_map(|log| log.lines().into_iter().map(|line| (line, log.0.name.as_str())))
            .collect();
        all.sort_by_key(|(line, _)| line.at);
        all.iter().fold(String::new(), |mut report, (line, name)| {
            let seconds = (line.at - self.start).as_secs_f64();
            let _ = writeln!(report, "{seconds:10.4} {name}: {}", line.text);
            report
        })
    }
}
