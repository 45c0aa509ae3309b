//! How much one key may ask for: requests and tokens per minute, and replies at once.

use super::api_key::KeyConfig;
use crate::responses::ResponseEvent;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use std::{
    fmt,
    num::{NonZeroU32, NonZeroUsize},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::time::Instant;

/// Nobody knows when a reply ends; one step of the model ends it, if any is about to end.
const WAIT_FOR_A_REPLY: Duration = Duration::from_secs(1);
/// About as many, in most languages and most tokenizers.
const BYTES_PER_TOKEN: usize = 4;

/// A limit that a key has reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Limit {
    /// `requests_per_minute`
    Requests(NonZeroU32),
    /// `tokens_per_minute`
    Tokens(NonZeroU32),
    /// `max_streams`
    Streams(NonZeroUsize),
}

/// As the configuration has it.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requests(limit) => write!(f, "requests_per_minute = {limit}"),
            Self::Tokens(limit) => write!(f, "tokens_per_minute = {limit}"),
            Self::Streams(limit) => write!(f, "max_streams = {limit}"),
        }
    }
}

/// Which limit does not allow a request now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Reached {
    pub(super) limit: Limit,
    /// Until it allows the request, if nothing else is asked for before.
    pub(super) wait: Duration,
}

/// What a request will take, before that is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimate {
    prompt_tokens: usize,
    /// As many as the client asks for; none where it leaves that open.
    output_tokens: usize,
}

impl Estimate {
    /// Of a request's body, which need not be good: what is wrong with it is said elsewhere.
    pub(super) fn new(body: &Value) -> Self {
        // By the names that the protocols have for it.
        const LIMITS: [&str; 3] = ["max_output_tokens", "max_completion_tokens", "max_tokens"];
        let count = |value: &Value| value.as_u64().map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        let limit = LIMITS.iter().find_map(|name| body.get(name).and_then(count)).unwrap_or(0);
        let num_choices = body.get("n").and_then(count).unwrap_or(1).max(1);
        Self {
            prompt_tokens: text_bytes(body).div_ceil(BYTES_PER_TOKEN).max(1),
            output_tokens: limit.saturating_mul(num_choices),
        }
    }

    fn tokens(self) -> usize {
        self.prompt_tokens.saturating_add(self.output_tokens)
    }
}

/// Of the words in a request, without what JSON writes around them.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => BYTES_PER_TOKEN,
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + text_bytes(value)).sum(),
    }
}

/// The limits of one key and what is left of them. Nothing here is shared with another key.
#[derive(Debug)]
pub(super) struct Limits {
    max_streams: Option<NonZeroUsize>,
    left: Mutex<Left>,
}

#[derive(Debug)]
struct Left {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    num_streams: usize,
}

impl Limits {
    /// Nothing taken yet.
    pub(super) fn new(config: &KeyConfig) -> Self {
        let bucket = |per_minute| Bucket::new(per_minute, Instant::now());
        let requests = config.requests_per_minute.map(bucket);
        let tokens = config.tokens_per_minute.map(bucket);
        Self { max_streams: config.max_streams, left: Mutex::new(Left { requests, tokens, num_streams: 0 }) }
    }

    /// Takes all that the request needs, or nothing.
    pub(super) fn admit(self: &Arc<Self>, estimate: Estimate) -> Result<Admission, Reached> {
        let now = Instant::now();
        let mut left = self.left();
        if let Some(limit) = self.max_streams.filter(|limit| limit.get() <= left.num_streams) {
            return Err(Reached { limit: Limit::Streams(limit), wait: WAIT_FOR_A_REPLY });
        }
        if let Some(bucket) = &left.requests {
            bucket.check(1, now).map_err(|wait| Reached { limit: Limit::Requests(bucket.per_minute), wait })?;
        }
        if let Some(bucket) = &left.tokens {
            let checked = bucket.check(estimate.tokens(), now);
            checked.map_err(|wait| Reached { limit: Limit::Tokens(bucket.per_minute), wait })?;
        }
        left.num_streams += 1;
        left.requests.iter_mut().for_each(|bucket| bucket.take(1, now));
        left.tokens.iter_mut().for_each(|bucket| bucket.take(estimate.tokens(), now));
        drop(left);
        let Estimate { prompt_tokens: prompt, output_tokens: expected } = estimate;
        Ok(Admission { limits: Some(self.clone()), prompt, expected, seen: 0 })
    }

    /// A reply that should have had `expected` tokens has ended with so many.
    fn settle(&self, expected: usize, output_tokens: usize) {
        let now = Instant::now();
        let mut left = self.left();
        left.num_streams -= 1;
        if let Some(bucket) = &mut left.tokens {
            bucket.give_back(expected.saturating_sub(output_tokens));
            bucket.take(output_tokens.saturating_sub(expected), now);
        }
    }

    /// Tells the client where it stands.
    pub(super) fn add_headers(&self, headers: &mut HeaderMap) {
        let now = Instant::now();
        let left = self.left();
        let buckets = [(&left.requests, REQUESTS_HEADERS), (&left.tokens, TOKENS_HEADERS)];
        for (bucket, [limit, remaining, reset]) in buckets {
            let Some(bucket) = bucket else { continue };
            headers.insert(HeaderName::from_static(limit), HeaderValue::from(bucket.per_minute.get()));
            headers.insert(HeaderName::from_static(remaining), HeaderValue::from(bucket.remaining(now)));
            let duration = spell_duration(bucket.until_full(now));
            let duration = HeaderValue::from_str(&duration).expect("digits and units are a header value");
            headers.insert(HeaderName::from_static(reset), duration);
        }
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().expect("nothing panics while it holds this")
    }
}

const REQUESTS_HEADERS: [&str; 3] =
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
const TOKENS_HEADERS: [&str; 3] =
    ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];

/// A request that was let in, until its reply ends or its client leaves: held as long as the reply is written.
#[derive(Debug)]
#[must_use = "the reply counts as running for as long as this is held"]
pub(super) struct Admission {
    /// None once the reply has ended, and for callers without limits.
    limits: Option<Arc<Limits>>,
    /// Prompt tokens that are paid for.
    prompt: usize,
    /// Output tokens that are paid for.
    expected: usize,
    /// Output tokens that were sent, as far as can be told.
    seen: usize,
}

impl Admission {
    /// For callers without limits.
    pub(super) const fn unlimited() -> Self {
        Self { limits: None, prompt: 0, expected: 0, seen: 0 }
    }

    /// Notes what the reply has cost so far, so that a client pays for it that leaves before the end.
    pub(super) fn follow(&mut self, event: &ResponseEvent) {
        match event.final_response() {
            Some(response) => match response.usage() {
                Some(usage) => self.charge_all(usage.input_tokens, usage.output_tokens),
                None => self.charge(self.seen),
            },
            // A piece of text is a token, or a little more than one.
            None if event.name().ends_with(".delta") => self.note_piece(),
            None => {}
        }
    }

    /// Another piece of text was sent.
    pub(super) fn note_piece(&mut self) {
        self.seen += 1;
    }

    /// The reply will be written when nobody is there to pay for it, so it costs what it may have: what was asked for, or
    /// what fits the context.
    pub(super) fn charge_estimate(&mut self, context_tokens: usize) {
        self.charge(if self.expected == 0 { context_tokens } else { self.expected });
    }

    /// The reply has ended, and its prompt was known in the end: what it went on from counts, too.
    pub(super) fn charge_all(&mut self, input_tokens: usize, output_tokens: usize) {
        if let Some(limits) = self.limits.take() {
            let estimate = self.prompt.saturating_add(self.expected);
            limits.settle(estimate, input_tokens.saturating_add(output_tokens));
        }
    }

    /// The reply has ended. What it had beyond the estimate is taken, so that later requests wait for it; what it did not
    /// need is given back.
    pub(super) fn charge(&mut self, output_tokens: usize) {
        if let Some(limits) = self.limits.take() {
            limits.settle(self.expected, output_tokens);
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.charge(self.seen);
    }
}

/// Holds what one minute brings, fills evenly, and may owe. All that it knows is when it will be full again (GCRA).
#[derive(Debug)]
struct Bucket {
    per_minute: NonZeroU32,
    start: Instant,
    /// Nanoseconds from `start`.
    full_at: u128,
}

/// In nanoseconds.
const MINUTE: u128 = 60_000_000_000;

impl Bucket {
    fn new(per_minute: NonZeroU32, start: Instant) -> Self {
        Self { per_minute, start, full_at: 0 }
    }

    /// How long it takes to bring so much.
    fn nanos(&self, amount: usize) -> u128 {
        amount as u128 * MINUTE / u128::from(self.per_minute.get())
    }

    fn since_start(&self, now: Instant) -> u128 {
        now.saturating_duration_since(self.start).as_nanos()
    }

    fn nanos_until_full(&self, now: Instant) -> u128 {
        self.full_at.saturating_sub(self.since_start(now))
    }

    fn until_full(&self, now: Instant) -> Duration {
        duration(self.nanos_until_full(now))
    }

    /// Whole ones; none where it owes.
    fn remaining(&self, now: Instant) -> u32 {
        let filled = MINUTE.saturating_sub(self.nanos_until_full(now));
        u32::try_from(filled * u128::from(self.per_minute.get()) / MINUTE).unwrap_or(u32::MAX)
    }

    /// Whether so much may be taken now, else how long that takes. What is more than a minute brings may be taken when
    /// the bucket is full: it would never be there at once.
    fn check(&self, amount: usize, now: Instant) -> Result<(), Duration> {
        let needed = self.nanos_until_full(now) + self.nanos(amount).min(MINUTE);
        if needed <= MINUTE { Ok(()) } else { Err(duration(needed - MINUTE)) }
    }

    /// Also what is not there.
    fn take(&mut self, amount: usize, now: Instant) {
        self.full_at = self.full_at.max(self.since_start(now)).saturating_add(self.nanos(amount));
    }

    fn give_back(&mut self, amount: usize) {
        self.full_at = self.full_at.saturating_sub(self.nanos(amount));
    }
}

fn duration(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Such as `12ms`, `8.64s` or `6m0s`; never less than it is.
pub(super) fn spell_duration(duration: Duration) -> String {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    let (minutes, in_minute) = (millis / 60_000, millis % 60_000);
    let seconds = match (in_minute / 1000, in_minute % 1000) {
        (seconds, 0) => format!("{seconds}s"),
        (seconds, millis) => format!("{seconds}.{}s", format!("{millis:03}").trim_end_matches('0')),
    };
    match minutes {
        0 if millis < 1000 => format!("{millis}ms"),
        0 => seconds,
        _ => format!("{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::KeyHash;
    use serde_json::json;
    use tokio::time::{advance, pause};

    const SECOND: Duration = Duration::from_secs(1);

    fn limits(requests: u32, tokens: u32, streams: usize) -> Arc<Limits> {
        Arc::new(Limits::new(&KeyConfig {
            name: "ci".to_owned(),
            sha256: KeyHash::of(b"ci"),
            tenant: None,
            requests_per_minute: NonZeroU32::new(requests),
            tokens_per_minute: NonZeroU32::new(tokens),
            max_streams: NonZeroUsize::new(streams),
        }))
    }

    fn estimate(prompt_tokens: usize, output_tokens: usize) -> Estimate {
        Estimate { prompt_tokens, output_tokens }
    }

    fn wait(admitted: Result<Admission, Reached>) -> (String, Duration) {
        let reached = admitted.unwrap_err();
        (reached.limit.to_string(), reached.wait)
    }

    #[tokio::test(start_paused = true)]
    async fn a_minutes_requests_may_come_at_once_and_then_as_they_are_earned() {
        let limits = limits(60, 0, 0);
        for _ in 0..60 {
            drop(limits.admit(estimate(1, 0)).unwrap());
        }
        assert_eq!(wait(limits.admit(estimate(1, 0))), ("requests_per_minute = 60".to_owned(), SECOND));
        advance(SECOND - Duration::from_nanos(1)).await;
        assert_eq!(wait(limits.admit(estimate(1, 0))).1, Duration::from_nanos(1));
        advance(Duration::from_nanos(1)).await;
        drop(limits.admit(estimate(1, 0)).unwrap());
        limits.admit(estimate(1, 0)).unwrap_err();
        advance(1000 * SECOND).await;
        let num_admitted = (0..100).filter(|_| limits.admit(estimate(1, 0)).is_ok()).count();
        assert_eq!(num_admitted, 60, "no more than a minute's requests are saved up");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_pays_for_what_it_has_beyond_the_estimate() {
        let limits = limits(0, 60, 0);
        let mut admission = limits.admit(estimate(10, 0)).unwrap();
        admission.charge(80);
        // 30 more than there were.
        assert_eq!(wait(limits.admit(estimate(1, 0))), ("tokens_per_minute = 60".to_owned(), 31 * SECOND));
        drop(admission);
        advance(31 * SECOND).await;
        drop(limits.admit(estimate(1, 0)).unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_asked_for_and_not_said_is_given_back() {
        let limits = limits(0, 60, 0);
        let mut admission = limits.admit(estimate(10, 50)).unwrap();
        limits.admit(estimate(1, 0)).unwrap_err();
        admission.charge(20);
        drop(limits.admit(estimate(30, 0)).unwrap());
        limits.admit(estimate(1, 0)).unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_pays_for_what_was_sent() {
        let limits = limits(0, 60, 1);
        let mut admission = limits.admit(estimate(10, 50)).unwrap();
        admission.seen = 20;
        drop(admission);
        drop(limits.admit(estimate(30, 0)).unwrap());
        limits.admit(estimate(1, 0)).unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_beyond_the_limit_waits_until_nothing_is_owed() {
        let limits = limits(0, 60, 0);
        drop(limits.admit(estimate(1, 0)).unwrap());
        assert_eq!(wait(limits.admit(estimate(usize::MAX, usize::MAX))).1, SECOND);
        advance(SECOND).await;
        let mut admission = limits.admit(estimate(usize::MAX, usize::MAX)).unwrap();
        admission.charge(usize::MAX);
        limits.admit(estimate(1, 0)).unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_holds_its_place_until_it_ends() {
        let limits = limits(2, 0, 1);
        let mut first = limits.admit(estimate(1, 0)).unwrap();
        assert_eq!(wait(limits.admit(estimate(1, 0))), ("max_streams = 1".to_owned(), SECOND));
        first.charge(5);
        // Nothing was taken for the one that was refused.
        let second = limits.admit(estimate(1, 0)).unwrap();
        drop(first);
        assert_eq!(limits.left().num_streams, 1, "an ended reply ends once");
        drop(second);
        assert_eq!(limits.left().num_streams, 0);
    }

    /// A hundred times the limit of one key, between the requests of another.
    #[tokio::test(start_paused = true)]
    async fn keys_do_not_disturb_each_other() {
        let (greedy, modest) = (limits(60, 600, 1), limits(60, 600, 1));
        let mut num_admitted = 0;
        for _ in 0..120 {
            for _ in 0..100 {
                num_admitted += usize::from(greedy.admit(estimate(10, 0)).is_ok());
            }
            drop(modest.admit(estimate(10, 0)).unwrap());
            advance(SECOND).await;
        }
        assert_eq!(num_admitted, 60 + 119, "and it gets what is its own");
    }

    #[tokio::test]
    async fn headers_tell_what_is_left() {
        pause();
        let limits = limits(60, 6000, 0);
        let headers = |limits: &Limits| {
            let mut headers = HeaderMap::new();
            limits.add_headers(&mut headers);
            let mut lines: Vec<String> =
                headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
            lines.sort();
            lines.join("\n")
        };
        let mut admission = limits.admit(estimate(1000, 100)).unwrap();
        insta::assert_snapshot!(headers(&limits), @"
        x-ratelimit-limit-requests: 60
        x-ratelimit-limit-tokens: 6000
        x-ratelimit-remaining-requests: 59
        x-ratelimit-remaining-tokens: 4900
        x-ratelimit-reset-requests: 1s
        x-ratelimit-reset-tokens: 11s
        ");
        admission.charge(36_000);
        insta::assert_snapshot!(headers(&limits), @"
        x-ratelimit-limit-requests: 60
        x-ratelimit-limit-tokens: 6000
        x-ratelimit-remaining-requests: 59
        x-ratelimit-remaining-tokens: 0
        x-ratelimit-reset-requests: 1s
        x-ratelimit-reset-tokens: 6m10s
        ");
        assert_eq!(headers(&self::limits(0, 0, 1)), "");
    }

    #[test]
    fn durations_are_spelled_as_clients_read_them() {
        let spelled = [0, 1, 12, 999, 1000, 1500, 8640, 59_999, 60_000, 360_000, 361_050].map(|millis| {
            let duration = Duration::from_millis(millis);
            assert_eq!(spell_duration(duration.saturating_sub(Duration::from_nanos(1))), spell_duration(duration));
            spell_duration(duration)
        });
        insta::assert_snapshot!(spelled.join(" "), @"0ms 1ms 12ms 999ms 1s 1.5s 8.64s 59.999s 1m0s 6m0s 6m1.05s");
    }

    #[test]
    fn an_estimate_is_made_of_the_words() {
        let tokens = |body| Estimate::new(&body).tokens();
        assert_eq!(tokens(json!({})), 1);
        assert_eq!(tokens(json!({ "input": "x".repeat(395) })), 100);
        assert_eq!(tokens(json!({ "input": [{ "text": "x".repeat(391) }] })), 100);
        assert_eq!(tokens(json!([1, true, null])), 3);
        let asked = |body: Value| Estimate::new(&body).output_tokens;
        assert_eq!(asked(json!({ "max_output_tokens": 50 })), 50);
        assert_eq!(asked(json!({ "max_completion_tokens": 50, "max_tokens": 20, "n": 3 })), 150);
        assert_eq!(asked(json!({ "max_tokens": u64::MAX, "n": u64::MAX })), usize::MAX);
        assert_eq!(asked(json!({ "max_output_tokens": -1, "n": 0 })), 0);
    }
}
