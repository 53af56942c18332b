//! How long a caller waits: the `grpc-timeout` header.

use std::future::pending;
use std::time::Duration;

use axum::http::HeaderMap;
use tokio::time::Instant;

use crate::api::error::ApiError;

const HEADER: &str = "grpc-timeout";
/// Longer is as good as none.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// When the caller stops waiting, counted from the arrival of its call: what was spent on the way in is spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Deadline(Option<Instant>);

impl Deadline {
    /// At most eight digits and a unit.
    pub fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        let Some(value) = headers.get(HEADER) else { return Ok(Self(None)) };
        let parsed = value.to_str().ok().and_then(parse);
        let wrong =
            || ApiError::invalid(HEADER, "`grpc-timeout` must be up to 8 digits and one of H M S m u n");
        parsed.map(Self::after).ok_or_else(wrong)
    }

    fn after(left: Duration) -> Self {
        Self(Some(Instant::now() + left))
    }

    /// Resolves when it has passed; never if there is none.
    pub async fn passed(self) {
        match self.0 {
            Some(at) => tokio::time::sleep_until(at).await,
            None => pending().await,
        }
    }

    /// `wish`, or less where the caller would not be there to hear the answer: a tenth is for making it.
    pub fn shorten(self, wish: Duration) -> Duration {
        self.shorten_at(wish, Instant::now())
    }

    fn shorten_at(self, wish: Duration, now: Instant) -> Duration {
        self.0.map_or(wish, |at| wish.min(at.saturating_duration_since(now).mul_f64(0.9)))
    }
}

fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    let left = match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    };
    Some(left.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        let seconds = |text| parse(text).map(|left| left.as_secs_f64());
        assert_eq!(seconds("1H"), Some(3600.0));
        assert_eq!(seconds("20m"), Some(0.02));
        assert_eq!(seconds("99999999H"), Some(LONGEST.as_secs_f64()));
        for wrong in ["", "S", "1", "1s", "-1S", "123456789S", "1.5S", "1é"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_wish_is_cut_so_that_the_answer_arrives() {
        let second = Duration::from_secs(1);
        assert_eq!(Deadline(None).shorten(second), second);
        let arrived = Instant::now();
        let deadline = Deadline(Some(arrived + second));
        let after = |spent| deadline.shorten_at(second, arrived + spent);
        assert_eq!(after(Duration::ZERO), Duration::from_millis(900));
        assert_eq!(deadline.shorten_at(second / 2, arrived), second / 2);
        assert_eq!(after(second / 2), Duration::from_millis(450), "what the call took until here counts");
        assert_eq!(after(2 * second), Duration::ZERO);
    }
}
