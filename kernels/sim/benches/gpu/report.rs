//! What was found: checks that passed or failed, and rows of measurements; each written as soon as it is known.
//!
//! A kernel that hangs or a dead device ends the process. So every result is a line of JSON that was flushed before
//! the next launch, and the name of what runs next is written first: what is missing has a name.

use std::fs::File;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use kernels::cuda::source;

/// One measurement: the median and the least of several.
pub struct Row {
    pub case: String,
    pub unit: &'static str,
    pub value: f64,
    pub best: f64,
    /// What the device allows, by this run's ceilings.
    pub floor: Option<f64>,
    /// What the project wants, as a share of the floor or as a figure.
    pub target: &'static str,
}

impl Row {
    /// The share of what is possible, for times and rates alike.
    fn share(&self) -> Option<f64> {
        let floor = self.floor?;
        Some(if self.unit == "us" { floor / self.value } else { self.value / floor })
    }
}

/// What a panic does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Panics {
    /// Fails a check; the next attempt runs.
    Fail,
    /// Ends the process as well: a context that an error has stuck to answers nothing any more.
    End,
}

/// What a process ends with after a panic that was written down.
const PANICKED: i32 = 3;

pub struct Report {
    lines: Option<File>,
    failures: usize,
    panics: Panics,
    /// Attempts that an earlier process has begun, and that are passed over.
    before: usize,
}

impl Report {
    /// Appends to `path`; the first `before` attempts are passed over.
    pub fn new(path: Option<&Path>, before: usize, panics: Panics) -> Self {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        Self { lines: path.map(open), failures: 0, panics, before }
    }

    /// Where the results are from.
    pub fn describe(&mut self, device: &str, driver: &str, library: Option<&str>) {
        println!("{device}, driver {driver}, library {library:?}, kernels {}", source::hash_of_all());
        self.line(&[
            ("device", quoted(device)),
            ("driver", quoted(driver)),
            ("library", library.map_or("null".into(), quoted)),
            ("kernels", quoted(&source::hash_of_all())),
        ]);
    }

    /// Says what comes next, then runs it; a panic is a failed check, and the next may run.
    pub fn attempt(&mut self, what: &str, work: impl FnOnce(&mut Report)) {
        if self.before > 0 {
            self.before -= 1;
            return;
        }
        println!("... {what}");
        self.line(&[("begun", quoted(what))]);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self))) {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
            self.check(what, &format!("panic: {text}"), false);
            if self.panics == Panics::End {
                std::process::exit(PANICKED);
            }
        }
    }

    pub fn check(&mut self, what: &str, found: &str, passed: bool) {
        println!("{} {what}: {found}", if passed { "ok  " } else { "FAIL" });
        self.failures += usize::from(!passed);
        self.line(&[("check", quoted(what)), ("found", quoted(found)), ("passed", passed.to_string())]);
    }

    pub fn row(&mut self, row: &Row) {
        let share = row.share();
        let said = share.map_or(String::new(), |s| format!("{:5.1} %", 100.0 * s));
        println!("{:48} {:12.2} {:8} {said}", row.case, row.value, row.unit);
        let number =
            |v: Option<f64>| v.filter(|v| v.is_finite()).map_or("null".into(), |v| format!("{v:.4}"));
        self.line(&[
            ("case", quoted(&row.case)),
            ("unit", quoted(row.unit)),
            ("value", number(Some(row.value))),
            ("best", number(Some(row.best))),
            ("floor", number(row.floor)),
            ("share", number(share)),
            ("target", quoted(row.target)),
        ]);
    }

    /// Attention of one layer with a prefix that is read once and with the same read by each: query rows, bytes that the
    /// one spares, microseconds of either.
    pub fn sharing(&mut self, rows: u32, spared: f64, together: f64, flat: f64) {
        println!(
            "sharing: {rows} rows, {spared:.0} bytes spared: {together:.2} us, each by itself {flat:.2} us"
        );
        self.line(&[("sharing", format!("[{rows}, {spared:.0}, {together:.4}, {flat:.4}]"))]);
    }

    /// The last line: this part came to its end.
    pub fn end(&mut self) {
        self.line(&[("ended", (self.failures == 0).to_string())]);
    }

    pub fn failures(&self) -> usize {
        self.failures
    }

    fn line(&mut self, fields: &[(&str, String)]) {
        let Some(file) = &mut self.lines else { return };
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        let written = file.write_all(format!("{{{}}}\n", fields.join(", ")).as_bytes());
        written.and_then(|()| file.flush()).expect("the results can be written");
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out + "\""
}
