//! How many pages each namespace keeps in a tier, and how many it may.
//!
//! Counted in pages of the trees only: what a running sequence holds privately is bounded by the
//! scheduler, and a quota that failed running work would turn a cache limit into an outage. At its
//! quota a namespace gives up its own coldest leaves, never another's.

use std::collections::HashMap;

use base::NamespaceId;

#[derive(Clone, Copy, Default)]
struct Account {
    used: usize,
    limit: Option<usize>,
}

#[derive(Default)]
pub(crate) struct Quotas {
    accounts: HashMap<NamespaceId, Account>,
}

impl Quotas {
    pub fn set(&mut self, namespace: NamespaceId, limit: Option<usize>) {
        self.accounts.entry(namespace).or_default().limit = limit;
        self.forget_empty(namespace);
    }

    pub fn used(&self, namespace: NamespaceId) -> usize {
        self.accounts.get(&namespace).map_or(0, |account| account.used)
    }

    /// Pages that may still come; `None` without a limit.
    pub fn room(&self, namespace: NamespaceId) -> Option<usize> {
        let account = self.accounts.get(&namespace)?;
        Some(account.limit?.saturating_sub(account.used))
    }

    pub fn add(&mut self, namespace: NamespaceId, pages: usize) {
        self.accounts.entry(namespace).or_default().used += pages;
    }

    pub fn remove(&mut self, namespace: NamespaceId, pages: usize) {
        let account = self.accounts.get_mut(&namespace).expect("a page in a tree is on an account");
        account.used -= pages;
        self.forget_empty(namespace);
    }

    /// As many accounts as namespaces with pages or limits.
    fn forget_empty(&mut self, namespace: NamespaceId) {
        if self.accounts.get(&namespace).is_some_and(|a| a.used == 0 && a.limit.is_none()) {
            self.accounts.remove(&namespace);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (NamespaceId, usize, Option<usize>)> {
        self.accounts.iter().map(|(id, account)| (*id, account.used, account.limit))
    }
}
