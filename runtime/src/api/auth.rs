//! Bearer keys: who calls, compared without telling by time how much of a guess was right.
//!
//! A key belongs to a namespace, and with it everything its requests leave in the cache. Server-wide keys
//! belong to the default namespace and may operate the server; a tenant's key may not. Admin keys, where
//! there are any, are the only ones that may.

use axum::http::HeaderMap;
use base::NamespaceId;
use web::{KeyDigest, bearer};

use crate::api::config::Scrapers;
use crate::api::error::ApiError;
use crate::storage::Retention;

/// On whose behalf a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub namespace: NamespaceId,
    pub retention: Retention,
    pub role: Role,
}

/// What a caller may do beside asking for answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    User,
    Operator,
}

impl Default for Caller {
    /// Anyone, on a server without keys.
    fn default() -> Self {
        Self { namespace: NamespaceId(0), retention: Retention::Keep, role: Role::Operator }
    }
}

/// A tenant's keys, as the server is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantKeys {
    pub namespace: NamespaceId,
    pub retention: Retention,
    pub keys: Vec<String>,
}

/// Digests of the accepted keys and whose they are; empty = everyone may.
pub(crate) struct Keys {
    known: Vec<(KeyDigest, Caller)>,
    /// Whether callers without a key are anyone's equal.
    is_open: bool,
    /// Callers of the default namespace.
    house: Caller,
    /// Digests of keys that open `/metrics`; `None` = it is open.
    scrapers: Option<Vec<KeyDigest>>,
}

impl Keys {
    /// `keys` open the default namespace, of which `retention` is kept; `admin` operates the server.
    pub fn new(keys: &[String], admin: &[String], tenants: &[TenantKeys], retention: Retention) -> Self {
        let house = Caller { retention, ..Caller::default() };
        let role = if admin.is_empty() { Role::Operator } else { Role::User };
        let mut known: Vec<_> =
            keys.iter().map(|key| (KeyDigest::of(key), Caller { role, ..house })).collect();
        known.extend(admin.iter().map(|key| (KeyDigest::of(key), house)));
        for tenant in tenants {
            let (namespace, retention) = (tenant.namespace, tenant.retention);
            let caller = Caller { namespace, retention, role: Role::User };
            known.extend(tenant.keys.iter().map(|key| (KeyDigest::of(key), caller)));
        }
        Self { is_open: keys.is_empty() && tenants.is_empty(), known, house, scrapers: None }
    }

    /// Who may read metrics.
    pub fn with_scrapers(self, scrapers: &Scrapers) -> Self {
        let scrapers = match scrapers {
            Scrapers::Anyone => None,
            Scrapers::Keyed(keys) => Some(keys.iter().map(KeyDigest::of).collect()),
        };
        Self { scrapers, ..self }
    }

    /// Whether a caller may read metrics: keys for that, or an operator's.
    pub fn check_scrape(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(scrapers) = &self.scrapers else { return Ok(()) };
        let needed = || ApiError::unauthorized("a key for metrics is needed: Authorization: Bearer KEY");
        let token = bearer(headers).ok_or_else(needed)?;
        let given = KeyDigest::of(token);
        if scrapers.iter().fold(false, |found, key| found | key.is_same(&given)) {
            return Ok(());
        }
        match self.owner(token).map(|caller| caller.role) {
            Some(Role::Operator) => Ok(()),
            Some(Role::User) => Err(ApiError::forbidden("this key may not read metrics")),
            None => Err(ApiError::unauthorized("the API key is not known")),
        }
    }

    pub fn check(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        self.whose(bearer(headers))
    }

    /// Who sends this token, or none.
    pub fn whose(&self, token: Option<&str>) -> Result<Caller, ApiError> {
        if self.known.is_empty() {
            return Ok(self.house);
        }
        let Some(token) = token else {
            // Only admin keys are set: answers are for all, operating is not.
            return match self.is_open {
                true => Ok(Caller { role: Role::User, ..self.house }),
                false => Err(ApiError::unauthorized("an API key is needed: Authorization: Bearer KEY")),
            };
        };
        self.owner(token).ok_or_else(|| ApiError::unauthorized("the API key is not known"))
    }

    /// Compares digests, all of them and in full: neither length, prefix nor place of a key shows.
    fn owner(&self, token: &str) -> Option<Caller> {
        let given = KeyDigest::of(token);
        let mut found = None;
        for (known, caller) in &self.known {
            found = if known.is_same(&given) { Some(*caller) } else { found };
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::header;

    fn ask(keys: &Keys, value: &str) -> Option<Caller> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        keys.check(&headers).ok()
    }

    #[test]
    fn any_of_several_keys_opens_and_nothing_else_does() {
        let keys = Keys::new(&["one".into(), "two".into()], &[], &[], Retention::Keep);
        assert!(ask(&keys, "Bearer one").is_some() && ask(&keys, "bearer two").is_some());
        for wrong in ["Bearer three", "Bearer on", "Basic one", "one"] {
            assert!(ask(&keys, wrong).is_none());
        }
        assert!(keys.check(&HeaderMap::new()).is_err());
        assert!(Keys::new(&[], &[], &[], Retention::Keep).check(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn a_tenants_key_is_its_namespace_and_no_operator() {
        let tenant = TenantKeys {
            namespace: NamespaceId(7),
            retention: Retention::Nothing,
            keys: vec!["acme".into()],
        };
        let keys = Keys::new(&["house".into()], &[], std::slice::from_ref(&tenant), Retention::Keep);
        let caller = ask(&keys, "Bearer acme").unwrap();
        assert_eq!(
            (caller.namespace, caller.retention, caller.role),
            (NamespaceId(7), Retention::Nothing, Role::User)
        );
        assert_eq!(ask(&keys, "Bearer house").unwrap().role, Role::Operator);
        let keys = Keys::new(&["house".into()], &["root".into()], &[tenant], Retention::Keep);
        assert_eq!(ask(&keys, "Bearer house").unwrap().role, Role::User);
        assert_eq!(ask(&keys, "Bearer root").unwrap().role, Role::Operator);
    }

    #[test]
    fn metrics_are_open_until_told_otherwise_and_their_key_opens_nothing_else() {
        let keys = |scrapers| {
            let keys = Keys::new(&["house".into()], &["root".into()], &[], Retention::Keep);
            keys.with_scrapers(&scrapers)
        };
        let scrape = |keys: &Keys, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            keys.check_scrape(&headers).map_err(|error| error.status.as_u16())
        };
        assert!(keys(Scrapers::Anyone).check_scrape(&HeaderMap::new()).is_ok());
        let keys = keys(Scrapers::Keyed(vec!["prom".into()]));
        assert_eq!(keys.check_scrape(&HeaderMap::new()).unwrap_err().status.as_u16(), 401);
        assert_eq!(scrape(&keys, "Bearer prom"), Ok(()));
        assert_eq!(scrape(&keys, "Bearer root"), Ok(()));
        assert_eq!(scrape(&keys, "Bearer house"), Err(403));
        assert_eq!(scrape(&keys, "Bearer other"), Err(401));
        assert!(ask(&keys, "Bearer prom").is_none());
    }

    #[test]
    fn with_admin_keys_alone_answers_are_open_and_operating_is_not() {
        let keys = Keys::new(&[], &["root".into()], &[], Retention::Keep);
        assert_eq!(keys.check(&HeaderMap::new()).unwrap().role, Role::User);
        assert_eq!(ask(&keys, "Bearer root").unwrap().role, Role::Operator);
    }
}
