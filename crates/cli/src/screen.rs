//! The terminal that tables are for, if there is one.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use serde_json::Value;

use crate::platform::terminal_columns;

/// Between two looks with `--watch`.
const PERIOD: Duration = Duration::from_secs(2);

/// What standard output can do.
pub(crate) struct Screen {
    /// Whether bold and other attributes may be used.
    styled: bool,
    terminal: bool,
}

impl Screen {
    /// Standard output. `NO_COLOR` set to anything turns attributes off (no-color.org).
    pub(crate) fn new() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            styled: terminal && !refused && !dumb,
            terminal: terminal && !dumb,
        }
    }

    /// No terminal.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self {
            styled: false,
            terminal: false,
        }
    }

    /// Columns; `None` when lines may be as long as they like. Asked anew each time: windows change.
    pub(crate) fn width(&self) -> Option<usize> {
        if !self.terminal {
            return None;
        }
        terminal_columns()
    }

    /// A heading.
    pub(crate) fn heading(&self, text: &str) -> String {
        match self.styled {
            true => format!("\x1b[1m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    /// What goes before a picture that replaces the last one.
    fn home(&self) -> &'static str {
        match self.terminal {
            true => "\x1b[H\x1b[2J",
            false => "\n",
        }
    }

    /// Shows what `look` finds, as JSON or as `describe` puts it into words for a terminal of so many
    /// columns: once, or again and again. A hub that restarts comes back.
    ///
    /// # Errors
    /// Those of `look`, unless it is to look again; standard output is gone.
    pub(crate) async fn show(
        &self,
        how: How,
        look: impl AsyncFn() -> anyhow::Result<Value>,
        describe: impl Fn(&Value, &Self, Option<usize>) -> String,
    ) -> anyhow::Result<Value> {
        // What was wrong the last time, which is not said again and again.
        let mut told = String::new();
        loop {
            match look().await {
                Ok(report) => {
                    told.clear();
                    let text = describe(&report, self, self.width());
                    self.draw(how, &report, &text)?;
                    if !how.watch {
                        return Ok(report);
                    }
                }
                Err(error) if !how.watch => return Err(error),
                Err(error) => {
                    let text = format!("{error:#}");
                    if text != told {
                        eprintln!("error: {text}; looking again until Ctrl-C");
                    }
                    told = text;
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    fn draw(&self, how: How, report: &Value, text: &str) -> std::io::Result<()> {
        let mut stdout = std::io::stdout().lock();
        match (how.json, how.watch) {
            (true, true) => writeln!(stdout, "{report}")?,
            (true, false) => writeln!(stdout, "{report:#}")?,
            (false, true) => write!(stdout, "{}{text}", self.home())?,
            (false, false) => stdout.write_all(text.as_bytes())?,
        }
        stdout.flush()
    }
}

/// How to show something
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct How {
    /// Print JSON; with --watch one document per line
    #[arg(long)]
    pub(crate) json: bool,
    /// Look again every 2 seconds, until Ctrl-C
    #[arg(long)]
    pub(crate) watch: bool,
}
