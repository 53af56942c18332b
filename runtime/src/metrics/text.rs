//! Prometheus text of the server's and the engine's numbers.

use base::Tier;
use transfer::TierIoStats;
use web::Page;

use crate::executor::ExecutorShape;
use crate::metrics::rpc::RpcMetrics;
use crate::metrics::server::{Ending, ServerMetrics};
use crate::metrics::tiers::tiers;
use crate::stats::EngineStats;

/// Where an engine's numbers are read.
#[derive(Clone, Copy)]
pub(crate) struct EngineNumbers<'a> {
    pub stats: &'a EngineStats,
    pub shape: &'a ExecutorShape,
    pub io: &'a [(Tier, TierIoStats)],
}

/// All series under each of `prefixes` (`quire_`, and `vllm:` if asked for).
pub(crate) fn render(
    prefixes: &[&str],
    model: &str,
    server: &ServerMetrics,
    engine: Option<EngineNumbers<'_>>,
) -> String {
    let mut page = Page::new("", &[("model_name", model)]);
    for prefix in prefixes {
        page.set_prefix(prefix);
        if let Some(EngineNumbers { stats, shape, io }) = engine {
            engine_numbers(&mut page, stats, shape);
            tiers(&mut page, stats, io);
        }
        server_numbers(&mut page, server);
    }
    page.finish()
}

fn engine_numbers(page: &mut Page, stats: &EngineStats, shape: &ExecutorShape) {
    let get = EngineStats::get;
    page.gauge("num_requests_running", "Sequences in the running batch.", get(&stats.running) as f64);
    page.gauge("num_requests_waiting", "Sequences waiting to start.", get(&stats.waiting) as f64);
    let total = get(&stats.pages_total);
    let (free, cached) = (get(&stats.pages_free), get(&stats.pages_cached));
    let used = total.saturating_sub(free + cached);
    let usage = if total == 0 { 0.0 } else { used as f64 / total as f64 };
    page.gauge("kv_cache_usage_perc", "Part of the KV pages in use by sequences; 1 = all.", usage);
    page.head("cache_config_info", "gauge", "The KV pool's shape, as labels.");
    let (tokens, pages) = (shape.page_tokens.to_string(), shape.pages.to_string());
    let labels = [("block_size", tokens.as_str()), ("num_gpu_blocks", pages.as_str())];
    page.sample("cache_config_info", &labels, 1.0);
    page.head("kv_pages", "gauge", "KV pages by state.");
    for (state, pages) in [("used", used), ("cached", cached), ("free", free)] {
        page.sample("kv_pages", &[("state", state)], pages as f64);
    }
    let counters = [
        ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", &stats.prefix_query_tokens),
        ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", &stats.prefix_hit_tokens),
        ("prompt_tokens", "Prompt tokens of admitted sequences.", &stats.prompt_tokens),
        ("generation_tokens", "Tokens generated.", &stats.generation_tokens),
        ("computed_prompt_tokens", "Prompt tokens computed, not served from cache.", &stats.computed_tokens),
        ("num_preemptions", "Sequences put back to make room.", &stats.preemptions),
        ("evicted_pages", "Cached KV pages given up.", &stats.evicted_pages),
        ("engine_steps", "Steps executed.", &stats.steps),
        ("requests_expired", "Requests refused because their deadline had passed.", &stats.expired),
        ("executor_restarts", "Restarts of the executor after a failed step.", &stats.executor_restarts),
    ];
    for (name, help, counter) in counters {
        page.counter(name, help, get(counter) as f64);
    }
    let seconds = get(&stats.step_ns) as f64 / 1e9;
    page.counter("engine_step_seconds", "Time the executor spent in steps.", seconds);
}

fn server_numbers(page: &mut Page, server: &ServerMetrics) {
    page.head("request_success_total", "counter", "Finished sequences by reason.");
    for ending in Ending::ALL {
        page.sample(
            "request_success_total",
            &[("finished_reason", ending.label())],
            server.endings(ending) as f64,
        );
    }
    page.head("http_responses_total", "counter", "HTTP answers by status class.");
    for (class, count) in server.responses() {
        page.sample("http_responses_total", &[("status", class)], count as f64);
    }
    rpc_numbers(page, &server.rpc);
    let histograms = [
        ("time_to_first_token_seconds", "From arrival to the first token.", &server.ttft),
        ("inter_token_latency_seconds", "Between tokens of one sequence.", &server.inter_token),
        ("e2e_request_latency_seconds", "From arrival to the last token.", &server.e2e),
        ("request_queue_time_seconds", "From arrival to the first step.", &server.queue),
        ("request_prompt_tokens", "Prompt tokens per finished sequence.", &server.prompt),
        ("request_generation_tokens", "Generated tokens per finished sequence.", &server.generation),
    ];
    for (name, help, histogram) in histograms {
        page.histogram(name, help, histogram);
    }
}

fn rpc_numbers(page: &mut Page, rpc: &RpcMetrics) {
    page.head("grpc_calls_total", "counter", "gRPC calls and streams that have ended, by method and code.");
    for (method, code, calls) in rpc.calls() {
        page.sample("grpc_calls_total", &[("method", method), ("code", code)], calls as f64);
    }
    page.head("grpc_streams", "gauge", "Open gRPC streams by kind.");
    for (kind, streams) in rpc.streams() {
        page.sample("grpc_streams", &[("kind", kind)], streams as f64);
    }
    page.gauge("grpc_connections", "Open gRPC connections.", rpc.connections.get() as f64);
    page.gauge("grpc_snapshots", "Snapshots of the cache being told.", rpc.snapshots.get() as f64);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::expect;

    use super::*;

    fn page(prefixes: &[&str]) -> String {
        let (stats, server) = (EngineStats::default(), ServerMetrics::default());
        server.first_token(Duration::from_millis(3), Duration::ZERO);
        let shape = ExecutorShape {
            pages: 8,
            page_tokens: 16,
            step_tokens_max: 64,
            step_seqs_max: 4,
            vocab: 10,
            positions_max: 128,
            model: base::ModelDigest([0; 32]),
            layout: [0; 32],
            page_bytes: 4096,
            restores: Default::default(),
        };
        render(prefixes, "m\"1", &server, Some(EngineNumbers { stats: &stats, shape: &shape, io: &[] }))
    }

    #[test]
    fn names_and_types_are_a_promise() {
        let types: Vec<_> =
            page(&["quire_"]).lines().filter_map(|l| l.strip_prefix("# TYPE ")).map(String::from).collect();
        expect![[r#"
            quire_num_requests_running gauge
            quire_num_requests_waiting gauge
            quire_kv_cache_usage_perc gauge
            quire_cache_config_info gauge
            quire_kv_pages gauge
            quire_prefix_cache_queries_total counter
            quire_prefix_cache_hits_total counter
            quire_prompt_tokens_total counter
            quire_generation_tokens_total counter
            quire_computed_prompt_tokens_total counter
            quire_num_preemptions_total counter
            quire_evicted_pages_total counter
            quire_engine_steps_total counter
            quire_requests_expired_total counter
            quire_executor_restarts_total counter
            quire_engine_step_seconds_total counter
            quire_kv_tier_places gauge
            quire_kv_tier_pages gauge
            quire_kv_tier_query_tokens_total counter
            quire_kv_tier_hit_tokens_total counter
            quire_kv_tier_evicted_pages_total counter
            quire_kv_moved_pages_total counter
            quire_kv_shed_pages_total counter
            quire_kv_failed_pages_total counter
            quire_kv_wrong_pages_total counter
            quire_kv_prefetches_total counter
            quire_kv_prefetches_declined_total counter
            quire_kv_prefetch_timeouts_total counter
            quire_host_hit_tokens_total counter
            quire_kv_block_lifetime_seconds histogram
            quire_kv_block_idle_before_evict_seconds histogram
            quire_kv_block_reuse_gap_seconds histogram
            quire_request_success_total counter
            quire_http_responses_total counter
            quire_grpc_calls_total counter
            quire_grpc_streams gauge
            quire_grpc_connections gauge
            quire_grpc_snapshots gauge
            quire_time_to_first_token_seconds histogram
            quire_inter_token_latency_seconds histogram
            quire_e2e_request_latency_seconds histogram
            quire_request_queue_time_seconds histogram
            quire_request_prompt_tokens histogram
            quire_request_generation_tokens histogram"#]]
        .assert_eq(&types.join("\n"));
    }

    #[test]
    fn the_alias_repeats_every_series_under_the_other_prefix() {
        let both = page(&["quire_", "vllm:"]);
        let series = |prefix: &str| both.lines().filter(|l| l.starts_with(prefix)).count();
        assert_eq!(series("quire_"), series("vllm:"));
        assert!(both.contains("vllm:num_requests_waiting{model_name=\"m\\\"1\"} 0"));
    }

    #[test]
    fn histograms_cumulate_and_end_in_infinity() {
        let text = page(&["quire_"]);
        let name = "quire_time_to_first_token_seconds";
        for line in [
            format!("{name}_bucket{{model_name=\"m\\\"1\",le=\"0.001\"}} 0"),
            format!("{name}_bucket{{model_name=\"m\\\"1\",le=\"0.005\"}} 1"),
            format!("{name}_bucket{{model_name=\"m\\\"1\",le=\"+Inf\"}} 1"),
            format!("{name}_sum{{model_name=\"m\\\"1\"}} 0.003"),
            format!("{name}_count{{model_name=\"m\\\"1\"}} 1"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} missing in\n{text}");
        }
    }
}
