//! `GET /health`: does the process answer? `GET /ready`: may it be sent requests?

use super::AppState;
use actix_web::{HttpResponse, http::header, web};
use serde_json::json;

const RETRY_AFTER_SECONDS: u64 = 5;

pub(super) async fn health() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "status": "ok" }))
}

pub(super) async fn ready(app: web::Data<AppState>) -> HttpResponse {
    match why_not_ready(&app) {
        None => HttpResponse::Ok().json(json!({ "status": "ready" })),
        Some(reason) => HttpResponse::ServiceUnavailable()
            .insert_header((header::RETRY_AFTER, RETRY_AFTER_SECONDS))
            .insert_header(("retry-after-ms", RETRY_AFTER_SECONDS * 1000))
            .json(json!({ "status": "unavailable", "reason": reason })),
    }
}

fn why_not_ready(app: &AppState) -> Option<String> {
    if app.is_draining() {
        return Some("the server is shutting down".to_owned());
    }
    let stopped = app.models.iter().find(|chat| !chat.is_running())?;
    Some(format!("the engine of `{}` has stopped", stopped.name()))
}
