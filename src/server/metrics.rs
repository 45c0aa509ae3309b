//! `GET /metrics`: what the server, its models and its store do, for Prometheus. Names are our own, and vLLM's beside them where
//! the same thing has a name there, so that dashboards and routers that know these fit. Labels are of small sets only: models,
//! routes, statuses, reasons; never ids, keys or paths.

use super::{AppState, exposition::Exposition, process};
use crate::chat::{Histogram, ModelState, ServedModel};
use actix_web::{HttpResponse, http::header::CONTENT_TYPE, web};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, prometheus_text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::timeout;

/// A scraper waits no longer for all of it than ten seconds, if its own settings say nothing else.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the HTTP side counts itself. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    rejected: Family<ReasonLabels, Counter>,
    panics: Counter,
    in_flight: Gauge,
    /// As of the last scrape.
    unfinished: Arc<AtomicU64>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    route: String,
    status: u16,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabels {
    reason: &'static str,
}

impl Metrics {
    /// A request that has been answered, or whose client has left. `route` is the pattern that it matched.
    pub(super) fn count_request(&self, route: Option<&str>, status: u16) {
        // What matched none could be anything.
        let route = route.unwrap_or("unknown").to_owned();
        self.requests.get_or_create(&RequestLabels { route, status }).inc();
    }

    /// A request that was refused, by the code that the client was told.
    pub(super) fn count_rejection(&self, reason: &'static str) {
        self.rejected.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub(super) fn count_panic(&self) {
        self.panics.inc();
    }

    /// Requests that are being answered, streams included.
    pub(super) fn in_flight(&self) -> &Gauge {
        &self.in_flight
    }
}

/// The handler.
pub(super) async fn scrape(app: web::Data<AppState>) -> HttpResponse {
    if let Some(store) = app.responder.store() {
        // A failure is in the log and counted; the last number stays, and all others are told nevertheless.
        if let Ok(Ok(unfinished)) = timeout(STORE_TIMEOUT, store.num_unfinished()).await {
            app.metrics.unfinished.store(unfinished, Ordering::Relaxed);
        }
    }
    let mut registry = Registry::default();
    let Metrics { requests, rejected, panics, in_flight, .. } = &app.metrics;
    registry.register("ortolan_requests", "HTTP requests by matched route and status", requests.clone());
    registry.register("ortolan_rejected", "Requests that were refused, by the code of the error", rejected.clone());
    registry.register("ortolan_panics", "Handlers that panicked, each answered with a 500", panics.clone());
    registry.register(
        "ortolan_requests_in_flight",
        "HTTP requests being answered, streams included",
        in_flight.clone(),
    );
    registry.register_collector(Box::new(Scrape(AppState::clone(&app))));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry).expect("writing to a string does not fail");
    HttpResponse::Ok().insert_header((CONTENT_TYPE, prometheus_text::CONTENT_TYPE)).body(text)
}

/// What is looked up when it is asked for.
#[derive(Debug)]
struct Scrape(AppState);

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(app) = self;
        let with_vllm = app.config.metrics_compat.contains(&MetricsCompat::Vllm);
        let mut exposition = Exposition::new(encoder, app.models.clone(), with_vllm);
        encode_models(&mut exposition)?;
        encode_engines(&mut exposition)?;
        encode_times(&mut exposition)?;
        self.encode_store(&mut exposition)?;
        self.encode_websockets(&mut exposition)?;
        let build = [("version", env!("CARGO_PKG_VERSION"))];
        exposition.gauge_with("ortolan_build_info", "The version of ortolan", &build, 1.0)?;
        process::encode(&mut exposition)
    }
}

fn encode_models(exposition: &mut Exposition<'_>) -> fmt::Result {
    let help = "Whether the model is loaded and all its engines run";
    exposition.gauges("ortolan_engine_up", help, |model| f64::from(u8::from(model.state().0 == ModelState::Ready)))?;
    let states = [ModelState::Unloaded, ModelState::Loading, ModelState::Ready, ModelState::Failed];
    exposition.states("ortolan_model_state", "1 for the state that the model is in", &states)
}

#[expect(clippy::cast_precision_loss, reason = "what a metric counts is exact up to 2^53")]
fn encode_engines(exposition: &mut Exposition<'_>) -> fmt::Result {
    let names = ("ortolan_requests_running", Some("vllm:num_requests_running"));
    exposition.engine_gauges(names, "Requests that have a slot", |load| load.running as f64)?;
    let names = ("ortolan_requests_waiting", Some("vllm:num_requests_waiting"));
    exposition.engine_gauges(names, "Requests that wait for a slot", |load| load.waiting as f64)?;
    let (names, help) = (("ortolan_queued_prompt_tokens", None), "Tokens of the prompts that wait for a slot");
    exposition.engine_gauges(names, help, |load| load.waiting_tokens as f64)?;
    let names = ("ortolan_requests_waiting_limit", None);
    exposition.engine_gauges(names, "Requests that may wait", |load| load.max_waiting as f64)?;
    let (names, help) = (("ortolan_queued_prompt_tokens_limit", None), "Tokens of prompts that may wait");
    exposition.engine_gauges(names, help, |load| load.max_waiting_tokens as f64)?;
    let names = ("ortolan_kv_cache_usage_ratio", Some("vllm:kv_cache_usage_perc"));
    let help = "Blocks in use, of all; slots where there are no blocks, since each has the memory for a whole context";
    exposition.engine_gauges(names, help, |load| load.cache_usage())?;
    exposition.engine_gauges(("ortolan_kv_slots", None), "Slots", |load| load.slots as f64)?;
    let names = ("ortolan_kv_blocks", None);
    exposition.engine_gauges(names, "Blocks; none where there are only slots", |load| load.blocks as f64)?;
    let names = ("ortolan_preemptions", Some("vllm:num_preemptions"));
    let help = "Requests that gave up their blocks to others and went on later";
    exposition.engine_counters(names, help, |stats| stats.preemptions as f64)?;
    let names = ("ortolan_prefix_cache_queried_tokens", Some("vllm:prefix_cache_queries"));
    let help = "Tokens of prompts that were looked up in the prefix cache";
    exposition.engine_counters(names, help, |stats| stats.prompt_tokens as f64)?;
    let names = ("ortolan_prefix_cache_hit_tokens", Some("vllm:prefix_cache_hits"));
    let help = "Tokens of prompts that the prefix cache held";
    exposition.engine_counters(names, help, |stats| stats.cached_tokens as f64)?;
    let names = ("ortolan_prompt_tokens", Some("vllm:prompt_tokens"));
    exposition.engine_counters(names, "Tokens of prompts", |stats| stats.prompt_tokens as f64)?;
    let names = ("ortolan_generation_tokens", Some("vllm:generation_tokens"));
    exposition.engine_counters(names, "Tokens of replies", |stats| stats.generated_tokens as f64)?;
    let names = ("ortolan_draft_tokens", Some("vllm:spec_decode_num_draft_tokens"));
    exposition.engine_counters(names, "Tokens guessed ahead", |stats| stats.guessed_tokens as f64)?;
    let names = ("ortolan_accepted_tokens", Some("vllm:spec_decode_num_accepted_tokens"));
    exposition.engine_counters(names, "Guesses that were right", |stats| stats.accepted_tokens as f64)?;
    exposition.engine_counters(("ortolan_engine_steps", None), "Steps of the engine", |stats| stats.steps as f64)?;
    let (names, help) = (("ortolan_engine_busy_seconds", None), "Time that the engine's steps took");
    exposition.engine_counters(names, help, |stats| stats.busy.as_secs_f64())?;
    let (names, help) =
        (("ortolan_copied_to_device_bytes", None), "What was copied to the device: tokens, lengths and the like");
    exposition.engine_counters(names, help, |stats| stats.copied.to_device as f64)?;
    let (names, help) = (("ortolan_copied_to_host_bytes", None), "What was copied from the device: scores");
    exposition.engine_counters(names, help, |stats| stats.copied.to_host as f64)?;
    let (names, help) = (("ortolan_engine_run_seconds", None), "Time of it in which the backend ran the graph");
    exposition.engine_counters(names, help, |stats| stats.running.as_secs_f64())
}

fn encode_times(exposition: &mut Exposition<'_>) -> fmt::Result {
    type Pick = fn(&ServedModel) -> &Histogram;
    const TIMES: &[(&str, &str, &str, Pick)] = &[
        (
            "ortolan_time_to_first_token_seconds",
            "vllm:time_to_first_token_seconds",
            "From a request to the first piece of its reply",
            |model| &model.request_stats().first_token,
        ),
        (
            "ortolan_inter_token_latency_seconds",
            "vllm:inter_token_latency_seconds",
            "From one piece of a reply to the next, most of which are one token",
            |model| &model.request_stats().inter_token,
        ),
        (
            "ortolan_request_e2e_seconds",
            "vllm:e2e_request_latency_seconds",
            "From a request to the end of its reply",
            |model| &model.request_stats().end_to_end,
        ),
        ("ortolan_request_queue_seconds", "vllm:request_queue_time_seconds", "From a request to its slot", |model| {
            &model.request_stats().queue
        }),
        (
            "ortolan_request_prefill_seconds",
            "vllm:request_prefill_time_seconds",
            "From a request's slot to the first piece of its reply",
            |model| &model.request_stats().prefill,
        ),
        (
            "ortolan_request_decode_seconds",
            "vllm:request_decode_time_seconds",
            "From the first piece of a reply to its end",
            |model| &model.request_stats().decode,
        ),
    ];
    for (native, vllm, help, pick) in TIMES {
        exposition.histograms(native, vllm, help, pick)?;
    }
    let help = "Replies by how they ended; `abort` is a client that left";
    exposition.ends("ortolan_replies", "vllm:request_success", help)
}

impl Scrape {
    #[expect(clippy::cast_precision_loss, reason = "what a metric counts is exact up to 2^53")]
    fn encode_websockets(&self, exposition: &mut Exposition<'_>) -> fmt::Result {
        let Self(app) = self;
        let open = app.config.max_websockets.get() - app.websockets.available_permits();
        exposition.gauge("ortolan_websockets_open", "Open WebSockets", open as f64)
    }

    #[expect(clippy::cast_precision_loss, reason = "what a metric counts is exact up to 2^53")]
    fn encode_store(&self, exposition: &mut Exposition<'_>) -> fmt::Result {
        let Self(app) = self;
        let Some(store) = app.responder.store() else { return Ok(()) };
        let stats = store.stats();
        exposition.counter("ortolan_store_commits", "Transactions that are durable", stats.commits as f64)?;
        let help = "Time that the writers of these waited, all together";
        exposition.counter("ortolan_store_commit_seconds", help, stats.commit_time.as_secs_f64())?;
        exposition.counter("ortolan_store_errors", "Reads and writes that failed", stats.errors as f64)?;
        let help = "Rows that were not what had been written";
        exposition.counter("ortolan_store_corrupt_rows", help, stats.corrupt_rows as f64)?;
        if let Some(free) = stats.free_bytes {
            exposition.gauge("ortolan_store_free_bytes", "Free bytes beside the embedded database", free as f64)?;
        }
        let unfinished = app.metrics.unfinished.load(Ordering::Relaxed) as f64;
        exposition.gauge("ortolan_background_unfinished", "Background responses that wait or run", unfinished)
    }
}

/// Whose names metrics have beside our own.
#[derive(Clone, Copy, Debug, serde::Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum MetricsCompat {
    /// vLLM's.
    Vllm,
}
