//! HTTP. The only layer that names actix, and the only one that knows status codes.

mod addressed;
mod body;
mod compact;
mod config;
mod error;
mod health;
mod host;
mod input_tokens;
mod listener;
mod models;
mod request_log;
mod responses;
mod serve;
mod sse;

pub use config::ServerConfig;
pub use error::ApiError;
pub use listener::{BindError, bind};
pub use serve::{serve, signals};

use crate::{
    chat::Models,
    responses::{Dialect, DialectError, ResponsesConfig},
};
use actix_web::{
    App, Error, FromRequest, Handler, HttpRequest, HttpResponse, Resource, Responder, ResponseError,
    body::MessageBody,
    dev::{ServiceFactory, ServiceRequest, ServiceResponse},
    guard,
    http::header::{self, HeaderValue},
    middleware::from_fn,
    web,
};
use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Every route.
fn routes(service: &mut web::ServiceConfig) {
    service
        .service(post("/v1/responses", responses::create))
        .service(post("/v1/responses/compact", compact::compact))
        .service(post("/v1/responses/input_tokens", input_tokens::count))
        .service(get("/v1/models", models::list))
        .service(get("/v1/models/{id:.+}", models::retrieve))
        .service(get("/health", health::health))
        .service(get("/ready", health::ready))
        .default_service(web::to(unknown_url));
}

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
        .configure(routes)
        .wrap(from_fn(host::check))
        .wrap(from_fn(request_log::observe))
}

/// What every worker shares.
#[derive(Clone, Debug)]
pub struct AppState {
    /// The way down.
    models: Models,
    config: Arc<ServerConfig>,
    dialect: Dialect,
    draining: Arc<AtomicBool>,
    /// Unknown to clients, so that none can make a salt that is another's.
    salts: RandomState,
}

impl AppState {
    /// Not draining.
    ///
    /// # Errors
    /// When the key or the prompts of `[responses]` cannot be read.
    pub fn new(config: ServerConfig, responses: &ResponsesConfig, models: Models) -> Result<Self, DialectError> {
        let dialect = Dialect::new(responses)?;
        Ok(Self { models, config: Arc::new(config), dialect, draining: Arc::default(), salts: RandomState::new() })
    }

    /// From now on no work is taken on.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The same for all requests with the same API key, which may see by the time they take what others of them asked.
    fn cache_salt(&self, request: &HttpRequest) -> u64 {
        self.salts.hash_one(request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes))
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

fn post<H, Args>(path: &str, handler: H) -> Resource
where
    H: Handler<Args, Output: Responder + 'static>,
    Args: FromRequest + 'static,
{
    let route = web::post().to(handler);
    web::resource(path).route(route).default_service(web::to(|request| method_not_allowed(request, "POST")))
}

/// Also answers HEAD, as HTTP asks.
fn get<H, Args>(path: &str, handler: H) -> Resource
where
    H: Handler<Args, Output: Responder + 'static>,
    Args: FromRequest + 'static,
{
    let route = web::route().guard(guard::Any(guard::Get()).or(guard::Head())).to(handler);
    web::resource(path).route(route).default_service(web::to(|request| method_not_allowed(request, "GET, HEAD")))
}

async fn method_not_allowed(request: HttpRequest, allowed: &'static str) -> HttpResponse {
    ApiError::MethodNotAllowed { method: request.method().clone(), allowed }.error_response()
}

async fn unknown_url(request: HttpRequest) -> HttpResponse {
    const MAX_PATH_CHARS: usize = 256;
    let path = request.path().chars().take(MAX_PATH_CHARS).collect();
    ApiError::UnknownUrl { method: request.method().clone(), path }.error_response()
}
