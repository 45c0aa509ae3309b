//! What every request to a model begins with.

use super::{ApiError, AppState, body, request_log::Generation};
use crate::{
    chat::{ChatRequest, Lease},
    responses::{CreateResponse, Response},
};
use actix_web::{HttpRequest, web};
use serde_json::Value;

/// A request, and the model that it names.
pub(super) struct Addressed {
    pub(super) lease: Lease,
    /// As it begins.
    pub(super) response: Response,
    pub(super) request: ChatRequest,
}

/// The body, with what it only names put in its place.
pub(super) async fn read_body(app: &AppState, request: &HttpRequest, payload: web::Payload) -> Result<Value, ApiError> {
    if app.is_draining() {
        return Err(ApiError::Draining);
    }
    let mut json = body::read_json(request, payload, &app.config).await?;
    app.dialect.resolve(&mut json)?;
    Ok(json)
}

impl Addressed {
    /// Waits for the model where it has to be loaded.
    pub(super) async fn new(
        app: &AppState,
        request: &HttpRequest,
        body: CreateResponse,
        generation: &Generation,
    ) -> Result<Self, ApiError> {
        let model = app.models.get(body.model())?;
        generation.set_model(model.name());
        let lease = model.lease().await?;
        let (response, chat_request) = body.begin(model.name(), lease.default_sampling());
        let request = ChatRequest { cache_salt: app.cache_salt(request), ..chat_request };
        Ok(Self { lease, response, request })
    }
}
