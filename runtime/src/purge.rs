//! The purge of one namespace on this node, from request to signed report.
//!
//! ```text
//!  keys destroyed, next generation begun ─▶ scheduler: floor raised, tiers erased ─▶ index on disk
//!       └─ from here on nothing sealed opens                                     ─▶ probes ─▶ signature
//! ```
//!
//! Keys go first: should the process die in the middle, what is left is ciphertext without a key. The
//! report never claims more than was read back: each tier's line carries what it counted, and the
//! guarantee of the whole is that of its weakest tier. A purge that is not done when the caller stops
//! waiting is reported as incomplete and goes on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base::{Generation, NamespaceId, Tier};
use kvcache::TierErasure;
use serde::{Deserialize, Serialize};
use transfer::{NodeSigner, verify};

use crate::engine::{Engine, Purged};
use crate::scheduler::PurgeRunning;
use crate::storage::{Keys, KeysError};

/// How sure it is that nothing is left, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// Something is still held, or was not seen to be gone.
    Incomplete,
    /// What may be left is sealed under a key that no longer exists.
    CryptoErased,
    /// Every place was overwritten or released, and read back.
    Erased,
}

/// What one tier did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TierLine {
    pub tier: String,
    pub pages: u64,
    pub bytes: u64,
    pub method: String,
    /// Places read back and found empty. More than `pages` where earlier evictions had left bytes, fewer
    /// where other pages have taken and overwritten a place meanwhile.
    pub verified: u64,
    pub failed: u64,
    /// Pages that a running request or copy still holds.
    pub outstanding: u64,
    /// An earlier run used the tier, and may have left sealed pages in places that its index no longer named.
    pub has_unknown_past: bool,
    /// Pages that a lookup still finds.
    pub found_by_probe: u64,
    pub guarantee: Guarantee,
}

/// What this node says of a purge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PurgeReport {
    pub version: u32,
    pub namespace: String,
    pub namespace_id: u64,
    /// Nothing of this generation or an earlier one is left.
    pub generation: u64,
    pub model: String,
    pub begun_unix_ms: u64,
    pub ended_unix_ms: u64,
    pub data_keys_destroyed: u64,
    pub tiers: Vec<TierLine>,
    pub guarantee: Guarantee,
}

/// A report and the node's signature under its JSON, compact, fields in this order. Fields beyond these
/// are refused everywhere: they would stand in the file without being signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedReport {
    pub report: PurgeReport,
    pub algorithm: String,
    pub public_key: String,
    pub signature: String,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    #[error("no namespace is called {0:?}")]
    Unknown(String),
    #[error("keys: {0}")]
    Keys(#[from] KeysError),
    #[error("the engine has stopped")]
    Stopped,
}

/// A purge as it is asked for.
#[derive(Clone, Debug)]
pub struct PurgeOrder {
    pub namespace: String,
    pub running: PurgeRunning,
    /// How long to wait for running requests before the report says what is outstanding.
    pub patience: Duration,
}

impl Engine {
    /// Purges a namespace and reports. Takes as long as its running requests do, at most `patience`.
    pub async fn purge(&self, order: &PurgeOrder, signer: &NodeSigner) -> Result<SignedReport, PurgeError> {
        let (begun, begun_unix_ms) = (self.clock().now(), self.clock().unix_ms());
        let keys = self.keys().ok_or_else(|| PurgeError::Unknown(order.namespace.clone()))?;
        let name = order.namespace.clone();
        // The key store syncs a file.
        let keys = Arc::clone(keys);
        let retired = tokio::task::spawn_blocking(move || retire(&keys, &name));
        let (id, up_to, destroyed) = retired.await.map_err(|_| PurgeError::Stopped)??;
        let next = Generation(up_to.0 + 1);
        self.note_generations(id, |of| of.generation = of.generation.max(next));
        let mut waiting = self.begin_purge(id, up_to, order.running);
        self.note_generations(id, |of| of.floor = of.floor.max(next));
        // Syncing the key store was part of the wait.
        let spent = Duration::from_nanos(self.clock().now().0.saturating_sub(begun.0));
        let patience = order.patience.saturating_sub(spent);
        let purged = match tokio::time::timeout(patience, &mut waiting).await {
            Ok(purged) => purged.map_err(|_| PurgeError::Stopped)?,
            Err(_) => match self.purge_under_way(id, up_to).await {
                Ok(purged) => purged,
                // It has ended in this very moment.
                Err(_) => waiting.await.map_err(|_| PurgeError::Stopped)?,
            },
        };
        let is_recorded = self.forget_on_disk().await;
        let bytes = self.shape().page_bytes as u64;
        let lines: Vec<TierLine> =
            purged.state.tiers.iter().map(|tier| line(tier, &purged, bytes, is_recorded)).collect();
        let report = PurgeReport {
            version: 1,
            namespace: order.namespace.clone(),
            namespace_id: id.0,
            generation: up_to.0,
            model: self.shape().model.to_string(),
            begun_unix_ms,
            ended_unix_ms: self.clock().unix_ms(),
            data_keys_destroyed: destroyed as u64,
            guarantee: lines.iter().map(|line| line.guarantee).min().unwrap_or(Guarantee::Incomplete),
            tiers: lines,
        };
        Ok(sign(report, signer))
    }

    /// How a purge stands that nobody waited for to the end.
    async fn purge_under_way(&self, id: NamespaceId, up_to: Generation) -> Result<Purged, PurgeError> {
        let report = self.inspect(Vec::new()).await.ok_or(PurgeError::Stopped)?;
        let of = |purged: &Purged| purged.state.namespace == id && purged.state.up_to == up_to;
        report.purges.into_iter().find(of).ok_or(PurgeError::Stopped)
    }

    /// True once the index on disk does not name what was purged, or if there is none.
    async fn forget_on_disk(&self) -> bool {
        let Some(journal) = self.journal().map(Arc::clone) else { return true };
        tokio::task::spawn_blocking(move || journal.flush().is_ok()).await.unwrap_or(false)
    }
}

fn retire(keys: &Mutex<Keys>, name: &str) -> Result<(NamespaceId, Generation, usize), PurgeError> {
    let mut keys = keys.lock().unwrap_or_else(PoisonError::into_inner);
    let found = keys.namespaces().iter().find(|namespace| namespace.spec.name == name);
    let namespace = found.ok_or_else(|| PurgeError::Unknown(name.to_owned()))?;
    let (id, up_to) = (namespace.id, namespace.generation);
    let destroyed = keys.retire(id, up_to)?;
    Ok((id, up_to, destroyed))
}

fn line(of: &TierErasure, purged: &Purged, page_bytes: u64, is_recorded: bool) -> TierLine {
    let TierErasure { tier, erasure } = *of;
    let found = purged.remaining.iter().find(|(other, _)| *other == tier).map_or(0, |(_, pages)| *pages);
    let is_sealed = tier > Tier::Host;
    let is_gone = purged.state.is_done && erasure.outstanding == 0 && found == 0;
    // Nothing outstanding and nothing failed: every place that may have held the namespace's bytes was read
    // back empty, or has been taken and overwritten whole by another page since.
    let is_read_back = erasure.failed == 0 && !erasure.has_unknown_past;
    let guarantee = match (is_gone, is_read_back, is_sealed) {
        (true, true, false) => Guarantee::Erased,
        (true, true, true) if is_recorded => Guarantee::Erased,
        (_, _, true) if found == 0 => Guarantee::CryptoErased,
        _ => Guarantee::Incomplete,
    };
    TierLine {
        tier: tier.name().to_owned(),
        pages: erasure.pages,
        bytes: erasure.pages * page_bytes,
        method: method(tier).to_owned(),
        verified: erasure.verified,
        failed: erasure.failed,
        outstanding: erasure.outstanding,
        has_unknown_past: erasure.has_unknown_past,
        found_by_probe: found as u64,
        guarantee,
    }
}

fn method(tier: Tier) -> &'static str {
    match tier {
        Tier::Device => "overwritten with zeros by the executor, read back",
        Tier::Host => "overwritten with zeros, frames of earlier evictions included, read back",
        Tier::Nvme => "data key destroyed; slots released to the file system or overwritten, read back",
        Tier::Object => "data key destroyed; objects deleted, looked up again",
    }
}

fn sign(report: PurgeReport, signer: &NodeSigner) -> SignedReport {
    let signature = signer.sign(&payload(&report));
    SignedReport {
        report,
        algorithm: "ed25519".into(),
        public_key: hex(&signer.public_key()),
        signature: hex(&signature),
    }
}

/// The bytes that are signed.
fn payload(report: &PurgeReport) -> Vec<u8> {
    serde_json::to_vec(report).expect("a report is plain data")
}

impl SignedReport {
    /// The bytes that are signed.
    pub fn payload(&self) -> Vec<u8> {
        payload(&self.report)
    }

    /// Key and signature as bytes, if they are written as this node writes them.
    pub fn key_and_signature(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        Some((unhex(&self.public_key)?, unhex(&self.signature)?))
    }

    /// Whether the signature is that of the report's own public key under just this report.
    pub fn verify(&self) -> bool {
        let Some((key, signature)) = self.key_and_signature() else { return false };
        self.algorithm == "ed25519" && verify(&key, &payload(&self.report), &signature)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes what [`hex`] writes and nothing else: one key or signature has one spelling.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let pair = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?);
    text.as_bytes().chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use kvcache::{Erasure, PurgeId, PurgeState};

    use super::*;

    fn guarantee(tier: Tier, erasure: Erasure, remaining: usize, is_recorded: bool) -> Guarantee {
        let of = TierErasure { tier, erasure };
        let state = PurgeState {
            id: PurgeId(1),
            namespace: NamespaceId(0),
            up_to: Generation(0),
            tiers: vec![of],
            is_done: erasure.outstanding == 0,
        };
        line(&of, &Purged { state, remaining: vec![(tier, remaining)] }, 1, is_recorded).guarantee
    }

    #[test]
    fn every_fault_lowers_the_guarantee() {
        let good = Erasure { pages: 3, verified: 3, ..Erasure::default() };
        let lies = Erasure { verified: 2, failed: 1, ..good };
        let held = Erasure { outstanding: 1, ..good };
        for tier in Tier::ALL {
            let weaker = if tier > Tier::Host { Guarantee::CryptoErased } else { Guarantee::Incomplete };
            assert_eq!(guarantee(tier, good, 0, true), Guarantee::Erased);
            assert_eq!(guarantee(tier, lies, 0, true), weaker);
            assert_eq!(guarantee(tier, held, 0, true), weaker);
            assert_eq!(guarantee(tier, Erasure { has_unknown_past: true, ..good }, 0, true), weaker);
            assert_eq!(guarantee(tier, good, 1, true), Guarantee::Incomplete);
        }
        assert_eq!(guarantee(Tier::Nvme, good, 0, false), Guarantee::CryptoErased);
    }

    #[test]
    fn a_report_verifies_until_a_word_of_it_changes() {
        let report = PurgeReport {
            version: 1,
            namespace: "acme".into(),
            namespace_id: 1,
            generation: 0,
            model: "m".into(),
            begun_unix_ms: 1,
            ended_unix_ms: 2,
            data_keys_destroyed: 1,
            tiers: Vec::new(),
            guarantee: Guarantee::Erased,
        };
        let signed = sign(report, &NodeSigner::random().unwrap());
        let text = serde_json::to_string_pretty(&signed).unwrap();
        let back: SignedReport = serde_json::from_str(&text).unwrap();
        assert!(back.verify());
        let mut forged = back.clone();
        forged.report.data_keys_destroyed = 2;
        assert!(!forged.verify());
        assert!(!SignedReport { public_key: "00".into(), ..back.clone() }.verify());
        assert!(!SignedReport { signature: "zz".into(), ..back }.verify());
    }

    /// Every byte, several ways: what still parses and verifies is the same report.
    #[test]
    fn no_changed_byte_of_the_file_is_believed() {
        let of = TierErasure {
            tier: Tier::Nvme,
            erasure: Erasure { pages: 3, verified: 3, ..Erasure::default() },
        };
        let state = PurgeState {
            id: PurgeId(1),
            namespace: NamespaceId(0),
            up_to: Generation(0),
            tiers: vec![of],
            is_done: true,
        };
        let line = line(&of, &Purged { state, remaining: Vec::new() }, 1, true);
        let report = PurgeReport {
            version: 1,
            namespace: "acme".into(),
            namespace_id: 1,
            generation: 0,
            model: "m".into(),
            begun_unix_ms: 10,
            ended_unix_ms: 20,
            data_keys_destroyed: 1,
            tiers: vec![line],
            guarantee: Guarantee::Erased,
        };
        let signed = sign(report, &NodeSigner::random().unwrap());
        let text = serde_json::to_vec_pretty(&signed).unwrap();
        for at in 0..text.len() {
            for change in [1, 2, 0x20, 0x80] {
                let mut changed = text.clone();
                changed[at] ^= change;
                let read: Option<SignedReport> = serde_json::from_slice(&changed).ok();
                if let Some(read) = read.filter(SignedReport::verify) {
                    assert_eq!(read, signed, "byte {at}");
                }
            }
        }
    }
}
