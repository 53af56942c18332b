//! What a decision sees of one replica: values copied at one moment, so that nothing changes under it.

use serde::{Deserialize, Serialize};

use crate::book::Load;
use crate::fleet::{Rates, Readiness, Role};
use crate::{Held, Seat};

/// One replica as it is when a request comes.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub seat: Seat,
    pub readiness: Readiness,
    pub role: Role,
    /// What it holds of this prompt.
    pub held: Held,
    pub load: Load,
    pub rates: Rates,
    pub pages: Pages,
    pub adapter: AdapterState,
}

impl View {
    /// A ready replica that holds nothing and does nothing.
    pub fn idle(seat: Seat) -> Self {
        Self {
            seat,
            readiness: Readiness::Ready,
            role: Role::Both,
            held: Held::default(),
            load: Load::default(),
            rates: Rates::default(),
            pages: Pages::default(),
            adapter: AdapterState::Loaded,
        }
    }
}

/// Pages of the device. All zero where a replica does not tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Pages {
    pub total: u64,
    /// Neither used nor holding a prefix.
    pub free: u64,
    /// Holding prefixes that no request uses: given up for whoever needs them.
    pub cached: u64,
}

/// Whether the request's adapter is there. The base model always is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterState {
    #[default]
    Loaded,
    /// It can be loaded, which takes time.
    Absent,
    /// This replica cannot serve it.
    Unsupported,
}
