//! Who asks.

use super::AppState;
use crate::responses::Caller;
use actix_web::{
    HttpRequest,
    http::header::{self, HeaderValue},
};

/// To whom all belongs where there are no keys.
const EVERYBODY: &str = "default";

impl AppState {
    pub(super) fn caller(&self, request: &HttpRequest) -> Caller {
        let key = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        Caller { tenant: EVERYBODY.into(), cache_salt: self.responder.cache_salt(key) }
    }
}
