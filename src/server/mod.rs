//! HTTP. The only layer that names actix, and the only one that knows status codes.

mod auth;
mod body;
mod compact;
mod completions;
mod config;
mod conversations;
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
mod websocket;

pub use config::ServerConfig;
pub use error::ApiError;
pub use listener::{BindError, bind};
pub use serve::{serve, signals};

use crate::{
    chat::Models,
    responses::{Dialect, Responder},
    store::Store,
};
use actix_web::{
    App, Error, FromRequest, Handler, HttpRequest, HttpResponse, Resource, ResponseError,
    body::MessageBody,
    dev::{AppService, HttpServiceFactory, ServiceFactory, ServiceRequest, ServiceResponse},
    guard,
    middleware::from_fn,
    web,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::Semaphore;

/// Every route.
fn routes(service: &mut web::ServiceConfig) {
    service
        .service(resource("/v1/responses").post(responses::create).websocket(websocket::upgrade))
        .service(resource("/v1/responses/compact").post(compact::compact))
        .service(resource("/v1/responses/input_tokens").post(input_tokens::count))
        .service(resource("/v1/responses/{id}").get(responses::retrieve).delete(responses::delete))
        .service(resource("/v1/responses/{id}/cancel").post(responses::cancel))
        .service(resource("/v1/responses/{id}/input_items").get(responses::input_items))
        .service(resource("/v1/conversations").post(conversations::create))
        .service(
            resource("/v1/conversations/{id}")
                .get(conversations::retrieve)
                .post(conversations::update)
                .delete(conversations::delete),
        )
        .service(resource("/v1/conversations/{id}/items").get(conversations::list_items).post(conversations::add_items))
        .service(
            resource("/v1/conversations/{id}/items/{item}")
                .get(conversations::retrieve_item)
                .delete(conversations::delete_item),
        )
        .service(resource("/v1/chat/completions").post(completions::create_chat))
        .service(resource("/v1/completions").post(completions::create_text))
        .service(resource("/v1/models").get(models::list))
        .service(resource("/v1/models/{id:.+}").get(models::retrieve))
        .service(resource("/health").get(health::health))
        .service(resource("/ready").get(health::ready))
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
    models: Models,
    /// The way down.
    responder: Responder,
    config: Arc<ServerConfig>,
    draining: Arc<AtomicBool>,
    /// A permit for each WebSocket that may be open.
    websockets: Arc<Semaphore>,
}

impl AppState {
    /// Not draining.
    pub fn new(config: ServerConfig, dialect: Dialect, models: Models, store: Option<Store>) -> Self {
        let responder = Responder::new(models.clone(), dialect, store, config.unknown_fields());
        let websockets = Arc::new(Semaphore::new(config.max_websockets.get()));
        Self { models, responder, config: Arc::new(config), draining: Arc::default(), websockets }
    }

    /// What answers the requests.
    pub fn responder(&self) -> &Responder {
        &self.responder
    }

    /// From now on no work is taken on.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn refuse_while_draining(&self) -> Result<(), ApiError> {
        if self.is_draining() { Err(ApiError::Draining) } else { Ok(()) }
    }
}

/// A path, and what may be done with it.
struct Route {
    resource: Resource,
    allowed: Vec<&'static str>,
}

fn resource(path: &str) -> Route {
    Route { resource: web::resource(path), allowed: Vec::new() }
}

impl Route {
    /// Also answers HEAD, as HTTP asks.
    fn get<H, Args>(mut self, handler: H) -> Self
    where
        H: Handler<Args, Output: actix_web::Responder + 'static>,
        Args: FromRequest + 'static,
    {
        self.allowed.extend(["GET", "HEAD"]);
        self.on(web::route().guard(guard::Any(guard::Get()).or(guard::Head())).to(handler))
    }

    fn post<H, Args>(mut self, handler: H) -> Self
    where
        H: Handler<Args, Output: actix_web::Responder + 'static>,
        Args: FromRequest + 'static,
    {
        self.allowed.push("POST");
        self.on(web::post().to(handler))
    }

    fn delete<H, Args>(mut self, handler: H) -> Self
    where
        H: Handler<Args, Output: actix_web::Responder + 'static>,
        Args: FromRequest + 'static,
    {
        self.allowed.push("DELETE");
        self.on(web::delete().to(handler))
    }

    /// A GET that asks for more; any other is not allowed.
    fn websocket<H, Args>(self, handler: H) -> Self
    where
        H: Handler<Args, Output: actix_web::Responder + 'static>,
        Args: FromRequest + 'static,
    {
        let is_upgrade = guard::fn_guard(|context| context.head().upgrade());
        self.on(web::get().guard(is_upgrade).to(handler))
    }

    fn on(self, route: actix_web::Route) -> Self {
        Self { resource: self.resource.route(route), ..self }
    }
}

impl HttpServiceFactory for Route {
    fn register(self, service: &mut AppService) {
        let allowed = self.allowed.join(", ");
        let refuse = move |request: HttpRequest| {
            let refusal = ApiError::MethodNotAllowed { method: request.method().clone(), allowed: allowed.clone() };
            async move { refusal.error_response() }
        };
        self.resource.default_service(web::to(refuse)).register(service);
    }
}

async fn unknown_url(request: HttpRequest) -> HttpResponse {
    const MAX_PATH_CHARS: usize = 256;
    let path = request.path().chars().take(MAX_PATH_CHARS).collect();
    ApiError::UnknownUrl { method: request.method().clone(), path }.error_response()
}
