//! `strftime_now` of chat templates: the handful of directives that templates use, in UTC.
//!
//! A calendar crate would be the only user of one; the civil-date arithmetic is twelve lines.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Formats a time given in milliseconds since 1970. Unknown directives are kept as they are.
pub(crate) fn strftime(format: &str, unix_ms: u64) -> String {
    let secs = unix_ms / 1000;
    let (days, second) = (secs / 86_400, secs % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[((days + 4) % 7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('B') => out += month_name,
            Some('b' | 'h') => out += &month_name[..3],
            Some('d') => out += &format!("{day:02}"),
            Some('e') => out += &format!("{day:2}"),
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{hour:02}"),
            Some('I') => out += &format!("{:02}", (hour + 11) % 12 + 1),
            Some('M') => out += &format!("{minute:02}"),
            Some('S') => out += &format!("{second:02}"),
            Some('p') => out += if hour < 12 { "AM" } else { "PM" },
            Some('F') => out += &format!("{year}-{month:02}-{day:02}"),
            Some('T') => out += &format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => out += "UTC",
            Some('%') => out.push('%'),
            Some('-') => out += &unpadded(chars.next(), day, month, hour),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// `%-d` and its kin.
fn unpadded(directive: Option<char>, day: u64, month: u64, hour: u64) -> String {
    match directive {
        Some('d') => day.to_string(),
        Some('m') => month.to_string(),
        Some('H') => hour.to_string(),
        Some('I') => ((hour + 11) % 12 + 1).to_string(),
        other => ['%', '-'].into_iter().chain(other).collect(),
    }
}

/// Days since 1970 to (year, month, day), in the calendar of 400-year eras that start on March 1st.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |secs: u64, format: &str| strftime(format, secs * 1000);
        assert_eq!(at(0, "%A %d %B %Y"), "Thursday 01 January 1970");
        assert_eq!(at(951_782_400, "%F"), "2000-02-29");
        assert_eq!(at(1_735_689_599, "%d %b %Y %T"), "31 Dec 2024 23:59:59");
        assert_eq!(at(4_102_444_800, "%a %-d.%-m.%y %I %p"), "Fri 1.1.00 12 AM");
        assert_eq!(at(0, "100%% %Q %"), "100% %Q %");
    }
}
