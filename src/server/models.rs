//! `GET /v1/models` and `GET /v1/models/{id}`

use super::{ApiError, AppState};
use crate::chat::Chat;
use actix_web::{HttpResponse, web};
use serde::Serialize;

/// A served model, as the protocol describes it.
#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Prompt and reply together. The protocol has no such key; clients ignore or use it.
    context_length: usize,
}

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

impl<'a> From<&'a Chat> for Model<'a> {
    fn from(chat: &'a Chat) -> Self {
        Self {
            id: chat.name(),
            object: "model",
            created: chat.created(),
            owned_by: "ortolan",
            context_length: chat.context_tokens(),
        }
    }
}

pub(super) async fn list(app: web::Data<AppState>) -> HttpResponse {
    HttpResponse::Ok().json(ModelList { object: "list", data: app.models.iter().map(Model::from).collect() })
}

/// The id may hold slashes.
pub(super) async fn retrieve(app: web::Data<AppState>, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let chat = app.models.get(Some(&id))?;
    Ok(HttpResponse::Ok().json(Model::from(chat)))
}
