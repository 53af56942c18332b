//! `quire purge`: forgets one namespace on a server and keeps the receipt.
//!
//! The file for the receipt is opened before the server is asked: a purge cannot be taken back, and one
//! whose report could not be written would leave nothing to show for it.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use hyper::Method;
use runtime::purge::SignedReport;
use serde_json::json;

use crate::failure::{Exit, Failure};
use crate::operator::OperatorArgs;
use crate::receipt;

pub const EXAMPLES: &str = "\
Examples:
  quire purge acme --out acme.json
  quire purge acme --running cancel --timeout 5 --api-key \"$ADMIN_KEY\"
  quire purge acme --json | jq .report.guarantee

Ends with 0 once nothing of the namespace is left or opens any more, with 8 if the report is
incomplete. `quire verify FILE` checks the report later, without the server.";

/// What becomes of requests of the namespace that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Running {
    /// They finish; their pages go then
    Wait,
    /// They end now, with a reason
    Cancel,
}

/// As typed.
#[derive(Clone, Debug, clap::Args)]
pub struct PurgeArgs {
    /// The namespace, as the server's --namespaces file names it
    pub namespace: String,
    /// What becomes of its running requests
    #[arg(long, value_enum, default_value = "wait", help_heading = "Purge")]
    pub running: Running,
    /// Longest wait for them; the report says what is outstanding then
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Purge",
          value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub timeout: u32,
    /// Write the signed report to this file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Print the signed report instead of a table
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    pub server: OperatorArgs,
}

pub fn run(args: &PurgeArgs) -> Result<(), Failure> {
    let file = args.out.as_deref().map(Receipt::open).transpose()?;
    let order = json!({
        "namespace": args.namespace,
        "running": if args.running == Running::Wait { "wait" } else { "cancel" },
        "timeout_ms": u64::from(args.timeout) * 1000,
    });
    let note = Note::show(&format!("purging {} (at most {} s) …", args.namespace, args.timeout));
    let answer = args.server.ask(Method::POST, "/v1/admin/purge", &order);
    note.clear();
    let signed: SignedReport = serde_json::from_value(answer?)
        .map_err(|e| Failure::failed(format!("the server's report cannot be read: {e}")))?;
    let text = serde_json::to_string_pretty(&signed).expect("plain data") + "\n";
    if let Some(file) = file {
        file.keep(&text)?;
    }
    let shown = if args.json { text } else { show(&signed, args.out.as_deref()) };
    std::io::stdout().write_all(shown.as_bytes())?;
    if !signed.verify() {
        return Err(Failure::new(Exit::Unverified, "the server's signature under its report is wrong"));
    }
    receipt::complete(&signed.report)
}

fn show(signed: &SignedReport, out: Option<&Path>) -> String {
    let report = &signed.report;
    let took = report.ended_unix_ms.saturating_sub(report.begun_unix_ms);
    let mut text = format!(
        "purged {} up to generation {} in {took} ms; data keys destroyed: {}\n\n",
        report.namespace, report.generation, report.data_keys_destroyed
    );
    text += &receipt::tiers(report);
    text += &format!("\nguarantee: {}\n", receipt::sentence(report.guarantee));
    text += &format!("signed by: {} {}\n", signed.algorithm, signed.public_key);
    if let Some(path) = out {
        text += &format!("report:    {}\n", path.display());
    }
    text
}

/// A report on its way to its file: written beside it first, so that an earlier report stays whole.
struct Receipt {
    file: File,
    part: PathBuf,
    path: PathBuf,
}

impl Receipt {
    fn open(path: &Path) -> Result<Self, Failure> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = File::create(&part)
            .map_err(|e| Failure::usage(format!("--out {}: {}", path.display(), crate::listen::plain(&e))))?;
        Ok(Self { file, part, path: path.to_owned() })
    }

    fn keep(mut self, text: &str) -> Result<(), Failure> {
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all());
        let kept = written.and_then(|()| std::fs::rename(&self.part, &self.path));
        kept.map_err(|e| {
            let hint = format!("the purge was done; this is its report:\n{text}");
            Failure::failed(format!("--out {}: {e}", self.path.display())).hint(hint)
        })
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        // Gone already where it was kept.
        let _ = std::fs::remove_file(&self.part);
    }
}

/// A line on a terminal while something is waited for.
struct Note {
    is_shown: bool,
}

impl Note {
    fn show(text: &str) -> Self {
        let is_shown = std::io::stderr().is_terminal();
        if is_shown {
            eprint!("\x1b[2m{text}\x1b[0m");
        }
        Self { is_shown }
    }

    fn clear(self) {
        if self.is_shown {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use runtime::purge::Guarantee;

    #[test]
    fn the_answer_ends_with_the_guarantee_and_who_signed() {
        let signed = SignedReport {
            report: receipt::tests::report(Guarantee::CryptoErased),
            algorithm: "ed25519".into(),
            public_key: "ab".repeat(32),
            signature: String::new(),
        };
        expect![[r#"
            purged acme up to generation 4 in 42 ms; data keys destroyed: 1

            tier    pages     bytes  verified  failed  outstanding    probe  guarantee
            device     12  48.0 KiB        12       0            0  0 found  erased
            nvme     1200   4.7 MiB      1200       0            0  0 found  erased

            guarantee: crypto-erased: what may be left is sealed under a key that is destroyed
            signed by: ed25519 abababababababababababababababababababababababababababababababab
            report:    acme.json
        "#]]
        .assert_eq(&show(&signed, Some(Path::new("acme.json"))));
    }

    #[test]
    fn a_report_that_is_not_kept_leaves_the_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acme.json");
        Receipt::open(&path).unwrap().keep("first").unwrap();
        drop(Receipt::open(&path).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "first");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let missing = Receipt::open(&dir.path().join("no/acme.json")).err().unwrap();
        assert!(missing.message.ends_with("no such file or directory"), "{}", missing.message);
    }
}
