//! `GET /v1/models` and `GET /v1/models/{id}`

use super::{ApiError, AppState};
use crate::chat::ServedModel;
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

impl<'a> From<&'a ServedModel> for Model<'a> {
    fn from(model: &'a ServedModel) -> Self {
        Self {
            id: model.name(),
            object: "model",
            created: model.created(),
            owned_by: "ortolan",
            context_length: model.context_tokens(),
        }
    }
}

pub(super) async fn list(app: web::Data<AppState>) -> HttpResponse {
    HttpResponse::Ok()
        .json(ModelList { object: "list", data: app.models.iter().map(|model| Model::from(&**model)).collect() })
}

/// The id may hold slashes.
pub(super) async fn retrieve(app: web::Data<AppState>, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let model: &ServedModel = app.models.get(Some(&id))?;
    Ok(HttpResponse::Ok().json(Model::from(model)))
}
