//! Azure's CSV: `TIMESTAMP,ContextTokens,GeneratedTokens`. No content, so nothing is shared: it tries queues,
//! and any policy that reuses more than nothing on it is broken.

use base::Nanos;

use super::{
    Call, Class, OUTPUT, PROMPT, PROMPT_TOKENS_MAX, Segment, Start, Trace, TraceError, at_line, lines,
    own_text,
};

pub fn parse(path: &str, text: &str) -> Result<Trace, TraceError> {
    let mut origin = None;
    let calls = lines(path, text).skip(1).map(|at| {
        let (line, text) = at?;
        at_line(path, line, call(line, text, &mut origin))
    });
    let calls: Vec<_> = calls.collect();
    Trace::of(path, vec!["default".to_owned()], calls.into_iter())
}

fn call(line: usize, text: &str, origin: &mut Option<u64>) -> Result<Call, String> {
    let mut fields = text.trim().split(',');
    let mut next = |name: &str| fields.next().ok_or_else(|| format!("no {name}"));
    let at = nanos(next("TIMESTAMP")?)?;
    let prompt = count(next("ContextTokens")?)?;
    let output = count(next("GeneratedTokens")?)?;
    let since = at.saturating_sub(*origin.get_or_insert(at));
    if prompt == 0 || u64::from(prompt) > PROMPT_TOKENS_MAX {
        return Err(format!("a prompt of {prompt} tokens; 1 to {PROMPT_TOKENS_MAX} can be asked"));
    }
    let number = line as u64;
    Ok(Call {
        start: Start::At(Nanos(since)),
        tenant: 0,
        class: Class::Interactive,
        prompt: vec![Segment { id: own_text(PROMPT, number), tokens: prompt }],
        output: Segment { id: own_text(OUTPUT, number), tokens: output.max(1) },
        deadline: None,
        session: None,
    })
}

fn count(text: &str) -> Result<u32, String> {
    text.trim().parse().map_err(|_| format!("`{text}` is not a number of tokens"))
}

/// `2023-11-16 18:17:03.9799600` as nanoseconds since a day long ago.
fn nanos(text: &str) -> Result<u64, String> {
    let parsed = (|| {
        let (date, time) = text.trim().split_once(' ')?;
        let mut day = date.split('-').map(|part| part.parse::<u64>().ok());
        let (year, month, date) = (day.next()??, day.next()??, day.next()??);
        let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
        let mut parts = clock.split(':').map(|part| part.parse::<u64>().ok());
        let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
        let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        let seconds = (days(year, month, date)? * 24 + hour) * 3600 + minute * 60 + second;
        Some(seconds * 1_000_000_000 + digits.parse::<u64>().ok()?)
    })();
    parsed.ok_or_else(|| format!("`{text}` is not a time like 2023-11-16 18:17:03.97996"))
}

/// Days since 1 March 1970, about: in the calendar in use, from a year that a `u64` of nanoseconds reaches from.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let valid = (1970..3000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    valid.then(|| {
        (year - 1969) * 365 + year / 4 - year / 100 + year / 400 - 477 + (month * 153 + 2) / 5 + day - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
        2023-11-16 23:59:59.9799600,4808,10\n2023-11-17 00:00:00.0319600,3180,8\n";

    #[test]
    fn times_count_from_the_first_call_across_midnight() {
        let trace = Trace::parse("azure.csv", TEXT).unwrap();
        let starts: Vec<Start> = trace.calls.iter().map(|call| call.start).collect();
        assert_eq!(starts, [Start::At(Nanos(0)), Start::At(Nanos(52_000_000))]);
        assert_eq!((trace.calls[1].prompt_tokens(), trace.calls[1].output.tokens), (3180, 8));
        assert_eq!(trace.reusable(), 0.0);
    }

    #[test]
    fn a_bad_field_is_refused_with_its_line() {
        let refusal = Trace::parse("azure.csv", &TEXT.replace("3180", "many")).unwrap_err().to_string();
        assert_eq!(refusal, "trace azure.csv, line 3: `many` is not a number of tokens");
        assert!(Trace::parse("azure.csv", &TEXT.replace("-17", "-77")).is_err());
    }
}
