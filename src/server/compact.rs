//! `POST /v1/responses/compact`

use super::{ApiError, AppState, body, request_log::Generation};
use crate::{
    chat::ChatRequest,
    responses::{self, Compaction, CreateResponse},
};
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::Value;

/// A window of items to go on from, in place of a conversation that has become long.
pub(super) async fn compact(
    app: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
    generation: web::ReqData<Generation>,
) -> Result<HttpResponse, ApiError> {
    if app.is_draining() {
        return Err(ApiError::Draining);
    }
    let mut json: Value = body::read_json(&request, payload, &app.config).await?;
    app.dialect.resolve(&mut json)?;
    let body = CreateResponse::parse(&json, app.config.unknown_fields())?;
    let cache_salt = app.cache_salt(&request);

    let model = app.models.get(body.model())?;
    generation.set_model(model.name());
    let lease = model.lease().await?;
    let (response, request) = body.begin(model.name(), lease.default_sampling());
    let request = ChatRequest { cache_salt, ..responses::summary_request(request) };
    let chat = lease.start(request).await?;
    let events = responses::encode_compaction(response, app.dialect.clone(), chat);
    let response = responses::last_response(events).await;
    generation.set_outcome(&response);
    match response.failure() {
        Some(failure) => Err(failure.into()),
        None => Ok(HttpResponse::Ok().json(Compaction::new(&json, &response))),
    }
}
