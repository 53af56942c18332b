//! Checks that read the machine. Each takes the text it judges, so that a test can hand it another
//! machine's.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use base::bytes_human;
use kernels::cpu::isa::Isa;

use super::Check;

const GIB: u64 = 1 << 30;
/// Soft limit of open files below which a few hundred streams fail.
const OPEN_FILES_LEAST: u64 = 4096;
const CUDA: &str = "libcuda.so.1";
/// Where distributions, containers and WSL put the driver's library.
const CUDA_PLACES: [&str; 8] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/compat",
    "/run/opengl-driver/lib",
];

/// Everything but the model.
pub fn checks(wanted_port: u16) -> Vec<Check> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let folder = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    vec![
        cpu(&read("/proc/cpuinfo"), cores, &read("/sys/fs/cgroup/cpu.max")),
        instructions(Isa::detect()),
        memory(&read("/proc/meminfo"), &read("/sys/fs/cgroup/memory.max")),
        huge_pages(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
        open_files(&read("/proc/self/limits")),
        port(wanted_port),
        disk(&folder),
        cuda(&cuda_places(), Path::new("/dev/nvidia0")),
    ]
}

fn cpu(cpuinfo: &str, cores: usize, quota: &str) -> Check {
    let model =
        cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':')).map(|(_, m)| m.trim());
    let found = format!("{}, {cores} cores", model.unwrap_or("unknown processor"));
    let mut parts = quota.split_whitespace().map(str::parse::<f64>);
    match (parts.next(), parts.next()) {
        (Some(Ok(quota)), Some(Ok(period))) if quota / period < cores as f64 => Check::warn(
            "cpu",
            format!("{found}, of which the container may use {:.1}", quota / period),
            format!(
                "raise the container's CPU limit, or start with --threads {}",
                (quota / period).max(1.0) as usize
            ),
        ),
        _ => Check::ok("cpu", found),
    }
}

fn instructions(isa: Isa) -> Check {
    let name = isa.name();
    match isa {
        Isa::Avx512 => Check::ok("instructions", name),
        Isa::Avx2 => {
            Check::ok("instructions", format!("{name}; a processor with AVX-512 BF16 and VNNI is faster"))
        }
        Isa::Portable => Check::warn("instructions", name, "use a processor with AVX2 or AVX-512"),
    }
}

fn memory(meminfo: &str, limit: &str) -> Check {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    let (Some(total), Some(available)) = (field("MemTotal"), field("MemAvailable")) else {
        return Check::warn("memory", "unknown: /proc/meminfo cannot be read", "mount /proc");
    };
    let mut found = format!("{} free of {}", bytes_human(available), bytes_human(total));
    if let Ok(limit) = limit.trim().parse::<u64>() {
        found += &format!(", container limit {}", bytes_human(limit));
    }
    match available < GIB {
        true => {
            Check::warn("memory", found, "free some: a 0.5B model in bf16 takes 1 GiB, its KV pages more")
        }
        false => Check::ok("memory", found),
    }
}

fn huge_pages(enabled: &str) -> Check {
    let mode = enabled.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(mode, _)| mode);
    match mode {
        Some("never") => Check::warn(
            "huge pages",
            "transparent huge pages are off; weights are read through small pages",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        Some(mode) => Check::ok("huge pages", format!("transparent, {mode}")),
        None => Check::ok("huge pages", "unknown to this kernel"),
    }
}

fn open_files(limits: &str) -> Check {
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"));
    let soft = line.and_then(|l| l.split_whitespace().next());
    match soft.map(str::parse::<u64>) {
        Some(Ok(soft)) if soft < OPEN_FILES_LEAST => Check::warn(
            "open files",
            format!("at most {soft}; each stream takes one"),
            "ulimit -n 65536, or LimitNOFILE=65536 in the unit",
        ),
        Some(Ok(soft)) => Check::ok("open files", format!("at most {soft}")),
        _ => Check::ok("open files", soft.unwrap_or("unknown")),
    }
}

fn port(port: u16) -> Check {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => Check::ok("port", format!("127.0.0.1:{port} is free")),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => Check::warn(
            "port",
            format!("127.0.0.1:{port} is in use"),
            "a server may be running already; choose another with --port",
        ),
        Err(e) => Check::warn("port", format!("127.0.0.1:{port}: {e}"), "choose another with --port"),
    }
}

fn disk(folder: &Path) -> Check {
    let Ok(stat) = rustix::fs::statvfs(folder) else {
        return Check::warn(
            "disk",
            format!("{} cannot be asked", folder.display()),
            "start in a folder that exists",
        );
    };
    let found = format!("{} free at {}", bytes_human(stat.f_bavail * stat.f_frsize), folder.display());
    match stat.f_bavail * stat.f_frsize < GIB {
        true => Check::warn("disk", found, "free some before you fetch a model"),
        false => Check::ok("disk", found),
    }
}

fn cuda_places() -> Vec<PathBuf> {
    let path = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(CUDA_PLACES.iter().map(PathBuf::from)).collect()
}

fn cuda(places: &[PathBuf], device: &Path) -> Check {
    let library = places.iter().map(|p| p.join(CUDA)).find(|p| p.exists());
    match (library, device.exists()) {
        (None, false) => Check::ok("cuda", format!("no {CUDA}; runs on the CPU")),
        (None, true) => Check::warn(
            "cuda",
            format!("{} exists, {CUDA} does not", device.display()),
            "install the NVIDIA driver's libraries, or give them to the container",
        ),
        (Some(path), true) => Check::ok("cuda", format!("{}", path.display())),
        (Some(path), false) => Check::warn(
            "cuda",
            format!("{}, but no {}", path.display(), device.display()),
            "give the device to the container (--gpus all), or load the driver's kernel module",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn a_container_quota_below_the_cores_is_a_warning() {
        let info = "processor: 0\nmodel name\t: Some CPU\n";
        assert_eq!(cpu(info, 8, "max 100000").found, "Some CPU, 8 cores");
        let check = cpu(info, 8, "150000 100000\n");
        assert_eq!(check.status, Status::Warn);
        assert!(check.todo.unwrap().contains("--threads 1"));
        assert_eq!(cpu(info, 1, "150000 100000\n").status, Status::Ok);
    }

    #[test]
    fn memory_is_judged_by_what_is_available() {
        let of = |available: u64| {
            memory(&format!("MemTotal: 16777216 kB\nMemAvailable: {available} kB\n"), "max\n")
        };
        assert_eq!(of(8 << 20), Check::ok("memory", "8.0 GiB free of 16.0 GiB"));
        assert_eq!(of(1 << 19).status, Status::Warn);
        assert_eq!(memory("", "").status, Status::Warn);
        assert!(
            memory("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n", "1073741824\n")
                .found
                .contains("limit")
        );
    }

    #[test]
    fn huge_pages_that_are_off_are_a_warning() {
        assert_eq!(huge_pages("always madvise [never]\n").status, Status::Warn);
        assert_eq!(huge_pages("always [madvise] never\n").found, "transparent, madvise");
        assert_eq!(huge_pages("").status, Status::Ok);
    }

    #[test]
    fn few_open_files_are_a_warning() {
        let limits = |n: &str| {
            format!("Limit  Soft Limit  Hard Limit  Units\nMax open files    {n}    524288    files\n")
        };
        assert_eq!(open_files(&limits("1024")).status, Status::Warn);
        assert_eq!(open_files(&limits("65536")).status, Status::Ok);
        assert_eq!(open_files(&limits("unlimited")).found, "unlimited");
    }

    #[test]
    fn a_port_in_use_is_a_warning() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(port(taken.local_addr().unwrap().port()).status, Status::Warn);
        assert_eq!(port(0).status, Status::Ok);
    }

    #[test]
    fn the_driver_is_found_by_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let places = [dir.path().join("none"), dir.path().to_owned()];
        let device = dir.path().join("nvidia0");
        assert!(cuda(&places, &device).found.contains("no libcuda"));
        std::fs::write(&device, "").unwrap();
        assert_eq!(cuda(&places, &device).status, Status::Warn);
        std::fs::write(dir.path().join(CUDA), "").unwrap();
        assert_eq!(cuda(&places, &device).status, Status::Ok);
    }
}
