//! Every route, as data: where it is, what it answers to, and whether it asks for a key. A request that no route answers is
//! asked for its key first, too.

use super::{ApiError, auth, compact, health, input_tokens, models, responses};
use actix_web::{HttpRequest, HttpResponse, Resource, ResponseError, guard, middleware::from_fn, web};

/// Who is let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Whoever has a key, where there are keys.
    Key,
    /// Everybody: whoever probes the process has no key.
    Open,
}

/// What a route answers to; anything else is a 405.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Methods {
    /// POST alone.
    Post,
    /// GET, and HEAD as HTTP asks.
    Get,
}

impl Methods {
    /// As a refusal lists them.
    pub fn allowed(self) -> &'static str {
        match self {
            Self::Post => "POST",
            Self::Get => "GET, HEAD",
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

/// There are no others.
pub const ROUTES: &[Route] = &[
    route(Methods::Post, "/v1/responses", Access::Key, || web::to(responses::create)),
    route(Methods::Post, "/v1/responses/compact", Access::Key, || web::to(compact::compact)),
    route(Methods::Post, "/v1/responses/input_tokens", Access::Key, || web::to(input_tokens::count)),
    route(Methods::Get, "/v1/models", Access::Key, || web::to(models::list)),
    route(Methods::Get, "/v1/models/{id:.+}", Access::Key, || web::to(models::retrieve)),
    route(Methods::Get, "/health", Access::Open, || web::to(health::health)),
    route(Methods::Get, "/ready", Access::Open, || web::to(health::ready)),
];

/// Puts all of them into the service.
pub(super) fn register(service: &mut web::ServiceConfig) {
    for route in ROUTES {
        let resource = route.resource();
        match route.access {
            Access::Key => service.service(resource.wrap(from_fn(auth::check))),
            Access::Open => service.service(resource),
        };
    }
    service.default_service(web::to(unknown_url).wrap(from_fn(auth::check)));
}

impl Route {
    fn resource(&self) -> Resource {
        let handler = (self.handler)();
        let handler = match self.methods {
            Methods::Post => handler.guard(guard::Post()),
            Methods::Get => handler.guard(guard::Any(guard::Get()).or(guard::Head())),
        };
        let allowed = self.methods.allowed();
        web::resource(self.path)
            .route(handler)
            .default_service(web::to(move |request| method_not_allowed(request, allowed)))
    }
}

async fn method_not_allowed(request: HttpRequest, allowed: &'static str) -> HttpResponse {
    ApiError::MethodNotAllowed { method: request.method().clone(), allowed }.error_response()
}

async fn unknown_url(request: HttpRequest) -> HttpResponse {
    const MAX_PATH_CHARS: usize = 256;
    let path = request.path().chars().take(MAX_PATH_CHARS).collect();
    ApiError::UnknownUrl { method: request.method().clone(), path }.error_response()
}
