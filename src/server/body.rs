//! Request bodies, within limits of size and time.

use super::{ApiError, ServerConfig};
use actix_web::{HttpMessage, HttpRequest, http::header, web};
use bytes::Bytes;
use serde_json::Value;

/// The body as JSON. Whatever is wrong with it is the client's to mend.
///
/// # Errors
/// Of the headers first, so that a body which cannot be used is not read.
pub(super) async fn read_json(
    request: &HttpRequest,
    payload: web::Payload,
    config: &ServerConfig,
) -> Result<Value, ApiError> {
    check_headers(request, config)?;
    let body = read_bytes(payload, config).await?;
    if body.is_empty() {
        return Err(ApiError::EmptyBody);
    }
    // The parser itself refuses to go deeper than 128.
    serde_json::from_slice(&body).map_err(ApiError::MalformedJson)
}

fn check_headers(request: &HttpRequest, config: &ServerConfig) -> Result<(), ApiError> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    if !request.content_type().eq_ignore_ascii_case("application/json") {
        return Err(ApiError::NotJson);
    }
    let encoding = request.headers().get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(ApiError::EncodedBody);
    }
    let max_bytes = config.max_body_bytes.get();
    let declared: Option<u64> = header(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    match declared {
        Some(declared) if u64::try_from(max_bytes).is_ok_and(|max_bytes| max_bytes < declared) => {
            Err(ApiError::BodyTooLarge { max_bytes })
        }
        _ => Ok(()),
    }
}

async fn read_bytes(payload: web::Payload, config: &ServerConfig) -> Result<Bytes, ApiError> {
    let max_bytes = config.max_body_bytes.get();
    let reading = tokio::time::timeout(config.body_timeout(), payload.to_bytes_limited(max_bytes));
    let read = reading.await.map_err(|_| ApiError::BodyTimeout { seconds: config.body_timeout.get() })?;
    let complete = read.map_err(|_| ApiError::BodyTooLarge { max_bytes })?;
    complete.map_err(|_| ApiError::BrokenBody)
}
