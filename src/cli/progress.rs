//! Progress of long work: a bar on a terminal, lines in a log.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::node::protocol::Progress;

/// How often a log gets a line.
const LOG_PAUSE: Duration = Duration::from_secs(5);

/// Does `work` and shows how far it is, step by step.
pub fn shown<T>(work: impl FnOnce(&mut dyn FnMut(Progress)) -> T) -> T {
    let mut shown = Shown::new();
    let result = work(&mut |p: Progress| shown.at(&p.step, p.done_bytes, p.total_bytes));
    shown.finish();
    result
}

/// Shows one piece of work at a time.
pub struct Shown {
    bar: Option<ProgressBar>,
    step: String,
    last_line: Instant,
}

impl Shown {
    /// Shows on stderr: stdout is for results.
    #[must_use]
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}");
            let bar = ProgressBar::new(0);
            // The template is a constant that is right; without it the bar has the default look.
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, step: String::new(), last_line: Instant::now() }
    }

    /// Notes how far `step` is; `total_bytes` of 0 means that it does not count bytes.
    pub fn at(&mut self, step: &str, done_bytes: u64, total_bytes: u64) {
        let new_step = self.step != step;
        if new_step {
            step.clone_into(&mut self.step);
        }
        match &self.bar {
            Some(bar) => {
                if new_step {
                    bar.set_message(step.to_owned());
                    bar.reset();
                }
                bar.set_length(total_bytes);
                bar.set_position(done_bytes);
            }
            None if new_step || self.last_line.elapsed() >= LOG_PAUSE => {
                self.last_line = Instant::now();
                if total_bytes == 0 {
                    tracing::info!("{step}");
                } else {
                    tracing::info!(done_bytes, total_bytes, "{step}");
                }
            }
            None => {}
        }
    }

    /// Takes the bar off the terminal.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
