//! Tiers, namespaces and the purge as an operator and two tenants see them: real processes, real files.
//!
//! Pages come from the simulated executor: each holds a hash chained over the tokens before it, which a
//! test can compute, so that a copy left anywhere can be told from everything else in memory.

use std::collections::HashSet;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use expect_test::{Expect, expect};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binary::{Server, run, stderr, stdout};
use crate::server::refused;

const NAMESPACES: &str = "\
[[namespace]]
name = \"acme\"
api_keys = [\"acme-key\"]

[[namespace]]
name = \"zen\"
api_keys = [\"zen-key\"]

[[namespace]]
name = \"ghost\"
api_keys = [\"ghost-key\"]
retain = false
";

/// A folder with everything that one server keeps.
struct Node {
    dir: TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("namespaces.toml"), NAMESPACES).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// A server with a disk, kept keys and three tenants.
    fn start(&self) -> Server {
        self.start_with("4096", "1MiB")
    }

    /// As [`Node::start`], with so many pages on the device and so much room on each tier below.
    fn start_with(&self, pages: &str, room: &str) -> Server {
        let args = ["--kv-pages", pages, "--kv-host-memory", room, "--kv-nvme-size", room];
        Server::start(&[&["serve"], &self.args().each_ref().map(String::as_str)[..], &args].concat())
    }

    /// What all its servers are told.
    fn args(&self) -> [String; 12] {
        let (nvme, keys, names) = (self.path("nvme"), self.path("keys.json"), self.path("namespaces.toml"));
        let args = [
            "--executor",
            "sim",
            "--admin-key",
            "root",
            "--kv-prefetch",
            "wait",
            "--kv-nvme-dir",
            &nvme,
            "--key-store",
            &keys,
            "--namespaces",
            &names,
        ];
        args.map(str::to_owned)
    }
}

fn prompt(seed: u64, tokens: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32 % 32_000
    };
    (0..tokens).map(|_| next()).collect()
}

/// Asks as whoever has `key`; how many tokens of the prompt were cached.
fn cached(server: &Server, key: &str, prompt: &[u32]) -> u64 {
    let body = json!({"model": "sim", "prompt": prompt, "max_tokens": 4, "temperature": 0});
    let (status, answer) = server.post_as(key, "/v1/completions", &body);
    assert_eq!(status, 200, "{answer}");
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

/// The cache's report once nothing is being copied and the index knows all that lies on the disk.
fn settled(server: &Server) -> Value {
    loop {
        let (status, report) = server.get_as("root", "/v1/admin/cache");
        assert_eq!(status, 200, "{report}");
        let stored: u64 = pages(&report, "nvme");
        if report["is_settled"] == true && report["journal"]["pages"].as_u64() == Some(stored) {
            return report;
        }
    }
}

/// Pages that the namespaces keep in a tier.
fn pages(report: &Value, tier: &str) -> u64 {
    report["namespaces"].as_array().unwrap().iter().map(|n| n["pages"][tier].as_u64().unwrap_or(0)).sum()
}

fn purge(server: &Server, args: &[&str]) -> std::process::Output {
    run(&[&["purge", "--url", &server.url, "--api-key", "root"], args].concat())
}

#[test]
fn tenants_share_nothing_and_a_purge_takes_one_of_them() {
    let node = Node::new();
    let server = node.start();
    let words = prompt(1, 70);
    assert_eq!(cached(&server, "acme-key", &words), 0);
    assert_eq!(cached(&server, "acme-key", &words), 64, "its own pages");
    assert_eq!(cached(&server, "zen-key", &words), 0, "another tenant's are not found");
    assert_eq!(cached(&server, "zen-key", &words), 64);
    assert_eq!(cached(&server, "ghost-key", &words), 0);
    assert_eq!(cached(&server, "ghost-key", &words), 0, "nothing of it is kept");
    let report = settled(&server);
    for tier in ["device", "host", "nvme"] {
        assert_eq!(pages(&report, tier), 8, "four pages each of acme and zen: {report}");
    }
    let out = node.path("acme.json");
    let output = purge(&server, &["acme", "--out", &out]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(said.starts_with("purged acme up to generation 0"), "{said}");
    assert!(said.contains("guarantee: erased: "), "{said}");
    assert_eq!(cached(&server, "zen-key", &words), 64, "the other tenant loses nothing");
    assert_eq!(cached(&server, "acme-key", &words), 0, "the purged one has nothing");
    assert_eq!(cached(&server, "acme-key", &words), 64, "and begins anew");
}

#[test]
fn only_an_operator_sees_the_tiers_and_purges() {
    let node = Node::new();
    let server = node.start();
    let order = json!({"namespace": "zen"});
    for (key, status) in [("acme-key", 403), ("wrong", 401), ("root", 200)] {
        assert_eq!(server.get_as(key, "/v1/admin/cache").0, status, "{key}");
        assert_eq!(server.get_as(key, "/v1/admin/cache/tree?tier=host").0, status, "{key}");
        assert_eq!(server.post_as(key, "/v1/admin/purge", &order).0, status, "{key}");
    }
    let output = run(&["purge", "zen", "--url", &server.url, "--api-key", "acme-key"]);
    refused(
        &output,
        &[],
        expect![[r#"
        code 1
        error: the server refused: this key may not operate the server (403)
        hint: give an operator's key with --api-key or QUIRE_ADMIN_KEY
    "#]],
    );
}

#[test]
fn the_cache_is_shown_as_tables_tree_and_json() {
    let node = Node::new();
    let server = node.start();
    cached(&server, "acme-key", &prompt(2, 40));
    settled(&server);
    let ask = |more: &[&str]| {
        let output = run(&[&["cache", "--url", &server.url, "--api-key", "root"], more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output)
    };
    let text = ask(&[]);
    let shown: Vec<&str> = text.lines().take_while(|line| !line.starts_with("reports:")).collect();
    expect![[r#"
        pages of 16 tokens, 128 B each

        tier    used  of pages       size  in use  hit rate  evicted  at quota
        device     2      4096  512.0 KiB       0     0.0 %        0         0
        host       2       256   32.0 KiB       0     0.0 %        0         0
        nvme       2       256   32.0 KiB       0     0.0 %        0         0

        tier  stored  bytes  loaded  bytes  waiting  failed
        nvme       2  256 B       0    0 B        0  none

        namespace  device  host  nvme
        default         0     0     0
        acme            2     2     2
        zen             0     0     0
        ghost           0     0     0

        travelled:  2 pages to the host and 0 back, 2 to cold tiers and 0 back
        not copied: 0 shed, 0 failed, 0 of them wrong
        index:      2 pages in 569 B, 0 writes failed, 0 entries not recorded
    "#]]
    .assert_eq(&(shown.join("\n") + "\n"));
    assert!(ask(&["--tree", "nvme"]).contains("namespace 1 generation 0"));
    let json: Value = serde_json::from_str(&ask(&["--json"])).unwrap();
    assert_eq!(json["public_key"].as_str().unwrap().len(), 64);
}

#[test]
fn a_report_verifies_until_a_byte_changes() {
    let node = Node::new();
    let server = node.start();
    cached(&server, "acme-key", &prompt(3, 40));
    let out = node.path("acme.json");
    assert_eq!(purge(&server, &["acme", "--out", &out]).status.code(), Some(0));
    let text = std::fs::read_to_string(&out).unwrap();
    let key: Value = serde_json::from_str(&text).unwrap();
    let key = key["public_key"].as_str().unwrap();
    let other = "ab".repeat(32);
    let output = run(&["verify", &out, "--public-key", key]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(said.starts_with("signature: good, and the key is the expected one\n"), "{said}");
    assert!(said.contains("namespace: acme (id 1), everything up to generation 0\n"), "{said}");
    let hidden = [(out.as_str(), "FILE"), (key, "KEY"), (other.as_str(), "OTHER")];
    let verify = |text: &str, args: &[&str], expect: Expect| {
        std::fs::write(&out, text).unwrap();
        refused(&run(&[&["verify", out.as_str()], args].concat()), &hidden, expect);
    };
    verify(
        &text,
        &["--public-key", &other],
        expect![[r#"
        code 9
        error: FILE: signed by key KEY, not by OTHER
        hint: the signature is good, but another node's: do not trust the report
    "#]],
    );
    verify(
        &text.replacen("\"pages\": 2", "\"pages\": 3", 1),
        &[],
        expect![[r#"
        code 9
        error: FILE: the signature is not that of key KEY under this report
        hint: the report was changed after it was signed, or was never signed by this key
    "#]],
    );
    verify(
        &text.replacen("\"version\"", "\"Version\"", 1),
        &[],
        expect![[r#"
        code 1
        error: FILE: not a signed purge report: unknown field `Version`, expected one of `version`, `namespace`, `namespace_id`, `generation`, `model`, `begun_unix_ms`, `ended_unix_ms`, `data_keys_destroyed`, `tiers`, `guarantee` at line 3 column 13
        hint: `quire purge --out FILE` and `quire purge --json` write one
    "#]],
    );
    verify(
        "{",
        &[],
        expect![[r#"
        code 1
        error: FILE: not a signed purge report: EOF while parsing an object at line 1 column 1
        hint: `quire purge --out FILE` and `quire purge --json` write one
    "#]],
    );
    std::fs::remove_file(&out).unwrap();
    refused(
        &run(&["verify", &out]),
        &hidden,
        expect![[r#"
        code 1
        error: FILE: no such file or directory
    "#]],
    );
}

#[test]
fn a_killed_server_finds_its_pages_again_and_not_those_it_purged() {
    let node = Node::new();
    let server = node.start();
    let (kept, purged) = (prompt(4, 70), prompt(5, 70));
    assert_eq!(cached(&server, "zen-key", &kept), 0);
    assert_eq!(cached(&server, "acme-key", &purged), 0);
    settled(&server);
    let output = purge(&server, &["acme", "--json"]);
    let first: Value = serde_json::from_str(&stdout(&output)).unwrap();
    server.signal("KILL");
    server.wait();
    let server = node.start();
    let report = settled(&server);
    assert_eq!(pages(&report, "nvme"), 4, "{report}");
    assert_eq!(report["public_key"], first["public_key"], "the node signs with the same key");
    assert_eq!(cached(&server, "zen-key", &kept), 64, "from the disk");
    assert_eq!(cached(&server, "acme-key", &purged), 0);
    let loaded = settled(&server)["travel"]["loaded_pages"].as_u64();
    assert_eq!(loaded, Some(4));
}

#[test]
fn a_spoiled_file_is_a_miss_with_a_reason() {
    let node = Node::new();
    let server = node.start();
    let words = prompt(7, 70);
    cached(&server, "zen-key", &words);
    settled(&server);
    server.signal("KILL");
    server.wait();
    let segment = node.path("nvme/segment-00000.pages");
    let spoiled: Vec<u8> = std::fs::read(&segment).unwrap().iter().map(|byte| byte ^ 0x10).collect();
    std::fs::write(&segment, spoiled).unwrap();
    let server = node.start();
    assert_eq!(cached(&server, "zen-key", &words), 0);
    let report = settled(&server);
    let nvme = report["tiers"].as_array().unwrap().iter().find(|tier| tier["tier"] == "nvme").unwrap();
    assert!(nvme["io"]["failures"]["bad_seal"].as_u64().unwrap_or(0) > 0, "{report}");
    assert_eq!(cached(&server, "zen-key", &words), 64, "computed again and kept");
}

#[test]
fn a_purge_that_stops_waiting_says_what_is_held() {
    let node = Node::new();
    let server = node.start();
    let body = json!({"model": "sim", "prompt": prompt(6, 70), "max_tokens": 30_000, "ignore_eos": true,
                      "stream": true, "logprobs": 20});
    let open = server.open_as("acme-key", "/v1/completions", &body);
    let out = node.path("acme.json");
    let output = purge(&server, &["acme", "--timeout", "0", "--out", &out]);
    assert_eq!(output.status.code(), Some(8), "{}", stdout(&output));
    assert!(stdout(&output).contains("guarantee: incomplete: "), "{}", stdout(&output));
    assert_eq!(run(&["verify", &out]).status.code(), Some(8), "a true report of an incomplete purge");
    let output = purge(&server, &["acme", "--running", "cancel"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    drop(open);
}

/// As the simulated executor chains them.
fn link(chain: u64, token: u32) -> u64 {
    let mixed = (chain ^ u64::from(token)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    let folded = u128::from(mixed) * 0xD6E8_FEB8_6659_FD93_u128;
    (folded as u64) ^ ((folded >> 64) as u64)
}

/// What the pages of a prompt hold, by which a copy of any of them is known.
fn contents(prompt: &[u32]) -> impl Iterator<Item = u64> {
    prompt.iter().scan(0, |chain, &token| {
        *chain = link(*chain, token);
        Some(*chain)
    })
}

/// Pairs of tokens as they would lie in a file that was not sealed.
fn pairs(prompt: &[u32]) -> impl Iterator<Item = u64> {
    prompt.chunks_exact(2).map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32)
}

/// How many words at a multiple of `stride` are canaries.
fn found(bytes: &[u8], stride: usize, canaries: &HashSet<u64>) -> usize {
    let words = bytes.windows(8).step_by(stride).map(|w| u64::from_le_bytes(w.try_into().unwrap()));
    words.filter(|word| *word != 0 && canaries.contains(word)).count()
}

fn found_in_files(dir: &Path, canaries: &HashSet<u64>) -> usize {
    let below = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found_in_files(&path, canaries),
            false => found(&std::fs::read(path).unwrap(), 1, canaries),
        }
    };
    std::fs::read_dir(dir).unwrap().map(below).sum()
}

/// Searches the mappings large enough to be a pool, the heap left out: there the simulated executor has
/// notes of its own about each sequence, which a model has not.
fn found_in_pools(server: &Server, canaries: &HashSet<u64>) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.pid())).unwrap();
    let mut memory = std::fs::File::open(format!("/proc/{}/mem", server.pid())).unwrap();
    let mut sum = 0;
    for line in maps.lines().filter(|line| line.contains(" rw") && !line.contains("[heap]")) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        if to - from >= POOL_BYTES_LEAST {
            let mut bytes = vec![0; (to - from) as usize];
            memory.seek(SeekFrom::Start(from)).unwrap();
            memory.read_exact(&mut bytes).unwrap();
            sum += found(&bytes, 8, canaries);
        }
    }
    sum
}

/// Below both pools of the test, above every stack.
const POOL_BYTES_LEAST: u64 = 16 << 20;

#[test]
fn no_planted_page_is_left_in_pools_or_files() {
    let node = Node::new();
    let server = node.start_with("300000", "16MiB");
    let planted: Vec<Vec<u32>> = (0..1000).map(|i| prompt(1000 + i, 33)).collect();
    for batch in planted.chunks(100) {
        let body = json!({"model": "sim", "prompt": batch, "max_tokens": 1, "temperature": 0});
        assert_eq!(server.post_as("acme-key", "/v1/completions", &body).0, 200);
    }
    let report = settled(&server);
    for tier in ["device", "host", "nvme"] {
        assert_eq!(pages(&report, tier), 2000, "{tier}: {report}");
    }
    let canaries: HashSet<u64> = planted.iter().flat_map(|prompt| contents(prompt)).collect();
    let in_clear: HashSet<u64> =
        planted.iter().flat_map(|prompt| pairs(prompt)).chain(canaries.clone()).collect();
    let dir = node.dir.path().join("nvme");
    assert!(found_in_pools(&server, &canaries) >= 2 * 32_000, "a copy on the device and one in host memory");
    assert_eq!(found_in_files(&dir, &in_clear), 0, "what lies on the disk is sealed");
    let output = purge(&server, &["acme"]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    assert_eq!(found_in_pools(&server, &in_clear), 0, "neither pages nor the tokens they were known by");
    assert_eq!(found_in_files(&dir, &in_clear), 0);
}

/// Room for a few pages; that of a real machine takes a while to open with pages as small as these.
const LITTLE: [&str; 4] = ["--kv-host-memory", "1MiB", "--kv-nvme-size", "1MiB"];

/// What a server that cannot start says, and its code.
fn refused_start(node: &Node, args: &[&str], expect: Expect) {
    let all = [&["serve", "--executor", "sim", "--port", "0", "--log-level", "off"], args].concat();
    refused(&run(&all), &[(node.dir.path().to_str().unwrap(), "DIR")], expect);
}

#[test]
fn a_directory_that_cannot_be_made_is_one_clear_error() {
    let node = Node::new();
    let below_a_file = node.path("namespaces.toml") + "/nvme";
    refused_start(
        &node,
        &[&["--kv-nvme-dir", &below_a_file], &LITTLE[..]].concat(),
        expect![[r#"
        code 7
        error: the nvme tier in DIR/namespaces.toml/nvme: DIR/namespaces.toml/nvme: Not a directory (os error 20)
        hint: the directory must be writable, and one server's alone
    "#]],
    );
    refused_start(
        &node,
        &[&["--kv-object-dir", &below_a_file], &LITTLE[..]].concat(),
        expect![[r#"
        code 7
        error: the object tier in DIR/namespaces.toml/nvme: DIR/namespaces.toml/nvme: Not a directory (os error 20)
        hint: the directory must be writable, and one server's alone
    "#]],
    );
}

#[test]
fn a_directory_in_use_is_one_clear_error() {
    let node = Node::new();
    let _server = node.start();
    let (nvme, keys) = (node.path("nvme"), node.path("keys.json"));
    refused_start(
        &node,
        &[&["--kv-nvme-dir", &nvme], &LITTLE[..]].concat(),
        expect![[r#"
        code 7
        error: the nvme tier in DIR/nvme: DIR/nvme: another process uses this directory
        hint: the directory must be writable, and one server's alone
    "#]],
    );
    refused_start(
        &node,
        &[&["--kv-nvme-dir", &nvme, "--key-store", &keys], &LITTLE[..]].concat(),
        expect![[r#"
        code 7
        error: the index in DIR/nvme: DIR/nvme: another process uses this directory
        hint: the directory must be writable, and one server's alone
    "#]],
    );
}

#[test]
fn a_cold_tier_without_room_is_one_clear_error() {
    let node = Node::new();
    let nvme = node.path("nvme");
    refused_start(
        &node,
        &["--kv-nvme-dir", &nvme, "--kv-host-memory", "1"],
        expect![[r#"
            code 7
            error: a cold tier needs host memory to pass through: give the host tier room for 256.0 KiB or more
        "#]],
    );
    refused_start(
        &node,
        &["--kv-nvme-dir", &nvme, "--kv-nvme-size", "1", "--kv-host-memory", "1MiB"],
        expect![[r#"
            code 7
            error: the nvme tier has room for 1 B, but one page takes 4.0 KiB
        "#]],
    );
}

#[test]
fn a_bad_file_of_namespaces_is_one_clear_error() {
    let node = Node::new();
    let file = node.path("bad.toml");
    let with = |text: &str, expect: Expect| {
        std::fs::write(&file, text).unwrap();
        refused_start(&node, &["--namespaces", &file], expect);
    };
    with(
        "[[namespace]]\nnmae = \"acme\"\n",
        expect![[r#"
        code 2
        error: --namespaces DIR/bad.toml: TOML parse error at line 2, column 1
          |
        2 | nmae = "acme"
          | ^^^^
        unknown field `nmae`, expected one of `name`, `api_keys`, `retain`, `quota`
    "#]],
    );
    with(
        "[[namespace]]\nname = \"acme\"\nquota = { host = \"much\" }\n",
        expect![[r#"
        code 2
        error: --namespaces DIR/bad.toml: namespace "acme", quota.host: unknown unit `much`; use B, KiB, MiB, GiB or TiB
    "#]],
    );
    with(
        "[[namespace]]\nname = \"a\"\n[[namespace]]\nname = \"a\"\n",
        expect![[r#"
        code 2
        error: two namespaces are called "a"
    "#]],
    );
    let missing = node.path("missing.toml");
    refused_start(
        &node,
        &["--namespaces", &missing],
        expect![[r#"
        code 2
        error: --namespaces DIR/missing.toml: No such file or directory (os error 2)
    "#]],
    );
}

#[test]
fn a_bad_key_file_is_one_clear_error() {
    let node = Node::new();
    let (store, key) = (node.path("keys.json"), node.path("bad.key"));
    let mode = |mode: u32| {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    std::fs::write(&key, "00".repeat(32)).unwrap();
    mode(0o644);
    refused_start(
        &node,
        &["--key-store", &store, "--node-key", &key],
        expect![[r#"
        code 2
        error: node key: DIR/bad.key: others may read this key (mode 644); run `chmod 600 DIR/bad.key`
    "#]],
    );
    refused_start(
        &node,
        &["--sign-key", &key],
        expect![[r#"
            code 2
            error: --sign-key: DIR/bad.key: others may read this key (mode 644); run `chmod 600 DIR/bad.key`
        "#]],
    );
    std::fs::write(&key, "short").unwrap();
    mode(0o600);
    refused_start(
        &node,
        &["--key-store", &store, "--node-key", &key],
        expect![[r#"
        code 2
        error: node key: DIR/bad.key: a key is 32 bytes, raw or as 64 hex digits; this is neither
    "#]],
    );
    refused_start(
        &node,
        &["--node-key", &key],
        expect![[r#"
        code 2
        error: --node-key wraps the keys of a --key-store, and there is none
        hint: give --key-store, or leave both out: keys then die with the process
    "#]],
    );
    std::fs::write(&store, "{").unwrap();
    refused_start(
        &node,
        &["--key-store", &store],
        expect![[r#"
        code 2
        error: key store: DIR/keys.json is not a key store: EOF while parsing an object at line 1 column 1
    "#]],
    );
}

#[test]
fn a_purge_that_is_asked_for_wrongly_is_one_clear_error() {
    let node = Node::new();
    let server = node.start();
    let said = |body: Value| {
        let (status, answer) = server.post_as("root", "/v1/admin/purge", &body);
        format!("{status} {} ({})\n", answer["error"]["message"].as_str().unwrap(), answer["error"]["param"])
    };
    let all = [
        json!({}),
        json!({"namespace": 7}),
        json!({"namespace": "nobody"}),
        json!({"namespace": "acme", "runing": "wait"}),
        json!({"namespace": "acme", "running": "kill"}),
        json!({"namespace": "acme", "timeout_ms": -1}),
    ];
    expect![[r#"
        400 `namespace` is missing ("namespace")
        400 `namespace` must be a string, got a number ("namespace")
        400 no namespace is called "nobody" ("namespace")
        400 `runing` is not known here: namespace, running, timeout_ms ("runing")
        400 `running` must be "wait" or "cancel", got "kill" ("running")
        400 `timeout_ms` must be an integer from 0 to 3600000, got -1 ("timeout_ms")
    "#]]
    .assert_eq(&all.map(said).concat());
    refused(
        &purge(&server, &["nobody"]),
        &[],
        expect![[r#"
        code 1
        error: the server refused: no namespace is called "nobody" (400)
    "#]],
    );
    let nowhere = node.path("no/acme.json");
    refused(
        &purge(&server, &["acme", "--out", &nowhere]),
        &[(&nowhere, "FILE")],
        expect![[r#"
        code 2
        error: --out FILE: no such file or directory
    "#]],
    );
    let (status, answer) = server.get_as("root", "/v1/admin/cache/tree?tier=object");
    expect!["400 this server has no object tier"]
        .assert_eq(&format!("{status} {}", answer["error"]["message"].as_str().unwrap()));
}
