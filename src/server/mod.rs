//! HTTP. The only layer that names actix, and the only one that knows status codes.

mod api_key;
mod auth;
mod body;
mod compact;
mod completions;
mod config;
mod conversations;
mod error;
mod exposition;
mod health;
mod host;
mod input_tokens;
mod limits;
mod listener;
mod metrics;
mod models;
mod process;
mod request_log;
mod responses;
mod routes;
mod serve;
mod sse;
mod websocket;

pub use api_key::{KeyConfig, KeyHash, NotAHash};
pub use config::ServerConfig;
pub use error::ApiError;
pub use limits::Limit;
pub use listener::{BindError, bind, resolve};
pub use metrics::MetricsCompat;
pub use routes::{Access, Methods, ROUTES, Route};
pub use serve::{serve, signals};

use self::{auth::ApiKeys, metrics::Metrics};
use crate::{
    chat::Models,
    responses::{Dialect, Owner, Responder},
    store::Store,
};
use actix_web::{
    App, Error, HttpRequest,
    body::MessageBody,
    dev::{ServiceFactory, ServiceRequest, ServiceResponse},
    http::header::{self, HeaderValue},
    middleware::from_fn,
    web,
};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The whole HTTP side as one service. The server makes one for each worker.
pub fn app(
    state: AppState,
) -> App<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<impl MessageBody>,
        Error = Error,
        InitError = (),
    >,
> {
    App::new()
        .app_data(web::Data::new(state))
        .configure(routes::register)
        .wrap(from_fn(host::check))
        .wrap(from_fn(request_log::observe))
}

/// What every worker shares.
#[derive(Clone, Debug)]
pub struct AppState {
    models: Models,
    /// The way down.
    responder: Responder,
    config: Arc<ServerConfig>,
    keys: ApiKeys,
    metrics: Metrics,
    /// A permit for each WebSocket that may be open.
    websockets: Arc<Semaphore>,
}

impl AppState {
    /// Not draining.
    pub fn new(config: ServerConfig, dialect: Dialect, models: Models, store: Option<Store>) -> Self {
        let responder = Responder::new(models.clone(), dialect, store, config.unknown_fields());
        let keys = ApiKeys::new(&config.api_keys);
        let websockets = Arc::new(Semaphore::new(config.max_websockets.get()));
        Self { models, responder, config: Arc::new(config), keys, metrics: Metrics::default(), websockets }
    }

    /// What answers the requests.
    pub fn responder(&self) -> &Responder {
        &self.responder
    }

    /// From now on no work is taken on.
    pub fn start_draining(&self) {
        self.responder.drain();
    }

    /// To whom all belongs that a request makes. Those of one tenant may see by the time they take what others of them asked.
    /// Where there are no keys, what is sent in the place of one tells apart who may.
    fn owner(&self, request: &HttpRequest) -> Owner {
        let caller = auth::caller(request);
        let cache_salt = if self.keys.is_empty() {
            self.responder.cache_salt(request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes))
        } else {
            self.responder.cache_salt(caller.tenant())
        };
        Owner { tenant: caller.tenant().into(), cache_salt }
    }

    fn is_draining(&self) -> bool {
        self.responder.is_draining()
    }

    fn refuse_while_draining(&self) -> Result<(), ApiError> {
        if self.is_draining() { Err(ApiError::Draining) } else { Ok(()) }
    }
}
