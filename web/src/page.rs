//! The page that Prometheus reads: series with their heads, in its text format.

use std::fmt::Write;

use crate::histogram::Histogram;

/// A page being written. Every series carries `labels`.
pub struct Page {
    out: String,
    prefix: String,
    labels: String,
}

impl Page {
    /// Series called `prefix` and something, all with these labels.
    pub fn new(prefix: &str, labels: &[(&str, &str)]) -> Self {
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        Self { out: String::with_capacity(16 << 10), prefix: prefix.to_owned(), labels: labels.join(",") }
    }

    /// What follows is called `prefix` and something.
    pub fn set_prefix(&mut self, prefix: &str) {
        prefix.clone_into(&mut self.prefix);
    }

    pub fn finish(self) -> String {
        self.out
    }

    pub fn head(&mut self, name: &str, kind: &str, help: &str) {
        let prefix = &self.prefix;
        let _ = writeln!(self.out, "# HELP {prefix}{name} {help}\n# TYPE {prefix}{name} {kind}");
    }

    /// One value; `labels` beside those of the page.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.out, "{}{name}", self.prefix);
        let mut open = "{";
        if !self.labels.is_empty() {
            let _ = write!(self.out, "{open}{}", self.labels);
            open = ",";
        }
        for (label, value) in labels {
            let _ = write!(self.out, "{open}{label}=\"{}\"", escape(value));
            open = ",";
        }
        let close = if open == "," { "}" } else { "" };
        let _ = writeln!(self.out, "{close} {value}");
    }

    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, "gauge", help);
        self.sample(name, &[], value);
    }

    pub fn counter(&mut self, stem: &str, help: &str, value: f64) {
        let name = format!("{stem}_total");
        self.head(&name, "counter", help);
        self.sample(&name, &[], value);
    }

    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let buckets = histogram.cumulated();
        let bucket = format!("{name}_bucket");
        for (bound, count) in &buckets {
            let bound = if bound.is_infinite() { "+Inf".to_owned() } else { bound.to_string() };
            self.sample(&bucket, &[("le", &bound)], *count as f64);
        }
        self.sample(&format!("{name}_sum"), &[], histogram.sum());
        self.sample(&format!("{name}_count"), &[], buckets.last().map_or(0, |last| last.1) as f64);
    }
}

fn escape(label: &str) -> std::borrow::Cow<'_, str> {
    if !label.contains(['\\', '"', '\n']) {
        return label.into();
    }
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_a_page_without_any_has_no_braces() {
        let mut page = Page::new("q_", &[("m", "a\"\n\\")]);
        page.sample("x", &[("s", "t")], 1.0);
        assert_eq!(page.finish(), "q_x{m=\"a\\\"\\n\\\\\",s=\"t\"} 1\n");
        let mut page = Page::new("q_", &[]);
        page.counter("y", "Y.", 2.0);
        page.sample("z", &[("s", "t")], 0.5);
        assert_eq!(
            page.finish(),
            "# HELP q_y_total Y.\n# TYPE q_y_total counter\nq_y_total 2\nq_z{s=\"t\"} 0.5\n"
        );
    }
}
