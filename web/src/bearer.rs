//! Bearer keys, compared without telling by time how much of a guess was right.

use hyper::header::{self, HeaderMap};
use sha2::{Digest, Sha256};

/// What is kept of a key: enough to know it again.
#[derive(Clone, Copy)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    pub fn of(key: impl AsRef<str>) -> Self {
        Self(Sha256::digest(key.as_ref().as_bytes()).into())
    }

    /// Looks at every byte: neither length nor prefix of a key shows.
    pub fn is_same(&self, other: &KeyDigest) -> bool {
        self.0.iter().zip(&other.0).fold(0, |acc, (a, b)| acc | (a ^ b)) == 0
    }

    /// A number by which callers are told apart where it does not matter who they are.
    pub fn low64(&self) -> u64 {
        u64::from_le_bytes(self.0[..8].try_into().expect("eight of 32 bytes"))
    }
}

/// The key that a request brings.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_again_and_nothing_like_it() {
        let key = KeyDigest::of("one");
        assert!(key.is_same(&KeyDigest::of("one")));
        assert!(["on", "ones", "two", ""].iter().all(|other| !key.is_same(&KeyDigest::of(other))));
    }

    #[test]
    fn only_the_bearer_scheme_carries_a_key() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(of("bearer  k ").as_deref(), Some("k"));
        assert_eq!((of("Basic k"), of("k")), (None, None));
    }
}
