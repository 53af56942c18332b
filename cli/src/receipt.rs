//! A purge report as text, shared by the command that asks for one and the command that checks one.
//!
//! Every figure of the table comes from the signed bytes; nothing is added that the node did not sign.

use base::bytes_human;
use runtime::purge::{Guarantee, PurgeReport, TierLine};

use crate::failure::{Exit, Failure};
use crate::table::{Align, table};

/// The tiers of a report, one line each.
pub fn tiers(report: &PurgeReport) -> String {
    const HEAD: [(&str, Align); 8] = [
        ("tier", Align::Left),
        ("pages", Align::Right),
        ("bytes", Align::Right),
        ("verified", Align::Right),
        ("failed", Align::Right),
        ("outstanding", Align::Right),
        ("probe", Align::Right),
        ("guarantee", Align::Left),
    ];
    let row = |line: &TierLine| {
        vec![
            line.tier.clone(),
            line.pages.to_string(),
            bytes_human(line.bytes),
            line.verified.to_string(),
            line.failed.to_string(),
            line.outstanding.to_string(),
            format!("{} found", line.found_by_probe),
            word(line.guarantee).to_owned(),
        ]
    };
    table(&HEAD, &report.tiers.iter().map(row).collect::<Vec<_>>())
}

pub fn word(guarantee: Guarantee) -> &'static str {
    match guarantee {
        Guarantee::Incomplete => "incomplete",
        Guarantee::CryptoErased => "crypto-erased",
        Guarantee::Erased => "erased",
    }
}

/// What a guarantee means to a person.
pub fn sentence(guarantee: Guarantee) -> &'static str {
    match guarantee {
        Guarantee::Incomplete => "incomplete: something is still held, or was not seen to be gone",
        Guarantee::CryptoErased => "crypto-erased: what may be left is sealed under a key that is destroyed",
        Guarantee::Erased => "erased: every place was overwritten or released, and read back",
    }
}

/// A failure where a report guarantees nothing.
pub fn complete(report: &PurgeReport) -> Result<(), Failure> {
    if report.guarantee != Guarantee::Incomplete {
        return Ok(());
    }
    let held: u64 = report.tiers.iter().map(|line| line.outstanding + line.found_by_probe).sum();
    let failed: u64 = report.tiers.iter().map(|line| line.failed).sum();
    let why = match (held, failed) {
        (0, 0) => "it had not ended when the report was signed".to_owned(),
        _ => format!("{held} pages held, {failed} not overwritten"),
    };
    let message = format!("the purge of {:?} is incomplete: {why}", report.namespace);
    Err(Failure::new(Exit::Incomplete, message)
        .hint("the purge goes on; ask again later, or with --running cancel to end the requests in its way"))
}

/// `2026-11-20 15:27:57 UTC`.
pub fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Year, month and day of a day since 1970, in the Gregorian calendar; years begin in March here, so that
/// the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use expect_test::expect;

    pub fn report(guarantee: Guarantee) -> PurgeReport {
        let line = |tier: &str, pages: u64, outstanding: u64| TierLine {
            has_unknown_past: false,
            tier: tier.into(),
            pages,
            bytes: pages * 4096,
            method: "overwritten".into(),
            verified: pages - outstanding,
            failed: 0,
            outstanding,
            found_by_probe: 0,
            guarantee: if outstanding > 0 { Guarantee::Incomplete } else { Guarantee::Erased },
        };
        let outstanding = u64::from(guarantee == Guarantee::Incomplete);
        PurgeReport {
            version: 1,
            namespace: "acme".into(),
            namespace_id: 1,
            generation: 4,
            model: "abc".into(),
            begun_unix_ms: 1_795_188_477_120,
            ended_unix_ms: 1_795_188_477_162,
            data_keys_destroyed: 1,
            tiers: vec![line("device", 12, outstanding), line("nvme", 1200, 0)],
            guarantee,
        }
    }

    #[test]
    fn the_table_has_a_line_a_tier() {
        expect![[r#"
            tier    pages     bytes  verified  failed  outstanding    probe  guarantee
            device     12  48.0 KiB        12       0            0  0 found  erased
            nvme     1200   4.7 MiB      1200       0            0  0 found  erased
        "#]]
        .assert_eq(&tiers(&report(Guarantee::Erased)));
    }

    #[test]
    fn an_incomplete_report_ends_with_a_code_of_its_own() {
        assert_eq!(complete(&report(Guarantee::Erased)), Ok(()));
        assert_eq!(complete(&report(Guarantee::CryptoErased)), Ok(()));
        let failure = complete(&report(Guarantee::Incomplete)).unwrap_err();
        assert_eq!(failure.exit, Exit::Incomplete);
        expect![[r#"the purge of "acme" is incomplete: 1 pages held, 0 not overwritten"#]]
            .assert_eq(&failure.message);
        let early = PurgeReport { tiers: Vec::new(), ..report(Guarantee::Incomplete) };
        expect![[r#"the purge of "acme" is incomplete: it had not ended when the report was signed"#]]
            .assert_eq(&complete(&early).unwrap_err().message);
    }

    #[test]
    fn times_read_as_dates() {
        let shown = [0, 951_782_400_000, 1_795_188_477_120, 4_102_444_799_000].map(utc);
        assert_eq!(
            shown,
            [
                "1970-01-01 00:00:00 UTC",
                "2000-02-29 00:00:00 UTC",
                "2026-11-20 15:27:57 UTC",
                "2099-12-31 23:59:59 UTC"
            ]
        );
    }
}
