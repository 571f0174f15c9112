//! What was found, line by line as it is found, or as JSON at the end.

use std::fmt::Display;
use std::io::Write as _;

use serde_json::{Value, json};

pub(super) use crate::cells::count;
use crate::screen::Screen;

/// Columns of the result and of what it is about.
const MARGIN: usize = 8 + 14;
/// Where nobody says how wide the terminal is.
const WIDTH: usize = 100;

/// Findings.
pub(super) struct Report {
    json: bool,
    screen: Screen,
    findings: Vec<Value>,
    faults: usize,
    warnings: usize,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            screen: Screen::new(),
            findings: Vec::new(),
            faults: 0,
            warnings: 0,
        }
    }

    /// As it should be.
    pub(super) fn ok(&mut self, area: &str, fact: impl Display) {
        self.add("ok", area, &fact.to_string(), None);
    }

    /// It works, and deserves a look.
    pub(super) fn warning(&mut self, area: &str, fact: impl Display, next: impl Display) {
        self.warnings += 1;
        self.add("warning", area, &fact.to_string(), Some(&next.to_string()));
    }

    /// It does not work.
    pub(super) fn fault(&mut self, area: &str, fact: impl Display, next: impl Display) {
        self.faults += 1;
        self.add("fault", area, &fact.to_string(), Some(&next.to_string()));
    }

    /// The same for an error of ours, which ends with what to do.
    pub(super) fn error(&mut self, area: &str, error: impl Display) {
        let text = error.to_string();
        match text.rsplit_once("; ") {
            Some((fact, next)) => self.fault(area, fact, next),
            None => self.fault(area, text, "correct that and look again"),
        }
    }

    fn add(&mut self, result: &str, area: &str, fact: &str, next: Option<&str>) {
        self.findings.push(json!({
            "result": result, "area": area, "fact": fact, "next": next,
        }));
        if self.json {
            return;
        }
        let width = self.screen.width().unwrap_or(WIDTH).max(MARGIN + 20);
        let shown = match result {
            "ok" => format!("{result:<8}"),
            _ => self.screen.heading(&format!("{result:<8}")),
        };
        let mut text = format!("{shown}{area:<14}");
        text.push_str(&wrapped(fact, width - MARGIN, MARGIN));
        if let Some(next) = next {
            let indent = MARGIN + "-> ".len();
            text.push_str(&format!("{:MARGIN$}-> ", ""));
            text.push_str(&wrapped(next, width - indent, indent));
        }
        let mut stdout = std::io::stdout().lock();
        // The exit code still tells a reader that has gone away.
        let _ = stdout.write_all(text.as_bytes());
        let _ = stdout.flush();
    }

    /// The last line, or the document; returns how many faults there are.
    ///
    /// # Errors
    /// Standard output is gone.
    pub(super) fn end(self) -> std::io::Result<usize> {
        let mut stdout = std::io::stdout().lock();
        if self.json {
            let document = json!({
                "faults": self.faults, "warnings": self.warnings, "findings": self.findings,
            });
            writeln!(stdout, "{document:#}")?;
        } else {
            let verdict = match self.faults {
                0 => "nothing is in the way",
                _ => "not as it should be",
            };
            let faults = count(self.faults, "fault");
            let warnings = count(self.warnings, "warning");
            writeln!(stdout, "{verdict}: {faults}, {warnings}")?;
        }
        stdout.flush()?;
        Ok(self.faults)
    }
}

/// Lines of at most `width` columns, all but the first behind `indent` spaces. Longer words stay whole,
/// so that names and paths can be copied.
fn wrapped(text: &str, width: usize, indent: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let len = word.chars().count();
        if used > 0 && used + 1 + len > width {
            out.push_str(&format!("\n{:indent$}", ""));
            used = 0;
        }
        if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += len;
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn lines_are_broken_between_words_and_long_words_stay_whole() {
        assert_eq!(wrapped("aa bb cc", 5, 2), "aa bb\n  cc\n");
        assert_eq!(wrapped("a longer-word b", 4, 1), "a\n longer-word\n b\n");
        assert_eq!(wrapped("", 4, 1), "\n");
    }
}
