//! `POST /v1/chat/completions` and `POST /v1/completions`

use super::{
    ApiError, AppState,
    auth::caller,
    body::read_json,
    limits::{Admission, Estimate},
    request_log::Generation,
    sse,
};
use crate::{
    chat::ChatRequest,
    completions::{self, ChatCompletion, CompletionEvent, Envelope, TextCompletion},
    engine::SamplingParams,
};
use actix_web::{HttpRequest, HttpResponse, web};
use futures::StreamExt;
use serde_json::json;

/// A chat.
pub(super) async fn create_chat(
    app: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
    generation: web::ReqData<Generation>,
) -> Result<HttpResponse, ApiError> {
    app.refuse_while_draining()?;
    let body = read_json(&request, payload, &app.config).await?;
    let completion = ChatCompletion::parse(&body, app.config.unknown_fields())?;
    let admission = caller(&request).admit(Estimate::new(&body))?;
    let (model, is_streamed) = (completion.model().map(str::to_owned), completion.is_streamed());
    let begin = |name: &str, defaults: &SamplingParams, salt| completion.begin(name, defaults, salt);
    let asked = Asked { model, is_streamed, admission, input: "messages" };
    answer(&app, &request, &generation, asked, begin).await
}

/// A text that is gone on from.
pub(super) async fn create_text(
    app: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
    generation: web::ReqData<Generation>,
) -> Result<HttpResponse, ApiError> {
    app.refuse_while_draining()?;
    let body = read_json(&request, payload, &app.config).await?;
    let completion = TextCompletion::parse(&body, app.config.unknown_fields())?;
    let admission = caller(&request).admit(Estimate::new(&body))?;
    let (model, is_streamed) = (completion.model().map(str::to_owned), completion.is_streamed());
    let begin = |name: &str, defaults: &SamplingParams, salt| completion.begin(name, defaults, salt);
    let asked = Asked { model, is_streamed, admission, input: "prompt" };
    answer(&app, &request, &generation, asked, begin).await
}

/// What both have in common.
struct Asked {
    model: Option<String>,
    is_streamed: bool,
    admission: Admission,
    /// The field that is gone on from.
    input: &'static str,
}

async fn answer(
    app: &AppState,
    request: &HttpRequest,
    generation: &Generation,
    Asked { model, is_streamed, mut admission, input }: Asked,
    begin: impl FnOnce(&str, &SamplingParams, u64) -> (Envelope, Vec<ChatRequest>),
) -> Result<HttpResponse, ApiError> {
    let model = app.models.get(model.as_deref())?;
    generation.set_model(model.name());
    let defaults = model.lease().await?.default_sampling().clone();
    let (envelope, requests) = begin(model.name(), &defaults, app.owner(request).cache_salt);
    let choices = completions::start(model, envelope, requests).await;
    let choices = choices.map_err(|error| ApiError::Completion { error: Box::new(error.into()), input })?;
    let generation = generation.clone();
    if !is_streamed {
        let (completion, usage) = completions::last_completion(choices).await?;
        admission.charge(usage.completion_tokens());
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
                admission.charge(usage.completion_tokens());
                generation.set_usage(usage.prompt_tokens(), usage.completion_tokens(), "completed");
                None
            }
            CompletionEvent::Failed(failure) => Some(json!({ "error": ApiError::from(failure).body() }).to_string()),
        };
        async { frame }
    });
    Ok(sse::reply_unnamed(frames, app.config.keep_alive_interval()))
}
