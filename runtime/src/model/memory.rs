//! How much memory there is and what a model takes of it.
//!
//! On a device the plan is made before anything is taken, and one that does not fit is refused with the flag that
//! would make it fit. In host memory it is made once the weights are packed: a checkpoint's pages are mapped and
//! KV pages are touched one by one, so that nothing is refused there that the machine could still do.

use base::Bytes;
use kernels::DevicePlan;

use super::error::ModelError;
use super::load::PoolSize;

/// What a loaded model holds, for the start-up print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    pub weights: Bytes,
    pub kv_pages: Bytes,
    /// Activations and rotary tables; on a device all that kernels need besides.
    pub activations: Bytes,
    /// Left to the device's driver and libraries.
    pub reserve: Bytes,
    /// Of what was free before; `None` where that is not known.
    pub headroom: Option<Bytes>,
    /// Pages and the tokens they hold.
    pub pages: u32,
    pub page_tokens: u32,
}

impl MemoryPlan {
    pub fn total(&self) -> Bytes {
        Bytes(self.weights.0 + self.kv_pages.0 + self.activations.0 + self.reserve.0)
    }

    /// Tokens whose KV fits.
    pub fn tokens(&self) -> u64 {
        u64::from(self.pages) * u64::from(self.page_tokens)
    }
}

/// Pages of `page` bytes that fit beside what `plan` takes, of which one step needs `least`; or the flag that is in
/// the way.
pub(super) fn device_pages(
    plan: &DevicePlan,
    pool: PoolSize,
    page: u64,
    least: u64,
) -> Result<u64, ModelError> {
    let most = plan.left() / page;
    let asked = match pool {
        PoolSize::Pages(n) => u64::from(n),
        PoolSize::Bytes(bytes) => bytes.0 / page,
        PoolSize::Fraction(share) => ((plan.left() as f64 * share.clamp(0.0, 1.0)) as u64) / page,
    };
    let refuse = |pages: u64, flag: &'static str, advice: String| {
        let [weights, buffers, reserve] = [plan.weights, plan.buffers, plan.reserve].map(Bytes);
        let (free, kv_pages) = (Bytes(plan.free), Bytes(pages * page));
        let needed = Bytes(plan.fixed() + kv_pages.0);
        Err(ModelError::Device { free, needed, weights, buffers, reserve, kv_pages, flag, advice })
    };
    if plan.weights + plan.reserve > plan.free {
        let advice = "chooses another GPU: on this one the weights alone do not fit".into();
        return refuse(least, "device", advice);
    }
    if most < least {
        let advice = "takes fewer tokens a step: the buffers grow with it".into();
        return refuse(least, "max-num-batched-tokens", advice);
    }
    match pool {
        PoolSize::Pages(_) if asked > most => refuse(asked, "kv-pages", format!("can be {most} at most")),
        PoolSize::Bytes(_) if asked > most => {
            refuse(asked, "kv-memory", format!("can be {} at most", Bytes(most * page)))
        }
        PoolSize::Fraction(_) if asked < least => {
            let share = (least * page) as f64 / plan.left() as f64;
            refuse(
                least,
                "gpu-memory-utilization",
                format!("must be {:.2} at least", (share * 100.0).ceil() / 100.0),
            )
        }
        _ => Ok(asked),
    }
}

/// Memory that can still be had: the kernel's estimate, or what the container's limit leaves.
/// `None` where neither is known.
pub fn available() -> Option<Bytes> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| meminfo(&text));
    let limit = read("/sys/fs/cgroup/memory.max").and_then(|t| t.trim().parse::<u64>().ok());
    let used = read("/sys/fs/cgroup/memory.current").and_then(|t| t.trim().parse::<u64>().ok());
    let container = limit.zip(used).map(|(limit, used)| limit.saturating_sub(used));
    machine.into_iter().chain(container).min().map(Bytes)
}

/// `MemAvailable` in bytes.
fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_from_the_kernels_line() {
        assert_eq!(meminfo("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(meminfo("MemTotal: 9 kB\n"), None);
    }
}
