//! HTTP. The only layer that names actix, and the only one that knows status codes.

mod addressed;
mod api_key;
mod auth;
mod body;
mod compact;
mod config;
mod error;
mod health;
mod host;
mod input_tokens;
mod limits;
mod listener;
mod models;
mod request_log;
mod responses;
mod routes;
mod serve;
mod sse;

pub use api_key::{KeyConfig, KeyHash, NotAHash};
pub use config::ServerConfig;
pub use error::ApiError;
pub use limits::Limit;
pub use listener::{BindError, bind, resolve};
pub use routes::{Access, Methods, ROUTES, Route};
pub use serve::{serve, signals};

use self::auth::ApiKeys;
use crate::{
    chat::Models,
    responses::{Dialect, DialectError, ResponsesConfig},
};
use actix_web::{
    App, Error, HttpRequest,
    body::MessageBody,
    dev::{ServiceFactory, ServiceRequest, ServiceResponse},
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
    /// The way down.
    models: Models,
    config: Arc<ServerConfig>,
    keys: ApiKeys,
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
        let keys = ApiKeys::new(&config.api_keys);
        let (draining, salts) = (Arc::default(), RandomState::new());
        Ok(Self { models, config: Arc::new(config), keys, dialect, draining, salts })
    }

    /// From now on no work is taken on.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The same for all requests of one tenant, which may see by the time they take what others of them asked. Where there
    /// are no keys, what is sent in the place of one tells tenants apart.
    fn cache_salt(&self, request: &HttpRequest) -> u64 {
        if self.keys.is_empty() {
            return self.salts.hash_one(request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes));
        }
        self.salts.hash_one(auth::caller(request).tenant())
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
