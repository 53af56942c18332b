//! Units that are easy to confuse, as types.

use std::fmt;

/// A size in bytes; displays as binary units.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bytes_human(self.0))
    }
}

/// `1536` → `1.5 KiB`.
pub fn bytes_human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        let shown: Vec<_> = [0, 1023, 1536, 8 << 20, 3 << 30].map(bytes_human).into();
        assert_eq!(shown, ["0 B", "1023 B", "1.5 KiB", "8.0 MiB", "3.0 GiB"]);
    }
}
