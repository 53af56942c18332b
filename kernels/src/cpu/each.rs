//! One job per item, forked only where that pays: a decode step's row ops are shorter than a fork and join.

use super::pool::{Pool, share};

/// Values below which the caller does all: about a microsecond of work.
const SMALL: usize = 8192;

/// Runs `job(item)` for `0..items`, which touch about `values` floats in all.
pub(super) fn each(pool: &Pool, items: usize, values: usize, job: &(dyn Fn(usize) + Sync)) {
    if values <= SMALL || pool.workers() == 1 {
        return (0..items).for_each(job);
    }
    pool.run(&|worker, workers| share(items, 1, worker, workers).for_each(job));
}
