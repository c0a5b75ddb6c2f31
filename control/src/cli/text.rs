//! Text for people: aligned columns, and color on terminals only.

use std::fmt::Write as _;
use std::io::IsTerminal;

/// Lines of columns, each column as wide as its longest cell.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    rows: Vec<Vec<String>>,
    /// Lines below rows, each with the number of rows before it.
    notes: Vec<(usize, String)>,
}

impl Columns {
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// A line of its own below the last row, indented further.
    pub(crate) fn note(&mut self, text: &str) {
        self.notes.push((self.rows.len(), text.to_owned()));
    }

    /// The lines, indented by `indent` blanks.
    pub(crate) fn render(&self, indent: usize) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| visible(cell)).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = " ".repeat(indent);
            for (cell, width) in row.iter().zip(&widths) {
                let padding = width - visible(cell) + 2;
                // Writing to a string never fails.
                let _ = write!(line, "{cell}{:padding$}", "");
            }
            out.push_str(line.trim_end());
            out.push('\n');
            for (_, note) in self.notes.iter().filter(|(rows, _)| *rows == index + 1) {
                let _ = writeln!(out, "{}{note}", " ".repeat(indent + 2));
            }
        }
        out
    }
}

/// Characters that take room on a terminal: all but color codes.
fn visible(text: &str) -> usize {
    let mut in_code = false;
    let shown = |c: &char| {
        let code = in_code || *c == '\x1b';
        in_code = code && *c != 'm';
        !code
    };
    text.chars().filter(shown).count()
}

/// What a text means.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tone {
    Good,
    Bad,
    Warn,
    Strong,
}

/// Colors `text` if standard output is a terminal and NO_COLOR is not set.
pub(crate) fn paint(text: &str, tone: Tone) -> String {
    if !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some() {
        return text.to_owned();
    }
    let code = match tone {
        Tone::Good => 32,
        Tone::Bad => 31,
        Tone::Warn => 33,
        Tone::Strong => 1,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let mut columns = Columns::default();
        columns.row(["a", "bb", "c"]);
        columns.row(["aaa", "b"]);
        assert_eq!(columns.render(2), "  a    bb  c\n  aaa  b\n");
        columns.note("below");
        assert_eq!(columns.render(2), "  a    bb  c\n  aaa  b\n    below\n");
        assert_eq!(visible("\x1b[31mred\x1b[0m!"), 4);
    }
}
