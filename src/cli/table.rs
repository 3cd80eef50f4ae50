//! Lines of columns that fit the terminal.

use super::text::{Paint, Tone, cut, one_line};

/// The space between two columns.
const GAP: &str = "  ";

/// A column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) keep: Keep,
}

/// What becomes of a column where the line is too short.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Keep {
    /// It stays.
    Always,
    /// Its texts are cut to this many characters at least.
    CutTo(usize),
    /// It goes, lower numbers first.
    DropAt(u8),
}

/// One place in the table.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) tone: Tone,
    /// It says nothing: a column of such cells goes before any other.
    pub(super) is_empty: bool,
}

impl From<String> for Cell {
    /// What it says may come out of a file, or be the name of one: it is made one harmless line.
    fn from(text: String) -> Self {
        Self { text: one_line(&text).into_owned(), tone: Tone::Plain, is_empty: false }
    }
}

impl From<Option<String>> for Cell {
    fn from(text: Option<String>) -> Self {
        let is_empty = text.is_none();
        Self { is_empty, ..Self::from(text.unwrap_or_else(|| "-".to_owned())) }
    }
}

/// A column with its cells, as wide as it is shown.
struct Shown<'a> {
    column: Column,
    cells: Vec<&'a Cell>,
    width: usize,
}

/// Writes the table; `width` is that of the terminal, none where there is no limit.
///
/// Where the line is too long: 1. columns that say nothing go, 2. texts are cut, 3. columns go.
pub(super) fn render<const N: usize>(
    columns: &[Column; N],
    rows: &[[Cell; N]],
    width: Option<usize>,
    paint: Paint,
) -> String {
    let mut shown: Vec<_> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| Shown::new(*column, rows.iter().filter_map(|row| row.get(index))))
        .collect();
    if let Some(width) = width {
        drop_columns(&mut shown, width, |column| column.cells.iter().all(|cell| cell.is_empty)); // (1)
        cut_columns(&mut shown, width); // (2)
        drop_columns(&mut shown, width, |_| true); // (3)
    }
    let titles = shown.iter().map(|column| pad(column.column.title, column.width));
    let mut text = line(titles);
    for row in 0..rows.len() {
        let cells = shown.iter().filter_map(|column| {
            let cell = column.cells.get(row)?;
            let padded = pad(&cut(&cell.text, column.width), column.width);
            let (word, space) = padded.split_at(padded.trim_end().len());
            Some(format!("{}{space}", paint.apply(cell.tone, word)))
        });
        text.push_str(&line(cells));
    }
    text
}

impl<'a> Shown<'a> {
    fn new(column: Column, cells: impl Iterator<Item = &'a Cell>) -> Self {
        let cells: Vec<_> = cells.collect();
        let widest = cells.iter().map(|cell| cell.text.chars().count()).max().unwrap_or(0);
        Self { column, cells, width: widest.max(column.title.len()) }
    }
}

fn drop_columns(shown: &mut Vec<Shown<'_>>, width: usize, may_go: impl Fn(&Shown<'_>) -> bool) {
    while excess(shown, width) > 0 {
        let next = shown
            .iter()
            .enumerate()
            .filter_map(|(index, column)| match column.column.keep {
                Keep::DropAt(turn) if may_go(column) => Some((turn, index)),
                Keep::DropAt(_) | Keep::Always | Keep::CutTo(_) => None,
            })
            .min();
        let Some((_, index)) = next else { return };
        shown.remove(index);
    }
}

fn cut_columns(shown: &mut [Shown<'_>], width: usize) {
    let excess = excess(shown, width);
    for column in shown {
        if let Keep::CutTo(least) = column.column.keep {
            column.width = column.width.saturating_sub(excess).max(least.min(column.width));
        }
    }
}

/// By how many characters a line is too long.
fn excess(shown: &[Shown<'_>], width: usize) -> usize {
    let gaps = GAP.len() * shown.len().saturating_sub(1);
    let texts: usize = shown.iter().map(|column| column.width).sum();
    (gaps + texts).saturating_sub(width)
}

fn pad(text: &str, width: usize) -> String {
    format!("{text:width$}")
}

fn line(cells: impl Iterator<Item = String>) -> String {
    let line = cells.collect::<Vec<_>>().join(GAP);
    format!("{}\n", line.trim_end())
}
