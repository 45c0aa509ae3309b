//! `POST /v1/responses/input_tokens`

use super::{ApiError, AppState, body, request_log::Generation};
use crate::responses::CreateResponse;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

/// How many tokens the same body would have as a request for a response.
pub(super) async fn count(
    app: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
    generation: web::ReqData<Generation>,
) -> Result<HttpResponse, ApiError> {
    if app.is_draining() {
        return Err(ApiError::Draining);
    }
    let mut json = body::read_json(&request, payload, &app.config).await?;
    app.dialect.resolve(&mut json)?;
    let body = CreateResponse::parse(&json, app.config.unknown_fields())?;
    let model = app.models.get(body.model())?;
    generation.set_model(model.name());
    let lease = model.lease().await?;
    let (_, request) = body.begin(model.name(), lease.default_sampling());
    let input_tokens = lease.count_tokens(request).await?;
    Ok(HttpResponse::Ok().json(json!({ "object": "response.input_tokens", "input_tokens": input_tokens })))
}
