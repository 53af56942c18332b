//! The series of the cache's tiers: what is there, what travelled, what failed, and how long pages live.

use base::Tier;
use kvcache::{SPAN_BUCKETS, Span};
use transfer::TierIoStats;
use web::Page;

use crate::stats::{EngineStats, TierGauges};

pub(super) fn tiers(page: &mut Page, stats: &EngineStats, io: &[(Tier, TierIoStats)]) {
    let get = EngineStats::get;
    let present = |tier: &Tier| get(&stats.tiers[tier.index()].places) > 0;
    let tiers: Vec<(Tier, &TierGauges)> =
        Tier::ALL.into_iter().filter(present).map(|tier| (tier, &stats.tiers[tier.index()])).collect();
    page.head("kv_tier_places", "gauge", "Pages that a tier has room for.");
    for (tier, gauges) in &tiers {
        page.sample("kv_tier_places", &[label(*tier)], get(&gauges.places) as f64);
    }
    page.head("kv_tier_pages", "gauge", "Pages of prefixes that a tier holds.");
    for (tier, gauges) in &tiers {
        page.sample("kv_tier_pages", &[label(*tier)], get(&gauges.held) as f64);
    }
    type Counter = fn(&TierGauges) -> u64;
    let counters: [(&str, &str, Counter); 3] = [
        ("kv_tier_query_tokens", "Prompt tokens looked up in a tier.", |g| EngineStats::get(&g.query_tokens)),
        ("kv_tier_hit_tokens", "Prompt tokens found in a tier.", |g| EngineStats::get(&g.hit_tokens)),
        ("kv_tier_evicted_pages", "Pages that a tier gave up.", |g| EngineStats::get(&g.evicted)),
    ];
    for (stem, help, value) in counters {
        let name = format!("{stem}_total");
        page.head(&name, "counter", help);
        for (tier, gauges) in &tiers {
            page.sample(&name, &[label(*tier)], value(gauges) as f64);
        }
    }
    travel(page, stats);
    tier_io(page, io);
    lives(page, &tiers);
}

fn travel(page: &mut Page, stats: &EngineStats) {
    let get = EngineStats::get;
    let name = "kv_moved_pages_total";
    page.head(name, "counter", "Pages copied between tiers.");
    for (way, counter) in [
        ("device_to_host", &stats.tier_saved_pages),
        ("host_to_device", &stats.tier_restored_pages),
        ("host_to_cold", &stats.tier_stored_pages),
        ("cold_to_host", &stats.tier_loaded_pages),
    ] {
        page.sample(name, &[("way", way)], get(counter) as f64);
    }
    for (stem, help, counter) in [
        (
            "kv_shed_pages",
            "Copies not made: too much was on its way or no place was free.",
            &stats.tier_shed_pages,
        ),
        ("kv_failed_pages", "Copies that failed.", &stats.tier_failed_pages),
        (
            "kv_wrong_pages",
            "Pages whose bytes were not theirs, and which were dropped.",
            &stats.tier_wrong_pages,
        ),
        ("kv_prefetches", "Loads from cold tiers begun for waiting requests.", &stats.prefetches),
        ("kv_prefetches_declined", "Loads not begun because computing is faster.", &stats.prefetch_declined),
        ("kv_prefetch_timeouts", "Loads that requests stopped waiting for.", &stats.prefetch_timeouts),
        ("host_hit_tokens", "Prompt tokens restored from host memory.", &stats.host_hit_tokens),
    ] {
        page.counter(stem, help, get(counter) as f64);
    }
}

fn tier_io(page: &mut Page, io: &[(Tier, TierIoStats)]) {
    if io.is_empty() {
        return;
    }
    let name = "kv_tier_io_bytes_total";
    page.head(name, "counter", "Bytes of pages written to and read from cold tiers.");
    for (tier, of) in io {
        for (way, bytes) in [("write", of.store_bytes), ("read", of.load_bytes)] {
            page.sample(name, &[label(*tier), ("way", way)], bytes as f64);
        }
    }
    let name = "kv_tier_io_failures_total";
    page.head(name, "counter", "Pages that a cold tier could not write, read or erase, by reason.");
    for (tier, of) in io {
        for (kind, failures) in &of.failures {
            page.sample(name, &[label(*tier), ("kind", kind)], *failures as f64);
        }
    }
    let name = "kv_tier_io_in_flight";
    page.head(name, "gauge", "Operations of cold tiers queued or under way.");
    for (tier, of) in io {
        page.sample(name, &[label(*tier)], (of.queued + of.in_flight) as f64);
    }
}

fn lives(page: &mut Page, tiers: &[(Tier, &TierGauges)]) {
    type Pick = fn(&kvcache::Spans) -> &Span;
    let spans: [(&str, &str, Pick); 3] = [
        ("kv_block_lifetime_seconds", "From a page's entry to its eviction.", |s| &s.lifetime),
        ("kv_block_idle_before_evict_seconds", "From a page's last use to its eviction.", |s| &s.idle),
        ("kv_block_reuse_gap_seconds", "Between two uses of a page.", |s| &s.reuse),
    ];
    for (name, help, pick) in spans {
        page.head(name, "histogram", help);
        for (tier, gauges) in tiers {
            span(page, name, *tier, pick(&gauges.spans()));
        }
    }
}

fn span(page: &mut Page, name: &str, tier: Tier, span: &Span) {
    let mut below = 0;
    for (i, count) in span.counts.iter().enumerate().take(SPAN_BUCKETS) {
        below += count;
        let bound = Span::bound_seconds(i).map_or_else(|| "+Inf".to_owned(), |bound| bound.to_string());
        page.sample(&format!("{name}_bucket"), &[label(tier), ("le", &bound)], below as f64);
    }
    page.sample(&format!("{name}_sum"), &[label(tier)], span.sum_hundredths as f64 / 100.0);
    page.sample(&format!("{name}_count"), &[label(tier)], below as f64);
}

fn label(tier: Tier) -> (&'static str, &'static str) {
    ("tier", tier.name())
}
