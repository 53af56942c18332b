//! The drawing: how long people wait under each policy, and what each replica had to do.
//!
//! Written by hand, because two panels of lines and bars need no library: left, the share of requests whose first
//! token came within a time (logarithmic); right, token work by replica, as grouped bars. Colours are told apart
//! by people who see few of them, and every line is named in the legend with its figures.

use std::fmt::Write;

use super::{Report, Row};

const WIDTH: f64 = 1120.0;
const HEIGHT: f64 = 580.0;
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555"];
const INK: &str = "#1a1a1a";
const FAINT: &str = "#d9d9d9";

/// A panel's inside.
#[derive(Clone, Copy)]
struct Panel {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

const CURVES: Panel = Panel { left: 70.0, top: 90.0, width: 470.0, height: 310.0 };
const BARS: Panel = Panel { left: 630.0, top: 90.0, width: 450.0, height: 310.0 };

impl Report {
    /// A complete SVG file.
    pub fn svg(&self) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"Helvetica, Arial, sans-serif\" font-size=\"13\" fill=\"{INK}\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
        );
        text(&mut svg, 24.0, 32.0, "start", "16", &self.headline());
        curves(&mut svg, &self.rows);
        bars(&mut svg, &self.rows, self.replicas);
        legend(&mut svg, &self.rows);
        svg.push_str("</svg>\n");
        svg
    }
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, size: &str, what: &str) {
    let what = what.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{what}</text>"
    );
}

fn line(svg: &mut String, [x1, y1, x2, y2]: [f64; 4], colour: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
    );
}

fn frame(svg: &mut String, panel: Panel, title: &str) {
    text(svg, panel.left, panel.top - 16.0, "start", "14", title);
    let (bottom, right) = (panel.top + panel.height, panel.left + panel.width);
    line(svg, [panel.left, bottom, right, bottom], INK);
    line(svg, [panel.left, panel.top, panel.left, bottom], INK);
}

/// Cumulative curves of the time to the first token.
fn curves(svg: &mut String, rows: &[Row]) {
    let panel = CURVES;
    let all = || rows.iter().map(|row| &row.tally.ttft).filter(|ttft| !ttft.is_empty());
    let low = all().map(|ttft| ttft.percentile_ms(1.0)).fold(f64::MAX, f64::min).clamp(0.1, 1e6);
    let high = all().map(|ttft| ttft.percentile_ms(99.5)).fold(1.0, f64::max).max(low * 10.0);
    let (from, to) = (low.log10().floor(), high.log10().ceil());
    let x = |ms: f64| {
        panel.left + (ms.max(1e-3).log10() - from).clamp(0.0, to - from) / (to - from) * panel.width
    };
    let y = |share: f64| panel.top + (1.0 - share) * panel.height;
    for decade in from as i32..=to as i32 {
        let at = 10f64.powi(decade);
        line(svg, [x(at), panel.top, x(at), panel.top + panel.height], FAINT);
        text(svg, x(at), panel.top + panel.height + 18.0, "middle", "12", &time(at));
    }
    for quarter in 0..=4 {
        let share = f64::from(quarter) / 4.0;
        line(svg, [panel.left, y(share), panel.left + panel.width, y(share)], FAINT);
        text(svg, panel.left - 8.0, y(share) + 4.0, "end", "12", &format!("{:.0} %", share * 100.0));
    }
    frame(svg, panel, "Requests whose first token came within …");
    for (row, colour) in rows.iter().zip(COLOURS.iter().cycle()) {
        let points: Vec<String> = row
            .tally
            .ttft
            .curve()
            .iter()
            .map(|(ms, share)| format!("{:.1},{:.1}", x(*ms), y(*share)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
    }
}

/// Token work of each replica, a group of bars for each policy, busiest first.
fn bars(svg: &mut String, rows: &[Row], replicas: usize) {
    let panel = BARS;
    let most =
        rows.iter().flat_map(|row| row.tally.replicas.iter().map(|of| of.work())).max().unwrap_or(0).max(1);
    let group = panel.width / rows.len().max(1) as f64;
    let bar = (group - 14.0) / replicas.max(1) as f64;
    for quarter in 1..=4 {
        let y = panel.top + panel.height * (1.0 - f64::from(quarter) / 4.0);
        line(svg, [panel.left, y, panel.left + panel.width, y], FAINT);
        text(svg, panel.left - 8.0, y + 4.0, "end", "12", &tokens(most as f64 * f64::from(quarter) / 4.0));
    }
    for (at, (row, colour)) in rows.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let mut work: Vec<u64> = row.tally.replicas.iter().map(|of| of.work()).collect();
        work.sort_unstable_by(|a, b| b.cmp(a));
        let left = panel.left + group * at as f64 + 7.0;
        for (replica, work) in work.iter().enumerate() {
            let height = *work as f64 / most as f64 * panel.height;
            let _ = writeln!(
                svg,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>",
                left + bar * replica as f64,
                panel.top + panel.height - height,
                (bar - 1.0).max(0.5),
            );
        }
        text(svg, left + (group - 14.0) / 2.0, panel.top + panel.height + 18.0, "middle", "12", &row.policy);
    }
    frame(svg, panel, "Tokens computed and generated by each replica, busiest first");
}

fn legend(svg: &mut String, rows: &[Row]) {
    for (at, (row, colour)) in rows.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let (x, y) = (70.0, 448.0 + 24.0 * at as f64);
        let of = row.figures();
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{:.1}\" width=\"14\" height=\"14\" fill=\"{colour}\"/>",
            y - 12.0
        );
        let said = format!(
            "{}: hit {:.1} %, TTFT mean {:.0} ms, p99 {:.0} ms, ITL p99 {:.1} ms, {:.2} good/s, max/min {:.2}",
            row.policy,
            of.hit_rate * 100.0,
            of.ttft_ms_mean,
            of.ttft_ms_p99,
            of.itl_ms_p99,
            of.goodput_per_s,
            of.imbalance
        );
        text(svg, x + 22.0, y, "start", "12", &said);
    }
}

fn time(ms: f64) -> String {
    if ms >= 1e3 { format!("{} s", ms / 1e3) } else { format!("{ms} ms") }
}

fn tokens(count: f64) -> String {
    match count {
        c if c >= 1e6 => format!("{:.1} M", c / 1e6),
        c if c >= 1e3 => format!("{:.0} k", c / 1e3),
        c => format!("{c:.0}"),
    }
}
