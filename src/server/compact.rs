//! `POST /v1/responses/compact`

use super::{
    ApiError, AppState,
    addressed::{Addressed, read_body},
    auth::caller,
    limits::Estimate,
    request_log::Generation,
};
use crate::responses::{self, Compaction, CreateResponse, InvalidRequest};
use actix_web::{HttpRequest, HttpResponse, web};
use futures::StreamExt;

/// A window of items to go on from, in place of a conversation that has become long.
pub(super) async fn compact(
    app: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
    generation: web::ReqData<Generation>,
) -> Result<HttpResponse, ApiError> {
    let json = read_body(&app, &request, payload).await?;
    let body = CreateResponse::parse(&json, app.config.unknown_fields())?;
    if body.model().is_none() {
        // The protocol wants it here, and nowhere else.
        return Err(InvalidRequest::missing("model").into());
    }
    let mut admission = caller(&request).admit(Estimate::new(&json, body.max_output_tokens()))?;
    let Addressed { lease, response, request } = Addressed::new(&app, &request, body, &generation).await?;
    let chat = lease.start(responses::summary_request(request)).await?;
    let events = responses::encode_compaction(response, app.dialect.clone(), chat);
    let events = events.inspect(move |event| admission.follow(event));
    let response = responses::last_response(events).await;
    generation.set_outcome(&response);
    match response.failure() {
        Some(failure) => Err(failure.into()),
        None => Ok(HttpResponse::Ok().json(Compaction::new(&json, &response))),
    }
}
