//! Who may call the router, and as whom a request counts where shares are fair (a digest, never a key).
//!
//! Without keys of its own the router passes the client's `Authorization` on and lets the replicas decide; it
//! then only tells callers apart, by a digest, so that one of them cannot take all seats. With keys it decides
//! itself and shows replicas its own key.

use hyper::HeaderMap;
use web::{KeyDigest, bearer};

use super::config::Config;
use super::refusal::{Reason, Refusal};
use crate::admission::Tenant;

/// Where Anthropic's clients put their key.
pub const API_KEY_HEADER: &str = "x-api-key";

/// The router's keys.
pub struct Gate {
    keys: Vec<KeyDigest>,
    operators: Vec<KeyDigest>,
}

impl Gate {
    pub fn new(config: &Config) -> Self {
        let digests = |keys: &[String]| keys.iter().map(KeyDigest::of).collect();
        Self { keys: digests(&config.keys), operators: digests(&config.admin_keys) }
    }

    /// Whether the router decides who may call, rather than the replicas.
    pub fn is_own(&self) -> bool {
        !self.keys.is_empty()
    }

    /// A client's request.
    pub fn client(&self, headers: &HeaderMap) -> Result<Tenant, Refusal> {
        let given = given_key(headers).map(KeyDigest::of);
        let tenant = Tenant(given.as_ref().map_or(0, KeyDigest::low64));
        match given {
            _ if !self.is_own() => Ok(tenant),
            Some(given) if knows(&self.keys, &given) | knows(&self.operators, &given) => Ok(tenant),
            Some(_) => Err(unauthorized("the API key is not known")),
            None => Err(unauthorized("an API key is needed: Authorization: Bearer KEY")),
        }
    }

    /// A look at, or a hand on, the router itself.
    pub fn operator(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.operators.is_empty() {
            return self.client(headers).map(drop);
        }
        match given_key(headers).map(KeyDigest::of) {
            Some(given) if knows(&self.operators, &given) => Ok(()),
            Some(_) => Err(Refusal::new(Reason::Forbidden, "this key may not operate the router")),
            None => Err(unauthorized("an operator's key is needed: Authorization: Bearer KEY")),
        }
    }
}

/// As OpenAI's clients send it, or as Anthropic's do.
fn given_key(headers: &HeaderMap) -> Option<&str> {
    bearer(headers).or_else(|| headers.get(API_KEY_HEADER)?.to_str().ok())
}

/// Compares with all, whichever matches.
fn knows(keys: &[KeyDigest], given: &KeyDigest) -> bool {
    keys.iter().fold(false, |found, key| found | key.is_same(given))
}

fn unauthorized(message: &str) -> Refusal {
    Refusal::new(Reason::InvalidApiKey, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header;

    fn gate(keys: &[&str], admin: &[&str]) -> Gate {
        let own = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        Gate::new(&Config { keys: own(keys), admin_keys: own(admin), ..Config::default() })
    }

    fn with(key: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
        headers
    }

    #[test]
    fn without_keys_everyone_may_and_callers_are_told_apart() {
        let gate = gate(&[], &[]);
        let tenant = |headers: &HeaderMap| gate.client(headers).unwrap();
        assert_ne!(tenant(&with("a")), tenant(&with("b")));
        assert_eq!(tenant(&with("a")), tenant(&with("a")));
        assert_eq!(tenant(&HeaderMap::new()), Tenant(0));
        assert!(gate.operator(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn with_keys_only_they_open_and_only_operators_operate() {
        let gate = gate(&["one", "two"], &["root"]);
        assert!(gate.client(&with("two")).is_ok() && gate.client(&with("root")).is_ok());
        let refused = |result: Result<_, Refusal>| result.map(|_: Tenant| ()).unwrap_err().reason;
        assert_eq!(refused(gate.client(&with("tw"))), Reason::InvalidApiKey);
        assert_eq!(refused(gate.client(&HeaderMap::new())), Reason::InvalidApiKey);
        assert_eq!(gate.operator(&with("one")).unwrap_err().reason, Reason::Forbidden);
        assert!(gate.operator(&with("root")).is_ok());
        let mut anthropic = HeaderMap::new();
        anthropic.insert(API_KEY_HEADER, "two".parse().unwrap());
        assert_eq!(gate.client(&anthropic).unwrap(), gate.client(&with("two")).unwrap());
    }
}
