//! Which processors the pool may use, and pinning to them.
//!
//! One worker per physical core: two hyperthreads share the load ports and the multipliers that the kernels
//! saturate, so a second one gains nothing and makes the static split uneven. Pinning is a hint: where it is
//! refused (containers, other systems) everything works unpinned.

use std::cell::Cell;

/// Physical cores that this process may run on, at least 1.
pub fn physical() -> usize {
    let allowed = allowed();
    allowed.iter().filter(|&&cpu| sibling_rank(cpu, &allowed) == 0).count().max(1)
}

/// Processors that this process may run on, one of each core first, then their siblings.
pub(super) fn allowed() -> Vec<usize> {
    let mut cpus = affinity();
    if cpus.is_empty() {
        cpus = (0..std::thread::available_parallelism().map_or(1, |n| n.get())).collect();
    }
    let all = cpus.clone();
    cpus.sort_by_key(|&cpu| (sibling_rank(cpu, &all), cpu));
    cpus
}

/// How many allowed siblings of the same core come before `cpu`.
fn sibling_rank(cpu: usize, allowed: &[usize]) -> usize {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let Ok(text) = std::fs::read_to_string(path) else { return 0 };
    parse_list(text.trim()).into_iter().filter(|s| *s < cpu && allowed.contains(s)).count()
}

/// `0-1,8` → 0, 1, 8.
fn parse_list(text: &str) -> Vec<usize> {
    let mut out = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse(), last.parse::<usize>()) {
            out.extend(first..=last.min(first + 4095));
        }
    }
    out
}

#[cfg(target_os = "linux")]
fn affinity() -> Vec<usize> {
    // SAFETY: a cpu_set_t is plain bits, all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is writable and its size is given; pid 0 is this thread.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } != 0 {
        return Vec::new();
    }
    // SAFETY: the index stays inside the set.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

#[cfg(not(target_os = "linux"))]
fn affinity() -> Vec<usize> {
    Vec::new()
}

/// Pins the calling thread to `core`; a refusal changes nothing.
pub(super) fn pin(core: Option<usize>) {
    #[cfg(target_os = "linux")]
    if let Some(core) = core.filter(|&c| c < libc::CPU_SETSIZE as usize) {
        // SAFETY: a cpu_set_t is plain bits, all zero is the empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the index was checked above.
        unsafe { libc::CPU_SET(core, &mut set) };
        // SAFETY: the set is initialised and its size is given; pid 0 is this thread.
        let _refused = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = core;
}

/// Pins the calling thread the first time it asks for this core.
pub(super) fn pin_once(core: Option<usize>) {
    thread_local!(static PINNED: Cell<Option<usize>> = const { Cell::new(None) });
    if core.is_some() && PINNED.get() != core {
        pin(core);
        PINNED.set(core);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_read_as_the_kernel_writes_them() {
        assert_eq!(parse_list("0-2,8"), [0, 1, 2, 8]);
        assert_eq!(parse_list("5"), [5]);
        assert!(parse_list("").is_empty());
    }

    #[test]
    fn there_is_always_a_core() {
        assert!(!allowed().is_empty());
        assert!((1..=allowed().len()).contains(&physical()));
    }
}
