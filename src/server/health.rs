//! `GET /health`: does the process answer? `GET /ready`: may it be sent requests, and where does each model stand?

use super::AppState;
use crate::chat::{ModelState, ServedModel};
use actix_web::{HttpResponse, http::header, web};
use serde::Serialize;
use serde_json::json;

const RETRY_AFTER_SECONDS: u64 = 5;

#[derive(Serialize)]
struct Readiness<'a> {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Whether something can be stored; not told where nothing is. What need not be stored is answered in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<&'static str>,
    models: Vec<ModelReadiness<'a>>,
}

#[derive(Serialize)]
struct ModelReadiness<'a> {
    id: &'a str,
    state: &'static str,
    /// In this state; not known of an engine that has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<u64>,
}

impl<'a> From<&'a ServedModel> for ModelReadiness<'a> {
    fn from(model: &'a ServedModel) -> Self {
        let (state, duration) = model.state();
        Self { id: model.name(), state: state.name(), seconds: duration.map(|duration| duration.as_secs()) }
    }
}

pub(super) async fn health() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "status": "ok" }))
}

pub(super) async fn ready(app: web::Data<AppState>) -> HttpResponse {
    let reason = why_not_ready(&app);
    let store = app.responder.store().map(|store| if store.has_room() { "ready" } else { "unavailable" });
    let models = app.models.iter().map(|model| ModelReadiness::from(&**model)).collect();
    if reason.is_none() {
        return HttpResponse::Ok().json(Readiness { status: "ready", reason, store, models });
    }
    HttpResponse::ServiceUnavailable()
        .insert_header((header::RETRY_AFTER, RETRY_AFTER_SECONDS))
        .insert_header(("retry-after-ms", RETRY_AFTER_SECONDS * 1000))
        .json(Readiness { status: "unavailable", reason, store, models })
}

fn why_not_ready(app: &AppState) -> Option<String> {
    if app.is_draining() {
        return Some("the server is shutting down".to_owned());
    }
    let missing = app.models.iter().find(|model| model.is_missing())?;
    let name = missing.name();
    Some(match missing.state().0 {
        ModelState::Failed => format!("the model `{name}` has failed"),
        ModelState::Unloaded | ModelState::Loading | ModelState::Ready => format!("the model `{name}` is being loaded"),
    })
}
