//! Prints the steps and results of the demonstration: with colours, or as plain lines with `--plain`.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Writes to standard output; a closed pipe is no failure.
#[derive(Debug)]
pub(crate) struct Printer {
    plain: bool,
    started: Instant,
}

const BOLD: &str = "\x1b[1m";
const GREEN: &str = "\x1b[32m";
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";
/// Width of a full bar.
const BAR: usize = 40;

impl Printer {
    pub(crate) fn new(plain: bool) -> Self {
        Self { plain: plain || !std::io::stdout().is_terminal(), started: Instant::now() }
    }

    pub(crate) fn title(&self, text: &str) {
        self.put(BOLD, "", text);
    }

    /// A step that begins.
    pub(crate) fn step(&self, text: &str) {
        let _ = writeln!(std::io::stdout());
        self.put(BOLD, "▶ ", text);
    }

    /// A measured result.
    pub(crate) fn result(&self, text: &str) {
        self.put(GREEN, "✔ ", text);
    }

    pub(crate) fn line(&self, text: &str) {
        self.put("", "  ", text);
    }

    /// A text of several lines, such as a configuration file or a log.
    pub(crate) fn block(&self, text: &str) {
        for line in text.lines() {
            self.put(DIM, "    ", line);
        }
    }

    /// A share of a total, as a bar or in figures.
    pub(crate) fn bar(&self, name: &str, part: usize, whole: usize) {
        let filled = "█".repeat(part * BAR / whole.max(1));
        let text =
            if self.plain { format!("{name}: {part} of {whole}") } else { format!("{name} {filled} {part}") };
        self.put("", "  ", &text);
    }

    fn put(&self, style: &str, mark: &str, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = if self.plain {
            writeln!(
                out,
                "[{:5.1} s] {}{text}",
                self.started.elapsed().as_secs_f64(),
                mark.replace(['▶', '✔'], " ")
            )
        } else {
            writeln!(out, "{style}{mark}{text}{RESET}")
        };
    }
}
