//! `POST /v1/responses/input_tokens`

use super::{ApiError, AppState, body::read_json, request_log::Generation};
use crate::responses::Prepared;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

/// How many tokens the same body would have as a request for a response.
pub(super) async fn count(
    app: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
    generation: web::ReqData<Generation>,
) -> Result<HttpResponse, ApiError> {
    app.refuse_while_draining()?;
    let body = read_json(&request, payload, &app.config).await?;
    let Prepared { lease, response, request, .. } = app.responder.prepare(&app.owner(&request), body).await?;
    generation.set_model(response.model());
    let input_tokens = lease.count_tokens(request).await?;
    Ok(HttpResponse::Ok().json(json!({ "object": "response.input_tokens", "input_tokens": input_tokens })))
}
