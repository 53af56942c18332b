//! Numbers as people type them: `4GiB`, `512m`, `32k`.

use base::Bytes;

/// `4GiB`, `4G`, `512MB`, `1024`: units of 1024, as base displays them. Case does not matter.
pub fn parse_bytes(text: &str) -> Result<Bytes, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        other => return Err(format!("unknown unit `{other}`; use B, KiB, MiB, GiB or TiB")),
    };
    let value: f64 = number.parse().map_err(|_| format!("`{text}` is not a size such as 4GiB"))?;
    let bytes = value * (1u64 << shift) as f64;
    if bytes >= 2f64.powi(63) { Err(format!("`{text}` is too large")) } else { Ok(Bytes(bytes as u64)) }
}

/// vLLM's human-readable integers: `32k` is 32,000 and `32K` is 32,768.
pub fn parse_count(text: &str) -> Result<u32, String> {
    let (number, factor) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 1_000.0),
        Some(b'K') => (&text[..text.len() - 1], 1_024.0),
        Some(b'm') => (&text[..text.len() - 1], 1e6),
        Some(b'M') => (&text[..text.len() - 1], 1_048_576.0),
        _ => (text, 1.0),
    };
    let value: f64 = number.parse().map_err(|_| format!("`{text}` is not a count such as 4096 or 32k"))?;
    let count = value * factor;
    if count.fract() != 0.0 || !(1.0..=f64::from(u32::MAX)).contains(&count) {
        return Err(format!("`{text}` is not a whole number of at least 1"));
    }
    Ok(count as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_the_units_that_people_type() {
        let ok = |s: &str| parse_bytes(s).unwrap().0;
        assert_eq!([ok("1024"), ok("4GiB"), ok("1.5g"), ok("512 mb")], [1024, 4 << 30, 3 << 29, 512 << 20]);
        for bad in ["", "GiB", "4 parsecs", "-1", "9999999T"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_follow_vllm() {
        assert_eq!(
            ["4096", "32k", "32K", "1.5k"].map(|s| parse_count(s).unwrap()),
            [4096, 32000, 32768, 1500]
        );
        for bad in ["0", "1.5", "x", "", "5G", "-4"] {
            assert!(parse_count(bad).is_err(), "{bad}");
        }
    }
}
