//! `POST /v1/responses`

use super::{ApiError, AppState, body, request_log::Generation, sse};
use crate::{
    chat::ChatRequest,
    responses::{self, CreateResponse},
};
use actix_web::{HttpRequest, HttpResponse, web};
use futures::StreamExt;

/// A refusal (400, 429, 503) comes before the first byte; a later failure is an event.
pub(super) async fn create(
    app: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
    generation: web::ReqData<Generation>,
) -> Result<HttpResponse, ApiError> {
    if app.is_draining() {
        return Err(ApiError::Draining);
    }
    // The JSON is dropped at once: it may be large, and a reply takes its time.
    let body =
        CreateResponse::parse(&body::read_json(&request, payload, &app.config).await?, app.config.unknown_fields())?;
    let streamed = body.stream();
    let cache_salt = app.cache_salt(&request);

    let model = app.models.get(body.model())?;
    generation.set_model(model.name());
    let lease = model.lease().await?;
    let (response, request) = body.begin(model.name(), lease.default_sampling());
    let request = ChatRequest { cache_salt, ..request };
    let events = responses::encode(response, lease.start(request).await?).inspect(move |event| {
        if let Some(response) = event.final_response() {
            generation.set_outcome(response);
        }
    });

    if streamed {
        return Ok(sse::reply(events, app.config.keep_alive_interval()));
    }
    let response = responses::last_response(events).await;
    match response.failure() {
        Some(failure) => Err(failure.into()),
        None => Ok(HttpResponse::Ok().json(response)),
    }
}
