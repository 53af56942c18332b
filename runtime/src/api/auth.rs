//! Bearer keys, compared without telling by time how much of a guess was right.

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};

use crate::api::error::ApiError;

/// Digests of the accepted keys; empty = everyone may.
pub(crate) struct Keys {
    digests: Vec<[u8; 32]>,
}

impl Keys {
    pub fn new(keys: &[String]) -> Self {
        Self { digests: keys.iter().map(|key| Sha256::digest(key.as_bytes()).into()).collect() }
    }

    pub fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.digests.is_empty() {
            return Ok(());
        }
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = given.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let Some(token) = token else {
            return Err(ApiError::unauthorized("an API key is needed: Authorization: Bearer KEY"));
        };
        if self.holds(token) { Ok(()) } else { Err(ApiError::unauthorized("the API key is not known")) }
    }

    /// Compares digests, all of them and in full: neither length, prefix nor place of a key shows.
    fn holds(&self, token: &str) -> bool {
        let given: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let mut found = 0u8;
        for digest in &self.digests {
            let differing = digest.iter().zip(given).fold(0, |acc, (a, b)| acc | (a ^ b));
            found |= u8::from(differing == 0);
        }
        found != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_of_several_keys_opens_and_nothing_else_does() {
        let keys = Keys::new(&["one".into(), "two".into()]);
        let ask = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            keys.check(&headers).is_ok()
        };
        assert!(ask("Bearer one") && ask("bearer two"));
        assert!(!ask("Bearer three") && !ask("Bearer on") && !ask("Basic one") && !ask("one"));
        assert!(keys.check(&HeaderMap::new()).is_err());
        assert!(Keys::new(&[]).check(&HeaderMap::new()).is_ok());
    }
}
