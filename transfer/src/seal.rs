//! How a page leaves the machine's memory: sealed by AES-256-GCM, with its whole identity as
//! associated data.
//!
//! The seal is authentication, checksum and purge at once. What a slot holds opens only as the page
//! that the index names, at the place it names, under a key that still exists; a stale slot, a torn
//! write, a flipped bit and another tenant's page all look alike: they do not open. A plain checksum
//! beside encryption would cost a second pass and prove less.
//!
//! Sealing and opening go from one buffer to another in one pass, so the staging buffers of the I/O
//! only ever hold ciphertext.
//!
//! Limits: nonces are random (96 bits), so one key seals 2³² pages at most (then `KeySpent`); the count
//! starts again with the process.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base::{ChainHash, Generation, NamespaceId, SlotId, Tier};
use zeroize::Zeroize;

/// Bytes of a tag.
pub const TAG_BYTES: usize = 16;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 12;
const SEALS_MAX: u64 = 1 << 32;
const LABEL_VERSION: u8 = 1;
const LABEL_BYTES: usize = 90;

/// The secret of one namespace generation. Wiped when dropped; never printed.
#[derive(PartialEq, Eq)]
pub struct DataKey([u8; 32]);

impl DataKey {
    /// Takes the bytes over and wipes the caller's copy.
    pub fn new(bytes: &mut [u8; 32]) -> Self {
        let key = Self(*bytes);
        bytes.zeroize();
        key
    }

    /// A fresh key from the operating system's randomness.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut key = Self([0; 32]);
        random(&mut key.0)?;
        Ok(key)
    }

    /// The bytes, for the key store and nobody else.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Drop for DataKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(..)")
    }
}

/// The operating system gave no random bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the operating system gave no random bytes")]
pub struct NoRandomness;

pub(crate) fn random(bytes: &mut [u8]) -> Result<(), NoRandomness> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| NoRandomness)
}

/// What it takes, beside the key and the label, to open a page. Lives in the index, not in the slot:
/// a slot without its index entry is noise.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageSeal {
    pub nonce: [u8; NONCE_BYTES],
    pub tag: [u8; TAG_BYTES],
}

impl fmt::Debug for PageSeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageSeal(")?;
        self.tag[..4].iter().try_for_each(|b| write!(f, "{b:02x}"))?;
        f.write_str("..)")
    }
}

/// Which page it is and where it lies: the associated data of its seal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageLabel {
    pub namespace: NamespaceId,
    pub generation: Generation,
    pub name: ChainHash,
    pub layout: [u8; 32],
    pub tier: Tier,
    pub slot: SlotId,
    /// Bytes of plaintext.
    pub bytes: u32,
}

impl PageLabel {
    /// Every field at a fixed place, behind a version.
    pub(crate) fn encode(&self) -> [u8; LABEL_BYTES] {
        let mut out = [0; LABEL_BYTES];
        out[0] = LABEL_VERSION;
        out[1..9].copy_from_slice(&self.namespace.0.to_le_bytes());
        out[9..17].copy_from_slice(&self.generation.0.to_le_bytes());
        out[17..49].copy_from_slice(&self.name.0);
        out[49..81].copy_from_slice(&self.layout);
        out[81] = self.tier.index() as u8;
        out[82..86].copy_from_slice(&self.slot.0.to_le_bytes());
        out[86..90].copy_from_slice(&self.bytes.to_le_bytes());
        out
    }
}

/// A key in the form the cipher wants, made once. Its schedule is wiped by the library when freed.
pub(crate) struct SealingKey {
    key: LessSafeKey,
    seals: AtomicU64,
}

/// Why nothing was sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SealRefused {
    Spent,
    Failed,
}

impl SealingKey {
    pub fn new(key: &DataKey) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, &key.0).expect("32 bytes are a key of AES-256");
        Self { key: LessSafeKey::new(key), seals: AtomicU64::new(0) }
    }

    /// Seals `plain` into the first bytes of `out`, which has room for a tag behind them.
    pub fn seal_into(&self, label: &[u8], plain: &[u8], out: &mut [u8]) -> Result<PageSeal, SealRefused> {
        if self.seals.fetch_add(1, Ordering::Relaxed) >= SEALS_MAX {
            return Err(SealRefused::Spent);
        }
        let mut nonce = [0; NONCE_BYTES];
        random(&mut nonce).map_err(|_| SealRefused::Failed)?;
        let room = out.get_mut(..plain.len() + TAG_BYTES).ok_or(SealRefused::Failed)?;
        let unique = Nonce::assume_unique_for_key(nonce);
        let sealed = self.key.seal_in_place_scatter(unique, Aad::from(label), &mut [], plain, room);
        sealed.map_err(|_| SealRefused::Failed)?;
        let mut tag = [0; TAG_BYTES];
        let end = &mut room[plain.len()..];
        tag.copy_from_slice(end);
        end.fill(0);
        Ok(PageSeal { nonce, tag })
    }

    /// Opens `sealed` into `plain` (of equal length); on failure `plain` is zeroed.
    pub fn open_into(&self, label: &[u8], seal: &PageSeal, sealed: &[u8], plain: &mut [u8]) -> bool {
        if sealed.len() != plain.len() {
            plain.fill(0);
            return false;
        }
        let nonce = Nonce::assume_unique_for_key(seal.nonce);
        let opened = self.key.open_separate_gather(nonce, Aad::from(label), sealed, &seal.tag, plain);
        if opened.is_err() {
            plain.zeroize();
        }
        opened.is_ok()
    }
}

/// Small secrets (tokens of a record, keys of the store) as `nonce | ciphertext | tag`.
impl SealingKey {
    pub fn seal_vec(&self, label: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealRefused> {
        let mut out = vec![0; NONCE_BYTES + plain.len() + TAG_BYTES];
        let seal = self.seal_into(label, plain, &mut out[NONCE_BYTES..])?;
        out[..NONCE_BYTES].copy_from_slice(&seal.nonce);
        out[NONCE_BYTES + plain.len()..].copy_from_slice(&seal.tag);
        Ok(out)
    }

    pub fn open_vec(&self, label: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let length = sealed.len().checked_sub(NONCE_BYTES + TAG_BYTES)?;
        let (nonce, rest) = sealed.split_at(NONCE_BYTES);
        let (body, tag) = rest.split_at(length);
        let seal = PageSeal { nonce: nonce.try_into().ok()?, tag: tag.try_into().ok()? };
        let mut plain = vec![0; length];
        self.open_into(label, &seal, body, &mut plain).then_some(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label() -> PageLabel {
        PageLabel {
            namespace: NamespaceId(7),
            generation: Generation(3),
            name: ChainHash([1; 32]),
            layout: [2; 32],
            tier: Tier::Nvme,
            slot: SlotId(9),
            bytes: 100,
        }
    }

    #[test]
    fn keys_never_show_in_debug() {
        let key = DataKey::new(&mut [0xAB; 32]);
        assert_eq!(format!("{key:?}"), "DataKey(..)");
    }

    #[test]
    fn every_field_of_the_label_decides() {
        let key = SealingKey::new(&DataKey::new(&mut [5; 32]));
        let plain = [42u8; 100];
        let mut sealed = vec![0; 100 + TAG_BYTES];
        let seal = key.seal_into(&label().encode(), &plain, &mut sealed).unwrap();
        let opens = |label: PageLabel| {
            let mut out = [1u8; 100];
            let good = key.open_into(&label.encode(), &seal, &sealed[..100], &mut out);
            assert_eq!(out, if good { plain } else { [0; 100] }, "a failed opening leaves nothing");
            good
        };
        assert!(opens(label()));
        assert!(!opens(PageLabel { namespace: NamespaceId(8), ..label() }));
        assert!(!opens(PageLabel { generation: Generation(4), ..label() }));
        assert!(!opens(PageLabel { name: ChainHash([3; 32]), ..label() }));
        assert!(!opens(PageLabel { layout: [3; 32], ..label() }));
        assert!(!opens(PageLabel { tier: Tier::Object, ..label() }));
        assert!(!opens(PageLabel { slot: SlotId(8), ..label() }));
        assert!(!opens(PageLabel { bytes: 99, ..label() }));
    }

    #[test]
    fn every_bit_of_label_seal_and_body_decides() {
        let key = SealingKey::new(&DataKey::new(&mut [5; 32]));
        let mut sealed = vec![0; 40 + TAG_BYTES];
        let aad = label().encode();
        let seal = key.seal_into(&aad, &[9u8; 40], &mut sealed).unwrap();
        let mut out = [0; 40];
        for bit in 0..aad.len() * 8 {
            let mut aad = aad;
            aad[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.open_into(&aad, &seal, &sealed[..40], &mut out), "label bit {bit}");
        }
        for bit in 0..(NONCE_BYTES + TAG_BYTES) * 8 {
            let mut seal = seal;
            let byte = bit / 8;
            let at =
                if byte < NONCE_BYTES { &mut seal.nonce[byte] } else { &mut seal.tag[byte - NONCE_BYTES] };
            *at ^= 1 << (bit % 8);
            assert!(!key.open_into(&aad, &seal, &sealed[..40], &mut out), "seal bit {bit}");
        }
        for bit in 0..40 * 8 {
            let mut sealed = sealed.clone();
            sealed[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.open_into(&aad, &seal, &sealed[..40], &mut out), "body bit {bit}");
        }
    }

    #[test]
    fn two_seals_of_one_page_share_nothing() {
        let key = SealingKey::new(&DataKey::new(&mut [5; 32]));
        let one = key.seal_vec(b"l", &[1; 64]).unwrap();
        let two = key.seal_vec(b"l", &[1; 64]).unwrap();
        assert_ne!(one[..NONCE_BYTES], two[..NONCE_BYTES]);
        assert_ne!(one[NONCE_BYTES..], two[NONCE_BYTES..]);
        assert_eq!(key.open_vec(b"l", &two).unwrap(), [1; 64]);
        assert!(key.open_vec(b"m", &two).is_none());
        assert!(key.open_vec(b"l", &two[..20]).is_none());
    }
}
