//! API keys from flags and from a file.

use std::path::Path;

use crate::failure::Failure;

/// All keys of `--api-key` and `--api-key-file`.
pub fn keys_of(given: &[String], file: Option<&Path>) -> Result<Vec<String>, Failure> {
    let mut keys = given.to_vec();
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Failure::usage(format!("cannot read the keys of --api-key-file {}: {e}", path.display()))
        })?;
        let before = keys.len();
        keys.extend(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned));
        if keys.len() == before {
            // Serving without a key because the file was empty would open what was meant to be closed.
            return Err(Failure::usage(format!("--api-key-file {} holds no key", path.display())));
        }
    }
    if keys.iter().any(|k| k.is_empty()) {
        return Err(Failure::usage("--api-key must not be empty"));
    }
    Ok(keys)
}
