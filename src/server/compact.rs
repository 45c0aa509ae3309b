//! `POST /v1/responses/compact`

use super::{ApiError, AppState, auth::caller, body::read_json, limits::Estimate, request_log::Generation};
use actix_web::{HttpRequest, HttpResponse, web};

/// A window of items to go on from, in place of a conversation that has become long.
pub(super) async fn compact(
    app: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
    generation: web::ReqData<Generation>,
) -> Result<HttpResponse, ApiError> {
    app.refuse_while_draining()?;
    let body = read_json(&request, payload, &app.config).await?;
    let mut admission = caller(&request).admit(Estimate::new(&body))?;
    let (compaction, response) = app.responder.compact(&app.owner(&request), body).await?;
    if let Some(usage) = response.usage() {
        admission.charge_all(usage.input_tokens, usage.output_tokens);
    }
    generation.set_model(response.model());
    generation.set_outcome(&response);
    match response.failure() {
        Some(failure) => Err(failure.into()),
        None => Ok(HttpResponse::Ok().json(compaction)),
    }
}
