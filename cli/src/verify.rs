//! `quire verify`: checks a purge report without the server that wrote it.
//!
//! The signature shows that the report is whole and whose key signed it; only the reader can know whose
//! key it should be, so without --public-key the answer says what was not checked.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use base::bytes_human;
use runtime::purge::{PurgeReport, SignedReport, TierLine};

use crate::failure::{Exit, Failure};
use crate::receipt;

pub const EXAMPLES: &str = "\
Examples:
  quire verify acme.json
  quire verify acme.json --public-key 3f1c…

Ends with 9 if signature or key do not match, with 8 if the report itself is of an incomplete purge.
The node's key is in every report it signs and in `quire cache`; keep it from the first.";

/// Largest file that is read as a report.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// As typed.
#[derive(Clone, Debug, clap::Args)]
pub struct VerifyArgs {
    /// The signed report, as `quire purge --out` wrote it
    pub file: PathBuf,
    /// Public key of the node that must have signed it, as 64 hex digits
    #[arg(long, value_name = "HEX", value_parser = public_key)]
    pub public_key: Option<String>,
}

pub fn run(args: &VerifyArgs) -> Result<(), Failure> {
    let name = args.file.display();
    let signed = read(&args.file)?;
    if !signed.verify() {
        return Err(Failure::new(
            Exit::Unverified,
            format!("{name}: the signature is not that of key {} under this report", signed.public_key),
        )
        .hint("the report was changed after it was signed, or was never signed by this key"));
    }
    if let Some(expected) = args.public_key.as_ref().filter(|key| **key != signed.public_key) {
        return Err(Failure::new(
            Exit::Unverified,
            format!("{name}: signed by key {}, not by {expected}", signed.public_key),
        )
        .hint("the signature is good, but another node's: do not trust the report"));
    }
    std::io::stdout().write_all(claims(&signed, args.public_key.as_deref()).as_bytes())?;
    receipt::complete(&signed.report)
}

fn public_key(text: &str) -> Result<String, String> {
    let is_hex = text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit());
    if is_hex { Ok(text.to_ascii_lowercase()) } else { Err("a public key is 64 hex digits".into()) }
}

fn read(path: &Path) -> Result<SignedReport, Failure> {
    let refuse = |why: String| Failure::failed(format!("{}: {why}", path.display()));
    let open = std::fs::File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (bytes, file) = open.map_err(|e| refuse(crate::listen::plain(&e)))?;
    if bytes > FILE_BYTES_MAX {
        return Err(refuse(format!("not a purge report: {} is too much", bytes_human(bytes))));
    }
    let mut text = Vec::new();
    let mut file = std::io::Read::take(file, FILE_BYTES_MAX);
    std::io::Read::read_to_end(&mut file, &mut text).map_err(|e| refuse(crate::listen::plain(&e)))?;
    serde_json::from_slice(&text).map_err(|e| {
        refuse(format!("not a signed purge report: {e}"))
            .hint("`quire purge --out FILE` and `quire purge --json` write one")
    })
}

/// What the report says, in plain words.
fn claims(signed: &SignedReport, expected: Option<&str>) -> String {
    let report = &signed.report;
    let whose = match expected {
        Some(_) => "and the key is the expected one",
        None => "whose key that is was not checked (--public-key)",
    };
    let mut text =
        format!("signature: good, {whose}\nkey:       {} {}\n", signed.algorithm, signed.public_key);
    let _ = writeln!(
        text,
        "namespace: {} (id {}), everything up to generation {}\nmodel:     {}\nbegun:     {}\nended:     {}",
        report.namespace,
        report.namespace_id,
        report.generation,
        report.model,
        receipt::utc(report.begun_unix_ms),
        receipt::utc(report.ended_unix_ms),
    );
    let _ = writeln!(text, "data keys: {} destroyed", report.data_keys_destroyed);
    text += &lines(report);
    let _ = writeln!(text, "guarantee: {}", receipt::sentence(report.guarantee));
    text
}

fn lines(report: &PurgeReport) -> String {
    let line = |line: &TierLine| {
        format!(
            "{:<10} {} pages ({}): {}; {} places read back empty, {} not; {} pages still held, {} found by a \
             lookup → {}\n",
            format!("{}:", line.tier),
            line.pages,
            bytes_human(line.bytes),
            line.method,
            line.verified,
            line.failed,
            line.outstanding,
            line.found_by_probe,
            receipt::word(line.guarantee),
        )
    };
    report.tiers.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use runtime::purge::Guarantee;

    #[test]
    fn the_claims_are_said_in_words() {
        let signed = SignedReport {
            report: receipt::tests::report(Guarantee::Incomplete),
            algorithm: "ed25519".into(),
            public_key: "ab".repeat(32),
            signature: String::new(),
        };
        expect![[r#"
            signature: good, whose key that is was not checked (--public-key)
            key:       ed25519 abababababababababababababababababababababababababababababababab
            namespace: acme (id 1), everything up to generation 4
            model:     abc
            begun:     2026-11-20 15:27:57 UTC
            ended:     2026-11-20 15:27:57 UTC
            data keys: 1 destroyed
            device:    12 pages (48.0 KiB): overwritten; 11 places read back empty, 0 not; 1 pages still held, 0 found by a lookup → incomplete
            nvme:      1200 pages (4.7 MiB): overwritten; 1200 places read back empty, 0 not; 0 pages still held, 0 found by a lookup → erased
            guarantee: incomplete: something is still held, or was not seen to be gone
        "#]].assert_eq(&claims(&signed, None));
    }

    #[test]
    fn a_key_is_64_hex_digits_in_either_case() {
        assert_eq!(public_key(&"AB".repeat(32)), Ok("ab".repeat(32)));
        assert!(public_key("ab").is_err() && public_key(&"xy".repeat(32)).is_err());
    }
}
