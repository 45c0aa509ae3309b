//! Every failure a client can see as a status. The only place that knows status codes.

use super::limits::{Limit, spell_duration};
use crate::{
    chat::ChatError,
    engine::EngineError,
    responses::{Failure, InvalidRequest, Kind, ResponsesError},
    store::StoreError,
};
use actix_web::{
    HttpResponse, ResponseError,
    http::{Method, StatusCode, header},
};
use serde_json::{Value, json};
use std::time::Duration;

/// A failure before the first byte of the reply.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The request cannot be answered.
    #[error(transparent)]
    Responses(#[from] ResponsesError),
    /// The same of a completion, whose fields have names of their own.
    #[error("{error}")]
    Completion {
        /// Why.
        error: Box<ResponsesError>,
        /// What its `input` is called.
        input: &'static str,
    },
    /// The reply failed, and none of it was sent.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// Perhaps a web page that had its own name resolve to this server.
    #[error("the server does not answer to the host `{host}`; name it in `server.allowed_hosts`")]
    UnknownHost {
        /// As the client sent it, cut.
        host: String,
    },
    /// None, or one that is not let in: a client is not told which.
    #[error("a valid API key is needed; send it as `Authorization: Bearer KEY`")]
    InvalidKey,
    /// The key has asked for more than it may.
    #[error("the API key `{key}` has reached its limit `{limit}`; try again in {}", spell_duration(*wait))]
    RateLimited {
        /// Its name.
        key: String,
        /// Which one.
        limit: Limit,
        /// Until the same request is let in.
        wait: Duration,
    },
    /// No such path.
    #[error("unknown request URL: {method} {path}; see GET /v1/models and POST /v1/responses")]
    UnknownUrl {
        /// As the client sent it.
        method: Method,
        /// As the client sent it, cut.
        path: String,
    },
    /// The path is known and the method is not.
    #[error("{method} is not allowed here; allowed: {allowed}")]
    MethodNotAllowed {
        /// As the client sent it.
        method: Method,
        /// Joined by commas.
        allowed: String,
    },
    /// Also keeps web pages from posting here unasked: a browser sends JSON across origins only after a preflight.
    #[error("the body must be sent with `Content-Type: application/json`")]
    NotJson,
    /// A small body could unpack to a huge one.
    #[error("the body must be sent without a `Content-Encoding`")]
    EncodedBody,
    /// Nothing was sent.
    #[error("the body is empty, and it must be a JSON object")]
    EmptyBody,
    /// The body does not parse.
    #[error("the body is not valid JSON: {0}")]
    MalformedJson(#[source] serde_json::Error),
    /// Not what a form would send.
    #[error("what follows the `?` of the address cannot be read; escape it as `name=value&name=value`")]
    MalformedQuery,
    /// The body ended early or was framed wrongly.
    #[error("the body could not be read to its end")]
    BrokenBody,
    /// The limit is a setting.
    #[error("the body is larger than {max_bytes} bytes, which is the limit")]
    BodyTooLarge {
        /// `server.max_body_bytes`
        max_bytes: usize,
    },
    /// The limit is a setting.
    #[error("the body did not arrive within {seconds} seconds, which is the limit")]
    BodyTimeout {
        /// `server.body_timeout`
        seconds: u64,
    },
    /// Perhaps a page that has no business here.
    #[error("pages of `{origin}` may not connect; name it in `server.allowed_origins`")]
    UnknownOrigin {
        /// As the client sent it, cut.
        origin: String,
    },
    /// The client should connect later.
    #[error("{max} WebSocket connections are open, which is the limit; try again later")]
    TooManyWebSockets {
        /// `server.max_websockets`
        max: usize,
    },
    /// The request to become one is wrong.
    #[error("this is no request for a WebSocket that can be met: {message}")]
    NoWebSocket {
        /// What is wrong.
        message: String,
    },
    /// The client should connect anew.
    #[error("the connection has been open for {seconds} seconds, which is the limit; connect again")]
    WebSocketTooOld {
        /// `server.websocket_timeout`
        seconds: u64,
    },
    /// The client should wait for replies.
    #[error("{max} requests wait on this connection, which is the limit; wait for their replies")]
    TooManyTurns {
        /// On one connection.
        max: usize,
    },
    /// What HTTP has and a WebSocket does not need.
    #[error("`{name}` is not for a WebSocket, over which every reply is streamed; leave it out")]
    NotOverWebSocket {
        /// The field.
        name: &'static str,
    },
    /// The client should send something else.
    #[error("`type` is no event that this server knows; send `response.create`")]
    UnknownClientEvent,
    /// The client should choose another name.
    #[error("`stream_id` must be a text of 1 to {max_chars} letters, digits, `_`, `.` and `-`")]
    InvalidLane {
        /// Longest one.
        max_chars: usize,
    },
    /// A signal came.
    #[error("the server is shutting down; send the request again")]
    Draining,
    /// A bug of ours.
    #[error("the server failed to answer this request; its log says why")]
    Panicked,
}

/// What distinguishes one error from another on the wire.
struct Description {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    retry: Retry,
}

/// What a client should do next.
enum Retry {
    /// The same request would fail again.
    Never,
    /// The client's own policy is as good as any.
    Unsaid,
    /// The request was not the cause.
    AtOnce,
    /// The cause passes.
    After(Duration),
}

/// One step of the model frees a slot, if any is about to be freed.
const RETRY_WHEN_FULL: Retry = Retry::After(Duration::from_secs(1));
/// A restart takes this long at least.
const RETRY_WHEN_STOPPED: Retry = Retry::After(Duration::from_secs(5));

/// Overrules what OpenAI's SDKs make of the status.
const SHOULD_RETRY: &str = "x-should-retry";

const fn refused(status: StatusCode, code: &'static str) -> Description {
    Description { status, kind: "invalid_request_error", code, retry: Retry::Never }
}

const fn failed(retry: Retry) -> Description {
    Description { status: StatusCode::INTERNAL_SERVER_ERROR, kind: "server_error", code: "server_error", retry }
}

const fn unavailable() -> Description {
    let (status, kind) = (StatusCode::SERVICE_UNAVAILABLE, "service_unavailable");
    Description { status, kind, code: kind, retry: RETRY_WHEN_STOPPED }
}

const fn rate_limited(retry: Retry) -> Description {
    let status = StatusCode::TOO_MANY_REQUESTS;
    Description { status, kind: "rate_limit_error", code: "rate_limit_exceeded", retry }
}

impl ApiError {
    /// No wildcard: a new error must choose its own.
    fn describe(&self) -> Description {
        use StatusCode as S;
        match self {
            Self::Responses(error) => describe_refusal(error),
            Self::Completion { error, .. } => describe_refusal(error),
            Self::Failed(Failure::Model) => failed(Retry::AtOnce),
            Self::Failed(Failure::EngineLost) => failed(RETRY_WHEN_STOPPED),
            Self::Failed(Failure::OutOfMemory) => failed(RETRY_WHEN_FULL),
            Self::Failed(Failure::Refused { .. }) => refused(S::BAD_REQUEST, "invalid_prompt"),
            Self::Failed(Failure::Shutdown | Failure::Restarted | Failure::Interrupted { .. }) | Self::Draining => {
                unavailable()
            }
            Self::UnknownHost { .. } => refused(S::FORBIDDEN, "host_not_allowed"),
            Self::InvalidKey => {
                let kind = "authentication_error";
                Description { kind, ..refused(S::UNAUTHORIZED, "invalid_api_key") }
            }
            Self::RateLimited { wait, .. } => rate_limited(Retry::After(*wait)),
            Self::UnknownUrl { .. } => refused(S::NOT_FOUND, "unknown_url"),
            Self::MethodNotAllowed { .. } => refused(S::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::NotJson => refused(S::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_type"),
            Self::EncodedBody => refused(S::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_encoding"),
            Self::EmptyBody | Self::MalformedJson(_) => refused(S::BAD_REQUEST, "invalid_json"),
            Self::MalformedQuery => refused(S::BAD_REQUEST, "invalid_query"),
            Self::BrokenBody => refused(S::BAD_REQUEST, "incomplete_body"),
            Self::BodyTooLarge { .. } => refused(S::PAYLOAD_TOO_LARGE, "request_too_large"),
            Self::BodyTimeout { .. } => {
                Description { retry: Retry::Unsaid, ..refused(S::REQUEST_TIMEOUT, "request_timeout") }
            }
            Self::UnknownOrigin { .. } => refused(S::FORBIDDEN, "origin_not_allowed"),
            Self::TooManyWebSockets { .. } => Description { code: "too_many_connections", ..unavailable() },
            Self::NoWebSocket { .. } => refused(S::BAD_REQUEST, "invalid_upgrade"),
            Self::WebSocketTooOld { .. } => refused(S::BAD_REQUEST, "websocket_connection_limit_reached"),
            Self::TooManyTurns { .. } => Description {
                status: S::TOO_MANY_REQUESTS,
                kind: "rate_limit_error",
                code: "rate_limit_exceeded",
                retry: RETRY_WHEN_FULL,
            },
            Self::NotOverWebSocket { .. } => refused(S::BAD_REQUEST, "unsupported_parameter"),
            Self::UnknownClientEvent | Self::InvalidLane { .. } => refused(S::BAD_REQUEST, "invalid_value"),
            Self::Panicked => failed(Retry::Unsaid),
        }
    }

    /// What clients know it by.
    pub(super) fn code(&self) -> &'static str {
        self.describe().code
    }

    /// The object with the four keys.
    pub(super) fn body(&self) -> Value {
        let Description { kind, code, .. } = self.describe();
        json!({ "message": self.to_string(), "type": kind, "param": self.param(), "code": code })
    }

    /// The field that is to blame.
    fn param(&self) -> Option<&str> {
        match self {
            Self::Responses(error) => error.param(),
            Self::Completion { error, input } => match error.param() {
                Some("input") => Some(input),
                Some("text.format") => Some("response_format"),
                param => param,
            },
            Self::Failed(_)
            | Self::UnknownHost { .. }
            | Self::InvalidKey
            | Self::RateLimited { .. }
            | Self::UnknownUrl { .. }
            | Self::MethodNotAllowed { .. }
            | Self::NotJson
            | Self::EncodedBody
            | Self::EmptyBody
            | Self::MalformedJson(_)
            | Self::MalformedQuery
            | Self::BrokenBody
            | Self::BodyTooLarge { .. }
            | Self::BodyTimeout { .. }
            | Self::UnknownOrigin { .. }
            | Self::TooManyWebSockets { .. }
            | Self::NoWebSocket { .. }
            | Self::WebSocketTooOld { .. }
            | Self::TooManyTurns { .. }
            | Self::Draining
            | Self::Panicked => None,
            Self::NotOverWebSocket { name } => Some(name),
            Self::UnknownClientEvent => Some("type"),
            Self::InvalidLane { .. } => Some("stream_id"),
        }
    }
}

fn describe_refusal(error: &ResponsesError) -> Description {
    use StatusCode as S;
    match error {
        ResponsesError::Invalid(error) => refused(S::BAD_REQUEST, error.code),
        ResponsesError::Chat(error) => describe_chat(error),
        ResponsesError::Store(error) => describe_store(error),
        ResponsesError::NotFound { kind, .. } => refused(
            S::NOT_FOUND,
            match kind {
                Kind::Response => "response_not_found",
                Kind::Item => "item_not_found",
                Kind::Conversation => "conversation_not_found",
            },
        ),
        ResponsesError::NotBackground { .. } => refused(S::BAD_REQUEST, "response_not_background"),
        ResponsesError::BackgroundFull { .. } => Description {
            status: S::TOO_MANY_REQUESTS,
            kind: "rate_limit_error",
            code: "rate_limit_exceeded",
            retry: RETRY_WHEN_STOPPED,
        },
    }
}

fn describe_store(error: &StoreError) -> Description {
    match error {
        StoreError::TooLong => refused(StatusCode::BAD_REQUEST, "context_length_exceeded"),
        StoreError::Corrupt { .. } => failed(Retry::Never),
        StoreError::Unavailable
        | StoreError::Sqlite(_)
        | StoreError::Postgres(_)
        | StoreError::Unreachable(_)
        | StoreError::TimedOut
        | StoreError::Stopped
        // At start only.
        | StoreError::NoPath
        | StoreError::Folder { .. }
        | StoreError::Open { .. }
        | StoreError::Url { .. }
        | StoreError::Newer { .. } => Description { code: "store_unavailable", ..unavailable() },
    }
}

fn describe_chat(error: &ChatError) -> Description {
    use StatusCode as S;
    match error {
        ChatError::UnknownModel { .. } => refused(S::NOT_FOUND, "model_not_found"),
        ChatError::LoadQueueFull { .. } => Description { code: "model_loading", ..unavailable() },
        ChatError::LoadFailed { retry_seconds, .. } => {
            let retry = Retry::After(Duration::from_secs(*retry_seconds));
            Description { code: "model_load_failed", retry, ..unavailable() }
        }
        ChatError::Panicked => failed(Retry::Never),
        ChatError::Template { .. } | ChatError::Tokenizer(_) => refused(S::BAD_REQUEST, "invalid_value"),
        ChatError::InvalidFormat { .. } | ChatError::InvalidTool { .. } => {
            refused(S::BAD_REQUEST, "invalid_json_schema")
        }
        ChatError::NoGrammar | ChatError::NoForcedCall => refused(S::BAD_REQUEST, "unsupported_value"),
        ChatError::PromptTooLarge { .. } => refused(S::BAD_REQUEST, "context_length_exceeded"),
        ChatError::Engine(error) => match error {
            EngineError::PromptTooLong { .. } => refused(S::BAD_REQUEST, "context_length_exceeded"),
            EngineError::UnknownToken { .. } => refused(S::BAD_REQUEST, "invalid_value"),
            EngineError::QueueFull { .. } | EngineError::TooManyTokensWaiting { .. } => rate_limited(RETRY_WHEN_FULL),
            EngineError::Stopped => unavailable(),
        },
    }
}

impl From<InvalidRequest> for ApiError {
    fn from(error: InvalidRequest) -> Self {
        Self::Responses(error.into())
    }
}

impl From<ChatError> for ApiError {
    fn from(error: ChatError) -> Self {
        Self::Responses(error.into())
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.describe().status
    }

    fn error_response(&self) -> HttpResponse {
        let Description { status, retry, .. } = self.describe();
        let mut response = HttpResponse::build(status);
        match retry {
            Retry::Never => {
                response.insert_header((SHOULD_RETRY, "false"));
            }
            Retry::Unsaid => {}
            Retry::AtOnce => {
                response.insert_header((SHOULD_RETRY, "true"));
            }
            Retry::After(wait) => {
                // Never too early.
                let millis = wait.as_nanos().div_ceil(1_000_000);
                response.insert_header((SHOULD_RETRY, "true"));
                response.insert_header((header::RETRY_AFTER, millis.div_ceil(1000).to_string()));
                response.insert_header(("retry-after-ms", millis.to_string()));
            }
        }
        if let Self::MethodNotAllowed { allowed, .. } = self {
            response.insert_header((header::ALLOW, allowed.as_str()));
        }
        if matches!(self, Self::InvalidKey) {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        response.json(json!({ "error": self.body() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::body::to_bytes;
    use futures::FutureExt;
    use std::num::NonZeroU32;

    fn describe(error: impl Into<ApiError>) -> String {
        let response = error.into().error_response();
        let header = |name| response.headers().get(name).map_or("-", |value| value.to_str().unwrap());
        let (should_retry, retry_after) = (header("x-should-retry"), header("retry-after"));
        let line = format!("{} {should_retry} {retry_after} ", response.status().as_u16());
        let body = to_bytes(response.into_body()).now_or_never().unwrap().ok().unwrap();
        line + std::str::from_utf8(&body).unwrap() + "\n"
    }

    #[test]
    fn each_error_has_its_status() {
        let (requested, served) = ("gpt".to_owned(), "tiny".to_owned());
        let invalid =
            InvalidRequest { param: Some("top_p".to_owned()), code: "invalid_type", message: "bad".to_owned() };
        let chat = |error: EngineError| ChatError::from(error);
        let errors = [
            describe(invalid),
            describe(ChatError::UnknownModel { requested, served }),
            describe(ChatError::LoadQueueFull { model: "tiny".to_owned(), capacity: 8 }),
            describe(ChatError::LoadFailed { model: "tiny".to_owned(), retry_seconds: 3 }),
            describe(ChatError::Template { message: "no".to_owned() }),
            describe(ChatError::PromptTooLarge { bytes: 9, max_bytes: 8 }),
            describe(chat(EngineError::PromptTooLong { prompt_tokens: 9, context_tokens: 8 })),
            describe(chat(EngineError::UnknownToken { token: 9, vocab_size: 8 })),
            describe(chat(EngineError::QueueFull { capacity: 8 })),
            describe(chat(EngineError::TooManyTokensWaiting { capacity: 4096 })),
            describe(chat(EngineError::Stopped)),
            describe(Failure::Model),
            describe(Failure::OutOfMemory),
            describe(Failure::EngineLost),
            describe(Failure::Shutdown),
            describe(ApiError::InvalidKey),
            describe(ApiError::RateLimited {
                key: "ci".to_owned(),
                limit: Limit::Requests(NonZeroU32::new(60).unwrap()),
                wait: Duration::from_micros(1_200_100),
            }),
            describe(ApiError::UnknownUrl { method: Method::GET, path: "/v1/nope".to_owned() }),
            describe(ApiError::MethodNotAllowed { method: Method::PUT, allowed: "POST".to_owned() }),
            describe(ApiError::NotJson),
            describe(ApiError::EncodedBody),
            describe(ApiError::EmptyBody),
            describe(ApiError::MalformedJson(serde_json::from_str::<()>("{").unwrap_err())),
            describe(ApiError::BrokenBody),
            describe(ApiError::BodyTooLarge { max_bytes: 8 }),
            describe(ApiError::BodyTimeout { seconds: 8 }),
            describe(ApiError::Draining),
            describe(ApiError::Panicked),
        ];
        insta::assert_snapshot!(errors.concat(), @r#"
        400 false - {"error":{"message":"bad","type":"invalid_request_error","param":"top_p","code":"invalid_type"}}
        404 false - {"error":{"message":"the model `gpt` is not served here; served: tiny","type":"invalid_request_error","param":"model","code":"model_not_found"}}
        503 true 5 {"error":{"message":"the model `tiny` is being loaded and 8 requests wait for it already, which is the limit; try again later","type":"service_unavailable","param":"model","code":"model_loading"}}
        503 true 3 {"error":{"message":"the model `tiny` could not be loaded and the log says why; try again in 3 seconds","type":"service_unavailable","param":"model","code":"model_load_failed"}}
        400 false - {"error":{"message":"the model's chat template rejected the messages: no","type":"invalid_request_error","param":"input","code":"invalid_value"}}
        400 false - {"error":{"message":"the prompt has 9 bytes, more than the 8 that can fit the model's context; shorten the input","type":"invalid_request_error","param":"input","code":"context_length_exceeded"}}
        400 false - {"error":{"message":"the prompt has 9 tokens and the model's context holds 8, the reply included; shorten the input","type":"invalid_request_error","param":"input","code":"context_length_exceeded"}}
        400 false - {"error":{"message":"token 9 is not in the model's vocabulary of 8 tokens","type":"invalid_request_error","param":"logit_bias","code":"invalid_value"}}
        429 true 1 {"error":{"message":"8 requests are waiting already, which is the limit; try again later","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}
        429 true 1 {"error":{"message":"prompts of 4096 tokens are waiting already, which is the limit; try again later","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}
        503 true 5 {"error":{"message":"the engine has stopped; try again later","type":"service_unavailable","param":null,"code":"service_unavailable"}}
        500 true - {"error":{"message":"the model failed while it wrote this reply; send the request again","type":"server_error","param":null,"code":"server_error"}}
        500 true 1 {"error":{"message":"the memory of the model's device ran out while it wrote this reply; send the request again later, and where that goes on, have `engine.max_batch_size`, `engine.max_step_tokens` or `engine.max_context_tokens` lowered","type":"server_error","param":null,"code":"server_error"}}
        500 true 5 {"error":{"message":"the engine was lost while it wrote this reply; send the request again","type":"server_error","param":null,"code":"server_error"}}
        503 true 5 {"error":{"message":"the server is shutting down; send the request again","type":"service_unavailable","param":null,"code":"service_unavailable"}}
        401 false - {"error":{"message":"a valid API key is needed; send it as `Authorization: Bearer KEY`","type":"authentication_error","param":null,"code":"invalid_api_key"}}
        429 true 2 {"error":{"message":"the API key `ci` has reached its limit `requests_per_minute = 60`; try again in 1.201s","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}
        404 false - {"error":{"message":"unknown request URL: GET /v1/nope; see GET /v1/models and POST /v1/responses","type":"invalid_request_error","param":null,"code":"unknown_url"}}
        405 false - {"error":{"message":"PUT is not allowed here; allowed: POST","type":"invalid_request_error","param":null,"code":"method_not_allowed"}}
        415 false - {"error":{"message":"the body must be sent with `Content-Type: application/json`","type":"invalid_request_error","param":null,"code":"unsupported_content_type"}}
        415 false - {"error":{"message":"the body must be sent without a `Content-Encoding`","type":"invalid_request_error","param":null,"code":"unsupported_content_encoding"}}
        400 false - {"error":{"message":"the body is empty, and it must be a JSON object","type":"invalid_request_error","param":null,"code":"invalid_json"}}
        400 false - {"error":{"message":"the body is not valid JSON: invalid type: map, expected unit at line 1 column 0","type":"invalid_request_error","param":null,"code":"invalid_json"}}
        400 false - {"error":{"message":"the body could not be read to its end","type":"invalid_request_error","param":null,"code":"incomplete_body"}}
        413 false - {"error":{"message":"the body is larger than 8 bytes, which is the limit","type":"invalid_request_error","param":null,"code":"request_too_large"}}
        408 - - {"error":{"message":"the body did not arrive within 8 seconds, which is the limit","type":"invalid_request_error","param":null,"code":"request_timeout"}}
        503 true 5 {"error":{"message":"the server is shutting down; send the request again","type":"service_unavailable","param":null,"code":"service_unavailable"}}
        500 - - {"error":{"message":"the server failed to answer this request; its log says why","type":"server_error","param":null,"code":"server_error"}}
        "#);
    }

    #[test]
    fn so_has_each_of_what_is_kept_and_of_websockets() {
        let errors = [
            describe(ResponsesError::NotFound { kind: Kind::Response, id: "resp_1".to_owned() }),
            describe(ResponsesError::NotFound { kind: Kind::Item, id: "msg_1".to_owned() }),
            describe(ResponsesError::NotFound { kind: Kind::Conversation, id: "conv_1".to_owned() }),
            describe(ResponsesError::NotBackground { id: "resp_1".to_owned() }),
            describe(ResponsesError::BackgroundFull { max: 8 }),
            describe(ResponsesError::from(StoreError::Unavailable)),
            describe(ResponsesError::from(StoreError::TooLong)),
            describe(ResponsesError::from(StoreError::Corrupt { id: "resp_1".to_owned() })),
            describe(ApiError::MalformedQuery),
            describe(ApiError::UnknownOrigin { origin: "https://evil.example".to_owned() }),
            describe(ApiError::TooManyWebSockets { max: 8 }),
            describe(ApiError::NoWebSocket { message: "no key".to_owned() }),
            describe(ApiError::WebSocketTooOld { seconds: 3600 }),
            describe(ApiError::TooManyTurns { max: 8 }),
            describe(ApiError::NotOverWebSocket { name: "stream" }),
            describe(ApiError::UnknownClientEvent),
            describe(ApiError::InvalidLane { max_chars: 8 }),
        ];
        insta::assert_snapshot!(errors.concat(), @r#"
        404 false - {"error":{"message":"Response with id 'resp_1' not found.","type":"invalid_request_error","param":null,"code":"response_not_found"}}
        404 false - {"error":{"message":"Item with id 'msg_1' not found.","type":"invalid_request_error","param":null,"code":"item_not_found"}}
        404 false - {"error":{"message":"Conversation with id 'conv_1' not found.","type":"invalid_request_error","param":null,"code":"conversation_not_found"}}
        400 false - {"error":{"message":"the response 'resp_1' was not made in the background, and only such a response can be cancelled","type":"invalid_request_error","param":null,"code":"response_not_background"}}
        429 true 5 {"error":{"message":"8 background responses have not ended yet, which is the limit; try again later","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}
        503 true 5 {"error":{"message":"nothing can be stored at the moment; try again later, or send `store: false`","type":"service_unavailable","param":null,"code":"store_unavailable"}}
        400 false - {"error":{"message":"the conversation has become too long to go on from; compact it, and send what remains as `input`","type":"invalid_request_error","param":"input","code":"context_length_exceeded"}}
        500 false - {"error":{"message":"what was stored as `resp_1` is damaged and cannot be read","type":"server_error","param":null,"code":"server_error"}}
        400 false - {"error":{"message":"what follows the `?` of the address cannot be read; escape it as `name=value&name=value`","type":"invalid_request_error","param":null,"code":"invalid_query"}}
        403 false - {"error":{"message":"pages of `https://evil.example` may not connect; name it in `server.allowed_origins`","type":"invalid_request_error","param":null,"code":"origin_not_allowed"}}
        503 true 5 {"error":{"message":"8 WebSocket connections are open, which is the limit; try again later","type":"service_unavailable","param":null,"code":"too_many_connections"}}
        400 false - {"error":{"message":"this is no request for a WebSocket that can be met: no key","type":"invalid_request_error","param":null,"code":"invalid_upgrade"}}
        400 false - {"error":{"message":"the connection has been open for 3600 seconds, which is the limit; connect again","type":"invalid_request_error","param":null,"code":"websocket_connection_limit_reached"}}
        429 true 1 {"error":{"message":"8 requests wait on this connection, which is the limit; wait for their replies","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}
        400 false - {"error":{"message":"`stream` is not for a WebSocket, over which every reply is streamed; leave it out","type":"invalid_request_error","param":"stream","code":"unsupported_parameter"}}
        400 false - {"error":{"message":"`type` is no event that this server knows; send `response.create`","type":"invalid_request_error","param":"type","code":"invalid_value"}}
        400 false - {"error":{"message":"`stream_id` must be a text of 1 to 8 letters, digits, `_`, `.` and `-`","type":"invalid_request_error","param":"stream_id","code":"invalid_value"}}
        "#);
    }
}
