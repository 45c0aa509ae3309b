//! Around every request: its id, the headers that each answer has, one line in the log, and a 500 where a handler
//! panics. The line comes when the last byte is sent or the client has left. It never holds contents.

use super::{ApiError, AppState, auth::Caller, metrics::Metrics};
use crate::responses::{Response, Status};
use actix_web::{
    Error, HttpMessage, HttpResponse,
    body::{BodySize, BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    error::InternalError,
    http::{
        Method, StatusCode,
        header::{HeaderMap, HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};
use bytes::Bytes;
use futures::FutureExt;
use std::{
    cell::RefCell,
    panic::AssertUnwindSafe,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};
use uuid::Uuid;

/// A path is the client's, so no more of it than this.
const MAX_PATH_CHARS: usize = 128;

/// What the handler of a generation adds to the line.
#[derive(Clone, Debug, Default)]
pub(super) struct Generation(Rc<RefCell<Outcome>>);

#[derive(Debug, Default)]
struct Outcome {
    model: Option<String>,
    input_tokens: Option<usize>,
    output_tokens: Option<usize>,
    finish: Option<&'static str>,
}

impl Generation {
    pub(super) fn set_model(&self, name: &str) {
        self.0.borrow_mut().model = Some(name.to_owned());
    }

    pub(super) fn set_usage(&self, input_tokens: usize, output_tokens: usize, finish: &'static str) {
        let mut outcome = self.0.borrow_mut();
        (outcome.input_tokens, outcome.output_tokens) = (Some(input_tokens), Some(output_tokens));
        outcome.finish = Some(finish);
    }

    /// Of a reply that has no usage.
    pub(super) fn set_failed(&self) {
        self.0.borrow_mut().finish = Some(Status::Failed.name());
    }

    pub(super) fn set_outcome(&self, response: &Response) {
        let mut outcome = self.0.borrow_mut();
        outcome.input_tokens = response.usage().map(|usage| usage.input_tokens);
        outcome.output_tokens = response.usage().map(|usage| usage.output_tokens);
        outcome.finish = Some(response.status().name());
    }
}

/// The line, written on drop: that is how a client's leaving shows.
struct RequestLog {
    request_id: String,
    started: Instant,
    method: Method,
    /// The pattern that the path matches, else the path, cut.
    route: String,
    /// Its name.
    key: Option<String>,
    status: Option<StatusCode>,
    is_sent: bool,
    generation: Generation,
    metrics: Metrics,
    /// Whether the path matches a pattern.
    is_known: bool,
}

impl RequestLog {
    fn begin(request: &ServiceRequest) -> Self {
        let app = request.app_data::<web::Data<AppState>>().expect("every app has its state");
        let metrics = app.metrics.clone();
        metrics.in_flight().inc();
        let pattern = request.match_pattern();
        Self {
            request_id: format!("req_{}", Uuid::new_v4().simple()),
            started: Instant::now(),
            method: request.method().clone(),
            is_known: pattern.is_some(),
            route: pattern.unwrap_or_else(|| request.path().chars().take(MAX_PATH_CHARS).collect()),
            key: None,
            status: None,
            is_sent: false,
            generation: Generation::default(),
            metrics,
        }
    }

    fn duration_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn add_headers(&self, headers: &mut HeaderMap) {
        let request_id = HeaderValue::from_str(&self.request_id).expect("hexadecimal is a header value");
        headers.insert(HeaderName::from_static("x-request-id"), request_id);
        headers.insert(HeaderName::from_static("openai-processing-ms"), HeaderValue::from(self.duration_ms()));
        headers.insert(HeaderName::from_static("openai-version"), HeaderValue::from_static("2020-10-01"));
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        self.metrics.in_flight().dec();
        // 499 as other servers count a client that left before there was an answer.
        let status = self.status.map_or(499, |status| status.as_u16());
        self.metrics.count_request(self.is_known.then_some(&self.route), status);
        let outcome = self.generation.0.borrow();
        let finish = if self.is_sent { outcome.finish } else { Some("client_closed") };
        tracing::info!(
            method = self.method.as_str(),
            route = self.route,
            status = self.status.map(|status| status.as_u16()),
            request_id = self.request_id,
            key = self.key,
            duration_ms = self.duration_ms(),
            model = outcome.model,
            input_tokens = outcome.input_tokens,
            output_tokens = outcome.output_tokens,
            finish,
            "request"
        );
    }
}

/// The middleware.
pub(super) async fn observe(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<LoggedBody>, Error> {
    let mut log = RequestLog::begin(&request);
    request.extensions_mut().insert(log.generation.clone());
    let answer = AssertUnwindSafe(async { next.call(request).await }).catch_unwind().await;

    let mut response = match answer {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(log.answer_error(error)),
        Err(_panic) => {
            log.metrics.count_panic();
            return Err(log.answer_error(ApiError::Panicked.into()));
        }
    };
    log.add_headers(response.headers_mut());
    log.status = Some(response.status());
    if let Some(refusal) = response.response().error().and_then(|error| error.as_error::<ApiError>()) {
        log.metrics.count_rejection(refusal.code());
    }
    log.key = response.request().extensions().get().and_then(Caller::name).map(str::to_owned);
    Ok(response.map_body(|_, body| LoggedBody::new(body.boxed(), log)))
}

impl RequestLog {
    /// Without a request there is no response to give back, but an error can carry one.
    fn answer_error(mut self, error: Error) -> Error {
        if let Some(refusal) = error.as_error::<ApiError>() {
            self.metrics.count_rejection(refusal.code());
        }
        let mut response: HttpResponse = error.error_response();
        self.add_headers(response.headers_mut());
        self.status = Some(response.status());
        self.is_sent = true;
        InternalError::from_response(error, response).into()
    }
}

/// A body that ends the line when it ends.
pub(super) struct LoggedBody {
    body: BoxBody,
    log: RequestLog,
}

impl LoggedBody {
    fn new(body: BoxBody, mut log: RequestLog) -> Self {
        // Nobody polls a body that has nothing to send.
        log.is_sent = body.size().is_eof() || log.method == Method::HEAD;
        Self { body, log }
    }
}

impl MessageBody for LoggedBody {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_next(context);
        if matches!(polled, Poll::Ready(None)) {
            self.log.is_sent = true;
        }
        polled
    }
}
