//! `POST /v1/responses/input_tokens`

use super::{
    ApiError, AppState,
    addressed::{Addressed, read_body},
    request_log::Generation,
};
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
    let body = CreateResponse::parse(&read_body(&app, &request, payload).await?, app.config.unknown_fields())?;
    let Addressed { lease, request, .. } = Addressed::new(&app, &request, body, &generation).await?;
    let input_tokens = lease.count_tokens(request).await?;
    Ok(HttpResponse::Ok().json(json!({ "object": "response.input_tokens", "input_tokens": input_tokens })))
}
