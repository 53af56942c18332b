//! Columns of text: as wide as their widest cell, two spaces between.

/// Where a cell stands in its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Rows under a head; a row has as many cells as the head.
pub fn table(head: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let width = |at: usize| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.chain([head[at].0.chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let cell = |at: usize| match head[at].1 {
            Align::Left => format!("{:width$}", cells[at], width = widths[at]),
            Align::Right => format!("{:>width$}", cells[at], width = widths[at]),
        };
        let cells: Vec<String> = (0..head.len()).map(cell).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    let names: Vec<&str> = head.iter().map(|(name, _)| *name).collect();
    let mut text = line(&names);
    for row in rows {
        text += &line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".into(), "1".into()], vec!["long".into(), "1000".into()]];
        let text = table(&[("name", Align::Left), ("n", Align::Right)], &rows);
        assert_eq!(text, "name     n\na        1\nlong  1000\n");
    }
}
