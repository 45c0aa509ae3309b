//! `POST /v1/responses`

use super::{
    ApiError, AppState,
    addressed::{Addressed, read_body},
    auth::caller,
    limits::Estimate,
    request_log::Generation,
    sse,
};
use crate::responses::{self, CreateResponse};
use actix_web::{HttpRequest, HttpResponse, web};
use futures::StreamExt;

/// A refusal (400, 429, 503) comes before the first byte; a later failure is an event.
pub(super) async fn create(
    app: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
    generation: web::ReqData<Generation>,
) -> Result<HttpResponse, ApiError> {
    let mut json = read_body(&app, &request, payload).await?;
    let is_compaction = responses::take_trigger(&mut json);
    let body = CreateResponse::parse(&json, app.config.unknown_fields())?;
    let mut admission = caller(&request).admit(Estimate::new(&json, body.max_output_tokens()))?;
    drop(json); // It may be large, and a reply takes its time.
    let streamed = body.stream();
    let mut options = app.dialect.encode_options(body.reply_options());
    let compact_threshold = body.compact_threshold();
    let Addressed { lease, response, mut request } = Addressed::new(&app, &request, body, &generation).await?;
    let events = if is_compaction {
        let chat = lease.start(responses::summary_request(request)).await?;
        responses::encode_compaction(response, app.dialect.clone(), chat).left_stream()
    } else {
        if let Some(threshold) = compact_threshold {
            let summary = responses::compact_beyond(threshold, &lease, &mut request).await?;
            options.compaction = summary.map(|summary| app.dialect.seal_compaction(&summary));
        }
        responses::encode(response, options, lease.start(request).await?).right_stream()
    };
    let events = events.inspect(move |event| {
        admission.follow(event);
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
