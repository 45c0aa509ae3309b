//! Every route, as data: where it is, what it answers to, and whether it asks for a key. A request that no route answers is
//! asked for its key first, too.

use super::{
    ApiError, auth, compact, completions, conversations, health, input_tokens, metrics, models, responses, websocket,
};
use crate::completions::{ChatCompletion, TextCompletion};
use actix_web::{HttpRequest, HttpResponse, guard, middleware::from_fn, web};

/// Who is let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Whoever has a key, where there are keys.
    Key,
    /// Whoever has a key, unless `server.open_metrics` lets in everybody.
    Metrics,
    /// Everybody: whoever probes the process has no key.
    Open,
}

/// What a route answers to. What no route of a path answers to is a 405.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Methods {
    /// POST alone.
    Post,
    /// GET, and HEAD as HTTP asks.
    Get,
    /// DELETE alone.
    Delete,
    /// A GET that asks to become a WebSocket; any other is not allowed.
    WebSocket,
}

impl Methods {
    /// As a refusal lists them.
    pub fn allowed(self) -> Option<&'static str> {
        match self {
            Self::Post => Some("POST"),
            Self::Get => Some("GET, HEAD"),
            Self::Delete => Some("DELETE"),
            Self::WebSocket => None,
        }
    }
}

/// One line of [`ROUTES`].
#[derive(Debug)]
pub struct Route {
    /// What it answers to.
    pub methods: Methods,
    /// As actix matches it.
    pub path: &'static str,
    /// Who is let in.
    pub access: Access,
    handler: fn() -> actix_web::Route,
}

const fn route(methods: Methods, path: &'static str, access: Access, handler: fn() -> actix_web::Route) -> Route {
    Route { methods, path, access, handler }
}

/// There are no others. Those of one path stand together.
pub const ROUTES: &[Route] = &[
    route(Methods::Post, "/v1/responses", Access::Key, || web::to(responses::create)),
    route(Methods::WebSocket, "/v1/responses", Access::Key, || web::to(websocket::upgrade)),
    route(Methods::Post, "/v1/responses/compact", Access::Key, || web::to(compact::compact)),
    route(Methods::Post, "/v1/responses/input_tokens", Access::Key, || web::to(input_tokens::count)),
    route(Methods::Get, "/v1/responses/{id}", Access::Key, || web::to(responses::retrieve)),
    route(Methods::Delete, "/v1/responses/{id}", Access::Key, || web::to(responses::delete)),
    route(Methods::Post, "/v1/responses/{id}/cancel", Access::Key, || web::to(responses::cancel)),
    route(Methods::Get, "/v1/responses/{id}/input_items", Access::Key, || web::to(responses::input_items)),
    route(Methods::Post, "/v1/conversations", Access::Key, || web::to(conversations::create)),
    route(Methods::Get, "/v1/conversations/{id}", Access::Key, || web::to(conversations::retrieve)),
    route(Methods::Post, "/v1/conversations/{id}", Access::Key, || web::to(conversations::update)),
    route(Methods::Delete, "/v1/conversations/{id}", Access::Key, || web::to(conversations::delete)),
    route(Methods::Get, "/v1/conversations/{id}/items", Access::Key, || web::to(conversations::list_items)),
    route(Methods::Post, "/v1/conversations/{id}/items", Access::Key, || web::to(conversations::add_items)),
    route(Methods::Get, "/v1/conversations/{id}/items/{item}", Access::Key, || web::to(conversations::retrieve_item)),
    route(Methods::Delete, "/v1/conversations/{id}/items/{item}", Access::Key, || web::to(conversations::delete_item)),
    route(Methods::Post, "/v1/chat/completions", Access::Key, || web::to(completions::create::<ChatCompletion>)),
    route(Methods::Post, "/v1/completions", Access::Key, || web::to(completions::create::<TextCompletion>)),
    route(Methods::Get, "/v1/models", Access::Key, || web::to(models::list)),
    route(Methods::Get, "/v1/models/{id:.+}", Access::Key, || web::to(models::retrieve)),
    route(Methods::Get, "/metrics", Access::Metrics, || web::to(metrics::scrape)),
    route(Methods::Get, "/health", Access::Open, || web::to(health::health)),
    route(Methods::Get, "/ready", Access::Open, || web::to(health::ready)),
];

/// Puts all of them into the service.
pub(super) fn register(service: &mut web::ServiceConfig) {
    for routes in ROUTES.chunk_by(|route, next| route.path == next.path) {
        let first = &routes[0];
        let allowed: Vec<&str> = routes.iter().filter_map(|route| route.methods.allowed()).collect();
        let allowed = allowed.join(", ");
        let refuse = move |request: HttpRequest| method_not_allowed(request, allowed.clone());
        let resource = web::resource(first.path).default_service(web::to(refuse));
        let resource = routes.iter().fold(resource, |resource, route| resource.route(route.guarded()));
        assert!(routes.iter().all(|route| route.access == first.access), "a path has one lock");
        match first.access {
            Access::Key => service.service(resource.wrap(from_fn(auth::check))),
            Access::Metrics => service.service(resource.wrap(from_fn(auth::check_unless_open))),
            Access::Open => service.service(resource),
        };
    }
    service.default_service(web::to(unknown_url).wrap(from_fn(auth::check)));
}

impl Route {
    fn guarded(&self) -> actix_web::Route {
        let handler = (self.handler)();
        match self.methods {
            Methods::Post => handler.guard(guard::Post()),
            Methods::Get => handler.guard(guard::Any(guard::Get()).or(guard::Head())),
            Methods::Delete => handler.guard(guard::Delete()),
            Methods::WebSocket => {
                handler.guard(guard::Get()).guard(guard::fn_guard(|context| context.head().upgrade()))
            }
        }
    }
}

async fn method_not_allowed(request: HttpRequest, allowed: String) -> Result<HttpResponse, ApiError> {
    Err(ApiError::MethodNotAllowed { method: request.method().clone(), allowed })
}

async fn unknown_url(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    const MAX_PATH_CHARS: usize = 256;
    let path = request.path().chars().take(MAX_PATH_CHARS).collect();
    Err(ApiError::UnknownUrl { method: request.method().clone(), path })
}
