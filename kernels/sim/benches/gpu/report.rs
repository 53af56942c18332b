//! What was found: checks that passed or failed, and rows of measurements; as text and as JSON.

use std::fmt::Write as _;
use std::path::Path;

use kernels::cuda::Driver;
use kernels::cuda::gpu::Gpu;
use kernels::cuda::source;

/// One check.
pub struct Check {
    pub what: String,
    /// The figure behind the verdict.
    pub found: String,
    pub passed: bool,
}

/// One measurement; times are medians.
pub struct Row {
    pub case: String,
    pub unit: &'static str,
    pub value: f64,
    /// What the device allows, by this run's ceilings.
    pub floor: Option<f64>,
    /// What the project wants, as a share of the floor or as a figure.
    pub target: &'static str,
}

impl Row {
    /// The share of what is possible, for times and rates alike.
    fn share(&self) -> Option<f64> {
        let floor = self.floor?;
        Some(if self.unit.ends_with('s') && !self.unit.contains('/') {
            floor / self.value
        } else {
            self.value / floor
        })
    }
}

pub struct Report {
    device: String,
    checks: Vec<Check>,
    rows: Vec<Row>,
}

impl Report {
    pub fn new() -> Self {
        Self { device: "emulated".into(), checks: Vec::new(), rows: Vec::new() }
    }

    pub fn describe(&mut self, gpu: &Gpu) {
        let info = gpu.device();
        self.device =
            format!("{}, {} SMs, {}, driver {}", info.name, info.sms, info.arch.target(), info.driver);
        for (unit, origin) in gpu.origins() {
            println!("kernels {unit}: {origin:?}");
        }
    }

    pub fn check(&mut self, what: impl Into<String>, found: impl Into<String>, passed: bool) {
        let check = Check { what: what.into(), found: found.into(), passed };
        let verdict = if passed { "ok  " } else { "FAIL" };
        println!("{verdict} {}: {}", check.what, check.found);
        self.checks.push(check);
    }

    pub fn row(&mut self, row: Row) {
        println!("{}", line(&row));
        self.rows.push(row);
    }

    pub fn failures(&self) -> usize {
        self.checks.iter().filter(|c| !c.passed).count()
    }

    pub fn print(&self) {
        println!("\n{} · kernels {}", self.device, source::hash_of_all());
        println!("{} checks, {} failed", self.checks.len(), self.failures());
        for check in self.checks.iter().filter(|c| !c.passed) {
            println!("FAIL {}: {}", check.what, check.found);
        }
        self.rows.iter().for_each(|row| println!("{}", line(row)));
    }

    pub fn write(&self, path: &Path) {
        let mut out = String::from("{\n");
        let _ = writeln!(out, " \"device\": {:?},\n \"kernels\": {:?},", self.device, source::hash_of_all());
        let _ = writeln!(out, " \"checks\": {}, \"failed\": [", self.checks.len());
        let failed: Vec<String> = (self.checks.iter().filter(|c| !c.passed))
            .map(|c| format!("  {:?}", format!("{}: {}", c.what, c.found)))
            .collect();
        let _ = writeln!(out, "{}\n ],\n \"rows\": [", failed.join(",\n"));
        let rows: Vec<String> = self.rows.iter().map(json).collect();
        let _ = writeln!(out, "{}\n ]\n}}", rows.join(",\n"));
        if let Err(error) = std::fs::write(path, out) {
            eprintln!("error: {}: {error}", path.display());
        }
    }
}

fn line(row: &Row) -> String {
    let share = row
        .share()
        .map_or(String::new(), |s| format!("{:5.1} % of floor {:.1}", 100.0 * s, row.floor.unwrap_or(0.0)));
    format!("{:44} {:10.2} {:8} {share:32} target {}", row.case, row.value, row.unit, row.target)
}

fn json(row: &Row) -> String {
    let floor = row.floor.map_or("null".into(), |f| format!("{f:.4}"));
    let share = row.share().map_or("null".into(), |s| format!("{s:.4}"));
    format!(
        "  {{\"case\": {:?}, \"unit\": {:?}, \"value\": {:.4}, \"floor\": {floor}, \"share\": {share}, \"target\": {:?}}}",
        row.case, row.unit, row.value, row.target
    )
}
