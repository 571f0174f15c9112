//! The terminal that the tables are for, if there is one.

use std::io::IsTerminal as _;

/// What standard output can do.
pub(super) struct Screen {
    /// Whether bold and other attributes may be used.
    styled: bool,
    terminal: bool,
}

impl Screen {
    /// Standard output. `NO_COLOR` set to anything turns attributes off (no-color.org).
    pub(super) fn new() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            styled: terminal && !refused,
            terminal,
        }
    }

    /// No terminal.
    #[cfg(test)]
    pub(super) fn plain() -> Self {
        Self {
            styled: false,
            terminal: false,
        }
    }

    /// Columns; `None` when lines may be as long as they like. Asked anew each time: windows change.
    pub(super) fn width(&self) -> Option<usize> {
        if !self.terminal {
            return None;
        }
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
        (size.ws_col > 0).then(|| usize::from(size.ws_col))
    }

    /// A heading.
    pub(super) fn heading(&self, text: &str) -> String {
        match self.styled {
            true => format!("\x1b[1m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    /// What goes before a picture that replaces the last one.
    pub(super) fn home(&self) -> &'static str {
        match self.terminal {
            true => "\x1b[H\x1b[2J",
            false => "\n",
        }
    }
}
