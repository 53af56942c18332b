//! `quire cache`: how a server's KV cache stands, tier by tier, or the tree of one tier.
//!
//! Reads the report loosely, field by field: a figure that a server of another version does not give is
//! a dash, and `--json` passes on all that it gives.

use std::io::Write;

use base::bytes_human;
use clap::ValueEnum;
use hyper::Method;
use serde_json::Value;

use crate::failure::Failure;
use crate::operator::OperatorArgs;
use crate::table::{Align, table};

pub const EXAMPLES: &str = "\
Examples:
  quire cache
  quire cache --tree device
  quire cache --json | jq '.tiers[] | {tier, hit_rate}'";

/// A level of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TierName {
    /// What the model reads
    Device,
    /// Host memory
    Host,
    /// Sealed files on a local disk
    Nvme,
    /// Sealed objects in a store
    Object,
}

/// As typed.
#[derive(Clone, Debug, clap::Args)]
pub struct CacheArgs {
    /// Print the trees of this tier: runs of pages, uses, what would be evicted next; never tokens
    #[arg(long, value_enum, value_name = "TIER", help_heading = "Output")]
    pub tree: Option<TierName>,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    pub server: OperatorArgs,
}

pub fn run(args: &CacheArgs) -> Result<(), Failure> {
    let path = match args.tree {
        None => "/v1/admin/cache".to_owned(),
        Some(tier) => {
            let name = tier.to_possible_value().expect("no variant is hidden");
            format!("/v1/admin/cache/tree?tier={}", name.get_name())
        }
    };
    let answer = args.server.ask(Method::GET, &path, &Value::Null)?;
    let text = match (args.json, args.tree) {
        (true, _) => format!("{answer:#}\n"),
        (false, Some(_)) => answer["tree"].as_str().unwrap_or_default().to_owned(),
        (false, None) => show(&answer),
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn show(report: &Value) -> String {
    let mut text = format!(
        "pages of {} tokens, {} each\n\n",
        number(&report["page_tokens"]),
        size(&report["page_bytes"])
    );
    text += &tiers(report);
    for part in [io(report), namespaces(report)] {
        if !part.is_empty() {
            text += "\n";
            text += &part;
        }
    }
    text += "\n";
    text += &travel(&report["travel"]);
    text += &journal(&report["journal"]);
    if let Some(key) = report["public_key"].as_str() {
        text += &format!("reports:    signed by ed25519 {key}\n");
    }
    text
}

fn tiers(report: &Value) -> String {
    const HEAD: [(&str, Align); 8] = [
        ("tier", Align::Left),
        ("used", Align::Right),
        ("of pages", Align::Right),
        ("size", Align::Right),
        ("in use", Align::Right),
        ("hit rate", Align::Right),
        ("evicted", Align::Right),
        ("at quota", Align::Right),
    ];
    let row = |tier: &Value| {
        let count = |name: &str| tier["pages"][name].as_u64();
        let used = count("total").zip(count("free")).map(|(total, free)| total.saturating_sub(free));
        vec![
            word(&tier["tier"]),
            used.map_or_else(dash, |used| used.to_string()),
            number(&tier["pages"]["total"]),
            size(&tier["bytes"]),
            number(&tier["pages"]["leased"]),
            tier["hit_rate"].as_f64().map_or_else(dash, |rate| format!("{:.1} %", rate * 100.0)),
            number(&tier["evicted_pages"]),
            number(&tier["evicted_at_quota"]),
        ]
    };
    table(&HEAD, &list(&report["tiers"]).iter().map(row).collect::<Vec<_>>())
}

/// What tiers with files or objects did; empty where there is none.
fn io(report: &Value) -> String {
    const HEAD: [(&str, Align); 7] = [
        ("tier", Align::Left),
        ("stored", Align::Right),
        ("bytes", Align::Right),
        ("loaded", Align::Right),
        ("bytes", Align::Right),
        ("waiting", Align::Right),
        ("failed", Align::Left),
    ];
    let row = |tier: &Value| {
        let io = &tier["io"];
        let waiting = ["queued", "in_flight", "stuck"].map(|name| io[name].as_u64().unwrap_or(0));
        vec![
            word(&tier["tier"]),
            number(&io["stores"]),
            size(&io["store_bytes"]),
            number(&io["loads"]),
            size(&io["load_bytes"]),
            waiting.iter().sum::<u64>().to_string(),
            failures(&io["failures"]),
        ]
    };
    let rows: Vec<_> = list(&report["tiers"]).iter().filter(|tier| tier["io"].is_object()).map(row).collect();
    if rows.is_empty() { String::new() } else { table(&HEAD, &rows) }
}

/// `io 3, timed_out 1`.
fn failures(of: &Value) -> String {
    let kinds: Vec<String> =
        of.as_object().into_iter().flatten().map(|(kind, n)| format!("{kind} {n}")).collect();
    if kinds.is_empty() { "none".into() } else { kinds.join(", ") }
}

/// Pages of each namespace in each tier that the server has.
fn namespaces(report: &Value) -> String {
    let names: Vec<&str> = list(&report["tiers"]).iter().filter_map(|tier| tier["tier"].as_str()).collect();
    let mut head = vec![("namespace", Align::Left)];
    head.extend(names.iter().map(|name| (*name, Align::Right)));
    let row = |namespace: &Value| {
        let pages = names.iter().map(|name| number(&namespace["pages"][name]));
        [word(&namespace["namespace"])].into_iter().chain(pages).collect::<Vec<_>>()
    };
    let rows: Vec<_> = list(&report["namespaces"]).iter().map(row).collect();
    if rows.is_empty() { String::new() } else { table(&head, &rows) }
}

fn travel(of: &Value) -> String {
    let n = |name: &str| number(&of[name]);
    format!(
        "travelled:  {} pages to the host and {} back, {} to cold tiers and {} back\n\
         not copied: {} shed, {} failed, {} of them wrong\n",
        n("saved_pages"),
        n("restored_pages"),
        n("stored_pages"),
        n("loaded_pages"),
        n("shed_pages"),
        n("failed_pages"),
        n("wrong_pages"),
    )
}

fn journal(of: &Value) -> String {
    if !of.is_object() {
        return String::new();
    }
    format!(
        "index:      {} pages in {}, {} writes failed, {} entries not recorded\n",
        number(&of["pages"]),
        size(&of["file_bytes"]),
        number(&of["failures"]),
        number(&of["unrecorded"]),
    )
}

fn list(of: &Value) -> &[Value] {
    of.as_array().map_or(&[], Vec::as_slice)
}

fn dash() -> String {
    "-".into()
}

fn number(of: &Value) -> String {
    of.as_u64().map_or_else(dash, |n| n.to_string())
}

fn size(of: &Value) -> String {
    of.as_u64().map_or_else(dash, bytes_human)
}

fn word(of: &Value) -> String {
    of.as_str().map_or_else(dash, str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn the_report_is_shown_as_tables() {
        let io = json!({"stores": 30, "store_bytes": 491_520, "loads": 2, "load_bytes": 32_768, "queued": 1,
                        "in_flight": 2, "stuck": 0, "failures": {"io": 3, "timed_out": 1}});
        let tier = |name: &str, io: Value| {
            json!({"tier": name, "bytes": 16_777_216, "hit_rate": 0.625, "evicted_pages": 7,
                   "evicted_at_quota": 0, "pages": {"total": 1024, "free": 1000, "leased": 3}, "io": io})
        };
        let report = json!({
            "page_tokens": 16, "page_bytes": 16384,
            "tiers": [tier("device", Value::Null), tier("nvme", io)],
            "namespaces": [{"namespace": "default", "pages": {"device": 4, "nvme": 4}},
                           {"namespace": "acme", "pages": {"device": 20}}],
            "travel": {"saved_pages": 30, "restored_pages": 1, "stored_pages": 30, "loaded_pages": 2,
                       "shed_pages": 0, "failed_pages": 0, "wrong_pages": 0},
            "journal": {"pages": 30, "file_bytes": 4096, "failures": 0, "unrecorded": 0},
            "public_key": "ab12",
        });
        expect![[r#"
            pages of 16 tokens, 16.0 KiB each

            tier    used  of pages      size  in use  hit rate  evicted  at quota
            device    24      1024  16.0 MiB       3    62.5 %        7         0
            nvme      24      1024  16.0 MiB       3    62.5 %        7         0

            tier  stored      bytes  loaded     bytes  waiting  failed
            nvme      30  480.0 KiB       2  32.0 KiB        3  io 3, timed_out 1

            namespace  device  nvme
            default         4     4
            acme           20     -

            travelled:  30 pages to the host and 1 back, 30 to cold tiers and 2 back
            not copied: 0 shed, 0 failed, 0 of them wrong
            index:      30 pages in 4.0 KiB, 0 writes failed, 0 entries not recorded
            reports:    signed by ed25519 ab12
        "#]]
        .assert_eq(&show(&report));
    }

    #[test]
    fn what_a_server_does_not_tell_is_a_dash() {
        expect![[r#"
            pages of - tokens, - each

            tier    used  of pages  size  in use  hit rate  evicted  at quota
            device     -         -     -       -         -        -         -

            travelled:  - pages to the host and - back, - to cold tiers and - back
            not copied: - shed, - failed, - of them wrong
        "#]]
        .assert_eq(&show(&json!({"tiers": [{"tier": "device"}]})));
    }
}
