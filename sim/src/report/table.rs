//! The table that a person reads. Columns are as wide as what is in them.

use super::{Figures, Report};

const HEADS: [&str; 11] = [
    "policy",
    "hit %",
    "TTFT mean",
    "p50",
    "p90",
    "p99 ms",
    "ITL p50",
    "p99 ms",
    "good/s",
    "max/min",
    "refused",
];

impl Report {
    /// The figures as text.
    pub fn table(&self) -> String {
        let mut rows: Vec<Vec<String>> = vec![HEADS.iter().map(|head| (*head).to_owned()).collect()];
        rows.extend(self.rows.iter().map(|row| cells(&row.policy, &row.figures())));
        let widths: Vec<usize> =
            (0..HEADS.len()).map(|at| rows.iter().map(|row| row[at].len()).max().unwrap_or(0)).collect();
        let mut text = format!("{}\n\n", self.headline());
        for row in &rows {
            let cells = row.iter().zip(&widths).enumerate();
            let line: Vec<String> = cells
                .map(|(at, (cell, width))| match at {
                    0 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                })
                .collect();
            text.push_str(line.join("  ").trim_end());
            text.push('\n');
        }
        let (ttft, itl) = (self.slo.ttft.as_millis(), self.slo.itl.as_millis());
        text.push_str(&format!(
            "\ngood/s: requests a second with TTFT up to {ttft} ms and a mean ITL up to {itl} ms; max/min: token work of \
             the busiest replica over the idlest\n"
        ));
        text
    }
}

fn cells(policy: &str, of: &Figures) -> Vec<String> {
    vec![
        policy.to_owned(),
        format!("{:.1}", of.hit_rate * 100.0),
        format!("{:.0}", of.ttft_ms_mean),
        format!("{:.0}", of.ttft_ms_p50),
        format!("{:.0}", of.ttft_ms_p90),
        format!("{:.0}", of.ttft_ms_p99),
        format!("{:.1}", of.itl_ms_p50),
        format!("{:.1}", of.itl_ms_p99),
        format!("{:.2}", of.goodput_per_s),
        format!("{:.2}", of.imbalance),
        format!("{}", of.refused + of.failed),
    ]
}
