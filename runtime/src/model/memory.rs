//! How much memory there is and what a model takes of it.

use base::Bytes;

/// What a loaded model holds, for the start-up print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    pub weights: Bytes,
    pub kv_pages: Bytes,
    /// Activations and rotary tables.
    pub activations: Bytes,
    /// Pages and the tokens they hold.
    pub pages: u32,
    pub page_tokens: u32,
}

impl MemoryPlan {
    pub fn total(&self) -> Bytes {
        Bytes(self.weights.0 + self.kv_pages.0 + self.activations.0)
    }

    /// Tokens whose KV fits.
    pub fn tokens(&self) -> u64 {
        u64::from(self.pages) * u64::from(self.page_tokens)
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
