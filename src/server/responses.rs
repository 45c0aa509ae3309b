//! `/v1/responses` and what stands below it: made, read, followed, cancelled, deleted.

use super::{ApiError, AppState, auth::caller, body::read_json, limits::Estimate, request_log::Generation, sse};
use crate::responses::{self, Query, Turn};
use actix_web::{HttpRequest, HttpResponse, web};
use futures::StreamExt;

/// `POST /v1/responses`: a refusal (400, 429, 503) comes before the first byte; a later failure is an event.
pub(super) async fn create(
    app: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
    generation: web::ReqData<Generation>,
) -> Result<HttpResponse, ApiError> {
    app.refuse_while_draining()?;
    let body = read_json(&request, payload, &app.config).await?;
    let mut admission = caller(&request).admit(Estimate::new(&body))?;
    let owner = app.owner(&request);
    let keep_alive = app.config.keep_alive_interval();
    match app.responder.start(&owner, body, None).await? {
        Turn::Reply { model, events, is_streamed, .. } => {
            generation.set_model(&model);
            let events = events.inspect(move |event| {
                admission.follow(event);
                if let Some(response) = event.final_response() {
                    generation.set_outcome(response);
                }
            });
            if is_streamed {
                return Ok(sse::reply(events, keep_alive));
            }
            let response = responses::last_response(events).await;
            match response.failure() {
                Some(failure) => Err(failure.into()),
                None => Ok(HttpResponse::Ok().json(response)),
            }
        }
        Turn::Background { model, response, is_streamed } => {
            generation.set_model(&model);
            let context_tokens = app.models.get(Some(&model)).map_or(0, |model| model.context_tokens());
            admission.charge_estimate(context_tokens);
            if is_streamed {
                return Ok(sse::reply(app.responder.follow(&owner, response.id(), None).await?, keep_alive));
            }
            Ok(HttpResponse::Ok().json(response))
        }
    }
}

/// `GET /v1/responses/{id}`: the object, or its events.
pub(super) async fn retrieve(
    app: web::Data<AppState>,
    request: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let (owner, query) = (app.owner(&request), query(&request)?);
    if query.stream {
        let events = app.responder.follow(&owner, &id, query.starting_after).await?;
        return Ok(sse::reply(events, app.config.keep_alive_interval()));
    }
    Ok(HttpResponse::Ok().json(app.responder.retrieve(&owner, &id, &query).await?))
}

/// `DELETE /v1/responses/{id}`
pub(super) async fn delete(
    app: web::Data<AppState>,
    request: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(app.responder.delete(&app.owner(&request), &id).await?))
}

/// `POST /v1/responses/{id}/cancel`, whose body says nothing.
pub(super) async fn cancel(
    app: web::Data<AppState>,
    request: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(app.responder.cancel(&app.owner(&request), &id).await?))
}

/// `GET /v1/responses/{id}/input_items`
pub(super) async fn input_items(
    app: web::Data<AppState>,
    request: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let items = app.responder.input_items(&app.owner(&request), &id, &query(&request)?).await?;
    Ok(HttpResponse::Ok().json(items))
}

/// Names and values behind the `?`.
pub(super) fn query(request: &HttpRequest) -> Result<Query, ApiError> {
    let pairs = web::Query::<Vec<(String, String)>>::from_query(request.query_string());
    Ok(Query::parse(&pairs.map_err(|_| ApiError::MalformedQuery)?)?)
}
