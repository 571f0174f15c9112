//! Text in columns.

use crate::screen::Screen;

/// Between two columns.
const GAP: &str = "  ";
/// A column that has to give room keeps so much.
const LEAST: usize = 6;

/// A heading and rows of as many cells.
pub(crate) struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(heading: &[&str]) -> Self {
        Self {
            heading: heading.iter().map(ToString::to_string).collect(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Lines no wider than the screen. Where they would be, the widest columns give room, and every
    /// cell that is cut says so.
    pub(crate) fn render(&self, screen: &Screen) -> String {
        self.render_within(screen, screen.width().unwrap_or(usize::MAX))
    }

    pub(crate) fn render_within(&self, screen: &Screen, width: usize) -> String {
        let widths = self.widths(width);
        let mut text = screen.heading(&line(&self.heading, &widths, width));
        text.push('\n');
        for row in &self.rows {
            text += &line(row, &widths, width);
            text.push('\n');
        }
        text
    }

    fn widths(&self, most: usize) -> Vec<usize> {
        let mut widths: Vec<_> = (0..self.heading.len()).map(|at| self.width(at)).collect();
        let gaps = GAP.len() * widths.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > most {
            let widest = widths.iter_mut().max();
            match widest.filter(|widest| **widest > LEAST) {
                Some(widest) => *widest -= 1,
                None => break,
            }
        }
        widths
    }

    fn width(&self, column: usize) -> usize {
        let rows = self.rows.iter().chain([&self.heading]);
        let cells = rows.filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

fn line(cells: &[String], widths: &[usize], most: usize) -> String {
    let padded = cells.iter().zip(widths).map(|(cell, width)| {
        let cell = cut(cell, *width);
        format!("{cell:width$}")
    });
    let line = padded.collect::<Vec<_>>().join(GAP);
    cut(line.trim_end(), most)
}

/// The first `width` characters, with a mark when there were more.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept = text.chars().take(width.saturating_sub(1));
    kept.chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["A", "LONG"]);
        table.row(vec!["wide".into(), "b".into()]);
        table.row(vec!["a".into(), "much longer than that".into()]);
        table
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = table().render(&Screen::plain());
        assert_eq!(text, "A     LONG\nwide  b\na     much longer than that\n");
    }

    #[test]
    fn the_widest_column_gives_room_first() {
        let text = table().render_within(&Screen::plain(), 16);
        assert_eq!(text, "A     LONG\nwide  b\na     much long…\n");
        let text = table().render_within(&Screen::plain(), 8);
        assert_eq!(text, "A     L…\nwide  b\na     m…\n", "no line is too long");
    }

    #[test]
    fn long_lines_are_cut() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 4), "abc…");
    }
}
