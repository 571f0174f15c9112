//! Text in columns.

use super::screen::Screen;

/// Between two columns.
const GAP: &str = "  ";

/// A heading and rows of as many cells.
pub(super) struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(heading: &[&str]) -> Self {
        Self {
            heading: heading.iter().map(ToString::to_string).collect(),
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Lines no wider than the screen.
    pub(super) fn render(&self, screen: &Screen) -> String {
        let width = screen.width().unwrap_or(usize::MAX);
        let mut text = screen.heading(&self.line(&self.heading, width));
        text.push('\n');
        for row in &self.rows {
            text += &self.line(row, width);
            text.push('\n');
        }
        text
    }

    fn line(&self, cells: &[String], width: usize) -> String {
        let padded = cells.iter().enumerate().map(|(column, cell)| {
            let width = self.width(column);
            format!("{cell:width$}")
        });
        let line = padded.collect::<Vec<_>>().join(GAP);
        cut(line.trim_end(), width)
    }

    fn width(&self, column: usize) -> usize {
        let rows = self.rows.iter().chain([&self.heading]);
        let cells = rows.filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

/// The first `width` characters, with a mark when there were more.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept = text.chars().take(width.saturating_sub(1));
    kept.chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["A", "LONG"]);
        table.row(vec!["wide".into(), "b".into()]);
        assert_eq!(table.render(&Screen::plain()), "A     LONG\nwide  b\n");
        assert_eq!(table.line(&table.heading, 4), "A  …");
    }

    #[test]
    fn long_lines_are_cut() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 4), "abc…");
    }
}
