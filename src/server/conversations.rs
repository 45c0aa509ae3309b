//! `/v1/conversations` and what stands below it.

use super::{ApiError, AppState, body::read_json, responses::query};
use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderValue},
    web,
};
use serde_json::json;

/// `POST /v1/conversations`, whose body may be left out.
pub(super) async fn create(
    app: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let body = match read_json(&request, payload, &app.config).await {
        Err(ApiError::EmptyBody) => json!({}),
        // Without a body there is nothing that could have a type.
        Err(ApiError::NotJson) if !has_body(&request) => json!({}),
        body => body?,
    };
    Ok(HttpResponse::Ok().json(app.responder.create_conversation(&app.owner(&request), &body).await?))
}

fn has_body(request: &HttpRequest) -> bool {
    let length = request.headers().get(header::CONTENT_LENGTH).map(HeaderValue::as_bytes);
    request.headers().contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|length| length != b"0")
}

/// `GET /v1/conversations/{id}`
pub(super) async fn retrieve(
    app: web::Data<AppState>,
    request: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(app.responder.retrieve_conversation(&app.owner(&request), &id).await?))
}

/// `POST /v1/conversations/{id}`
pub(super) async fn update(
    app: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let body = read_json(&request, payload, &app.config).await?;
    Ok(HttpResponse::Ok().json(app.responder.update_conversation(&app.owner(&request), &id, &body).await?))
}

/// `DELETE /v1/conversations/{id}`
pub(super) async fn delete(
    app: web::Data<AppState>,
    request: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(app.responder.delete_conversation(&app.owner(&request), &id).await?))
}

/// `POST /v1/conversations/{id}/items`
pub(super) async fn add_items(
    app: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let body = read_json(&request, payload, &app.config).await?;
    query(&request)?;
    Ok(HttpResponse::Ok().json(app.responder.add_items(&app.owner(&request), &id, &body).await?))
}

/// `GET /v1/conversations/{id}/items`
pub(super) async fn list_items(
    app: web::Data<AppState>,
    request: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let items = app.responder.conversation_items(&app.owner(&request), &id, &query(&request)?).await?;
    Ok(HttpResponse::Ok().json(items))
}

/// `GET /v1/conversations/{id}/items/{item}`
pub(super) async fn retrieve_item(
    app: web::Data<AppState>,
    request: HttpRequest,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, ApiError> {
    query(&request)?;
    let (id, item) = path.into_inner();
    Ok(HttpResponse::Ok().json(app.responder.conversation_item(&app.owner(&request), &id, &item).await?))
}

/// `DELETE /v1/conversations/{id}/items/{item}`
pub(super) async fn delete_item(
    app: web::Data<AppState>,
    request: HttpRequest,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, ApiError> {
    let (id, item) = path.into_inner();
    Ok(HttpResponse::Ok().json(app.responder.delete_conversation_item(&app.owner(&request), &id, &item).await?))
}
