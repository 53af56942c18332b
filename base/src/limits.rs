//! The bounds of one replica in one struct: every queue, map and loop has one, and at the bound the
//! answer is a typed refusal.

/// Bounds with their defaults; `quire config show` prints them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests admitted and not yet finished, running ones included.
    pub requests_max: usize,
    /// Bytes of one HTTP request body.
    pub body_bytes_max: usize,
    /// Choices (`n`) of one request.
    pub choices_max: usize,
    /// Alternatives per token in `top_logprobs`.
    pub top_logprobs_max: usize,
    /// Stop strings of one request.
    pub stop_strings_max: usize,
    /// Bytes of one stop string.
    pub stop_bytes_max: usize,
    /// Entries in `logit_bias`.
    pub logit_bias_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_max: 4096,
            body_bytes_max: 16 << 20,
            choices_max: 128,
            top_logprobs_max: 20,
            stop_strings_max: 16,
            stop_bytes_max: 1024,
            logit_bias_max: 1024,
        }
    }
}
