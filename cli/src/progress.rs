//! How far loading is: a bar on a terminal, a line for each tenth otherwise.

use std::io::{IsTerminal, Write};

use base::bytes_human;
use runtime::model::Progress;

const BAR: usize = 30;
/// A model below this is there before a bar could be read.
const BYTES_LEAST: u64 = 64 << 20;

/// Shows progress on standard error.
pub struct LoadProgress {
    style: Style,
    shown: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Bar,
    Lines,
}

impl LoadProgress {
    pub fn new() -> Self {
        let style = if std::io::stderr().is_terminal() { Style::Bar } else { Style::Lines };
        Self { style, shown: None }
    }

    /// The text to write when `done` of `total` bytes are there; `None` if nothing changed to the eye.
    fn step(&mut self, done: u64, total: u64) -> Option<String> {
        if total < BYTES_LEAST {
            return None;
        }
        let steps = if self.style == Style::Bar { 100 } else { 10 };
        let reached = (done * steps).checked_div(total).unwrap_or(steps);
        if self.shown == Some(reached) {
            return None;
        }
        self.shown = Some(reached);
        let (percent, read, of) = (reached * 100 / steps, bytes_human(done), bytes_human(total));
        Some(match self.style {
            Style::Lines if reached == 0 => return None,
            Style::Lines => format!("loading weights: {percent} % ({read} of {of})\n"),
            Style::Bar => {
                let full = BAR * percent as usize / 100;
                let end = if percent == 100 { "\n" } else { "" };
                let (full, rest) = ("#".repeat(full), "-".repeat(BAR - full));
                format!("\rloading weights [{full}{rest}] {percent:>3} % of {of}{end}")
            }
        })
    }
}

impl Progress for LoadProgress {
    fn advance(&mut self, done: u64, total: u64) {
        if let Some(text) = self.step(done, total) {
            // Progress that cannot be shown must not stop the load.
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn shown(style: Style, steps: &[u64]) -> String {
        let mut progress = LoadProgress { style, shown: None };
        steps.iter().filter_map(|&done| progress.step(done << 20, 200 << 20)).collect()
    }

    #[test]
    fn without_a_terminal_there_is_a_line_for_each_tenth() {
        let steps: Vec<u64> = (0..=200).collect();
        let text = shown(Style::Lines, &steps);
        assert_eq!(text.lines().count(), 10);
        expect!["loading weights: 10 % (20.0 MiB of 200.0 MiB)"].assert_eq(text.lines().next().unwrap());
        expect!["loading weights: 100 % (200.0 MiB of 200.0 MiB)"].assert_eq(text.lines().last().unwrap());
    }

    #[test]
    fn a_small_model_is_not_worth_a_line() {
        let mut progress = LoadProgress { style: Style::Lines, shown: None };
        assert_eq!(progress.step(5 << 20, 6 << 20), None);
    }

    #[test]
    fn on_a_terminal_one_line_is_drawn_over() {
        let text = shown(Style::Bar, &[0, 100, 200]).replace('\r', "<");
        expect![[r#"
            <loading weights [------------------------------]   0 % of 200.0 MiB<loading weights [###############---------------]  50 % of 200.0 MiB<loading weights [##############################] 100 % of 200.0 MiB
        "#]]
        .assert_eq(&text);
    }
}
