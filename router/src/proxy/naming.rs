//! How a pool names prompts: as its replicas do, once one of them has said how; until then not at all, and the caller
//! falls back on text.

use std::sync::{Arc, RwLock};

use arc_swap::ArcSwapOption;
use base::{Clock, Generation};
use tokio::sync::Mutex;

use super::exact::{Asking, Exact, Named, NotExact};

/// See the file's head.
#[derive(Default)]
pub struct Naming {
    exact: ArcSwapOption<Exact>,
    /// Replicas that name alike, any of which can be asked for a root.
    asking: RwLock<Vec<Arc<Asking>>>,
    /// Two replicas that come at once would both be first.
    joining: Mutex<()>,
}

impl Naming {
    /// Takes in a replica whose events are to be followed, if it names blocks as those before it.
    pub async fn join(&self, asking: Arc<Asking>) -> Result<(), NotExact> {
        let _alone = self.joining.lock().await;
        let channel = asking.channel().await?;
        let exact = match self.exact.load_full() {
            Some(exact) => exact.agrees(&channel).await.map(|()| exact)?,
            None => Arc::new(Exact::learn(&channel).await?),
        };
        // First the replica, then what it said: who leaves meanwhile must not take that for nobody's.
        self.asking_mut().push(asking);
        self.exact.store(Some(exact));
        Ok(())
    }

    /// A replica is gone. With the last goes what was learned: who comes next may serve something else.
    pub fn leave(&self, asking: &Arc<Asking>) {
        let mut all = self.asking_mut();
        all.retain(|one| !Arc::ptr_eq(one, asking));
        if all.is_empty() {
            self.exact.store(None);
        }
    }

    /// A body's names; `None` where they cannot be made.
    pub async fn name(&self, credential: &str, body: &[u8], clock: &dyn Clock) -> Option<Named> {
        let exact = self.exact.load_full()?;
        let asking = self.asking().clone();
        for one in asking {
            // A replica that cannot be asked now; the next names alike.
            let Ok(channel) = one.channel().await else { continue };
            return exact.name(&channel, credential, body, clock).await;
        }
        None
    }

    pub fn purged(&self, namespace: &str, up_to: Generation) {
        if let Some(exact) = &*self.exact.load() {
            exact.purged(namespace, up_to);
        }
    }

    pub fn is_exact(&self) -> bool {
        self.exact.load().is_some()
    }

    fn asking(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Asking>>> {
        self.asking.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn asking_mut(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Arc<Asking>>> {
        self.asking.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
