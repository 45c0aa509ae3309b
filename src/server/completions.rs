//! `POST /v1/chat/completions` and `POST /v1/completions`

use super::{ApiError, AppState, auth::caller, body::read_json, limits::Estimate, request_log::Generation, sse};
use crate::{
    chat::ChatError,
    completions::{self, CompletionEvent, CompletionRequest},
};
use actix_web::{HttpRequest, HttpResponse, web};
use futures::StreamExt;
use serde_json::json;

/// A chat, or a text that is gone on from.
pub(super) async fn create<C: CompletionRequest>(
    app: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
    generation: web::ReqData<Generation>,
) -> Result<HttpResponse, ApiError> {
    app.refuse_while_draining()?;
    let body = read_json(&request, payload, &app.config).await?;
    let completion = C::parse(&body, app.config.unknown_fields())?;
    let mut admission = caller(&request).admit(Estimate::new(&body))?;
    drop(body); // It may be large, and a reply takes its time.
    let is_streamed = completion.is_streamed();
    let model = app.models.get(completion.model())?;
    generation.set_model(model.name());
    // Held until each choice has its own.
    let lease = model.lease().await?;
    let cache_salt = app.owner(&request).cache_salt;
    let (envelope, requests) = completion.begin(model.name(), lease.default_sampling(), cache_salt);
    let choices = completions::start(model, envelope, requests).await;
    drop(lease);
    let refused = |error: ChatError| ApiError::Completion { error: Box::new(error.into()), input: C::INPUT };
    let choices = choices.map_err(refused)?;
    if !is_streamed {
        let completed = completions::last_completion(choices).await;
        let (completion, usage) = completed.inspect_err(|_| generation.set_failed())?;
        admission.charge_all(usage.prompt_tokens(), usage.completion_tokens());
        generation.set_usage(usage.prompt_tokens(), usage.completion_tokens(), "completed");
        return Ok(HttpResponse::Ok().json(completion));
    }
    let frames = choices.into_events().filter_map(move |event| {
        let frame = match event {
            CompletionEvent::Chunk(json) => {
                admission.note_piece();
                Some(json)
            }
            CompletionEvent::Finished(usage) => {
                admission.charge_all(usage.prompt_tokens(), usage.completion_tokens());
                generation.set_usage(usage.prompt_tokens(), usage.completion_tokens(), "completed");
                None
            }
            CompletionEvent::Failed(failure) => {
                generation.set_failed();
                Some(json!({ "error": ApiError::from(failure).body() }).to_string())
            }
        };
        async { frame }
    });
    Ok(sse::reply_unnamed(frames, app.config.keep_alive_interval()))
}
