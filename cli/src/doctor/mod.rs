//! `quire doctor`: what this machine offers, what stands in the way, and what to do about it.
//!
//! Reads files, binds a port for a moment, and lets the demo model say a few words. Changes nothing, loads
//! no driver: a CUDA library is looked for by name only.

mod machine;
mod selftest;

use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::failure::Failure;

pub const EXAMPLES: &str = "\
Examples:
  quire doctor
  quire doctor --json | jq '.checks[] | select(.status != \"ok\")'

Ends with 1 if a check failed; warnings do not count.";

/// As typed.
#[derive(Clone, Debug, clap::Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Port that a server would take
    #[arg(long, env = "QUIRE_PORT", hide_env_values = true, default_value_t = 8000)]
    pub port: u16,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    Warn,
    Fail,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do, where there is something to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub todo: Option<String>,
}

impl Check {
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), todo: None }
    }
    pub fn warn(name: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, found: found.into(), todo: Some(todo.into()) }
    }
    pub fn fail(name: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, found: found.into(), todo: Some(todo.into()) }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    commit: &'static str,
    checks: &'a [Check],
}

pub fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let mut checks = machine::checks(args.port);
    checks.push(selftest::check());
    let mut out = std::io::stdout().lock();
    let text = match args.json {
        true => {
            let report =
                Report { version: crate::version::NUMBER, commit: crate::version::COMMIT, checks: &checks };
            serde_json::to_string_pretty(&report).expect("plain data") + "\n"
        }
        false => table(&checks, out.is_terminal()),
    };
    out.write_all(text.as_bytes())?;
    match checks.iter().filter(|c| c.status == Status::Fail).count() {
        0 => Ok(()),
        failed => Err(Failure::failed(format!("{failed} of {} checks failed", checks.len()))),
    }
}

fn table(checks: &[Check], colours: bool) -> String {
    let width = checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
    let mut table = format!("quire {}\n", crate::version::SHORT);
    for check in checks {
        let (word, colour) = match check.status {
            Status::Ok => ("ok  ", "32"),
            Status::Warn => ("warn", "33"),
            Status::Fail => ("FAIL", "31"),
        };
        let word = if colours { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() };
        table += &format!("{word}  {:width$}  {}\n", check.name, check.found);
        if let Some(todo) = &check.todo {
            table += &format!("      {:width$}  → {todo}\n", "");
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_check_that_is_not_ok_says_what_to_do() {
        let checks = [
            Check::ok("cpu", "four cores"),
            Check::warn("huge pages", "never", "echo madvise"),
            Check::fail("model", "no answer", "build again"),
        ];
        let table = table(&checks, false);
        let (_, lines) = table.split_once('\n').unwrap();
        expect![[r#"
            ok    cpu         four cores
            warn  huge pages  never
                              → echo madvise
            FAIL  model       no answer
                              → build again
        "#]]
        .assert_eq(lines);
    }
}
