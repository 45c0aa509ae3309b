//! Who asks: where there are keys, each request to a route that is not open has to show one. The check is part of the
//! route that the router has found, so no spelling of a path leads around it.

use super::{
    ApiError, AppState,
    api_key::{KeyConfig, KeyHash},
    limits::{Admission, Estimate, Limits, Reached},
};
use actix_web::{
    Error, HttpMessage, HttpRequest,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::header::{self, HeaderMap},
    middleware::Next,
    web,
};
use std::sync::Arc;
use subtle::{ConditionallySelectable, ConstantTimeEq};

/// Everybody, where there are no keys.
const DEFAULT_TENANT: &str = "default";

/// Who sent a request.
#[derive(Clone, Debug)]
pub(super) struct Caller(Option<Arc<ApiKey>>);

#[derive(Debug)]
struct ApiKey {
    name: String,
    tenant: String,
    sha256: KeyHash,
    limits: Arc<Limits>,
}

impl Caller {
    /// Whose data it may share.
    pub(super) fn tenant(&self) -> &str {
        self.0.as_ref().map_or(DEFAULT_TENANT, |key| &key.tenant)
    }

    /// Of its key; none where there are no keys.
    pub(super) fn name(&self) -> Option<&str> {
        self.0.as_ref().map(|key| key.name.as_str())
    }

    /// Takes what one reply will cost from the key's limits; what it gives is held until the reply ends.
    ///
    /// # Errors
    /// [`ApiError::RateLimited`], and nothing was taken.
    pub(super) fn admit(&self, estimate: Estimate) -> Result<Admission, ApiError> {
        let Some(key) = &self.0 else { return Ok(Admission::unlimited()) };
        let name = || key.name.clone();
        key.limits.admit(estimate).map_err(|Reached { limit, wait }| ApiError::RateLimited { key: name(), limit, wait })
    }
}

/// Who sent it. Only for the handlers of routes that are not open: nobody has asked who calls the others.
pub(super) fn caller(request: &HttpRequest) -> Caller {
    request.extensions().get::<Caller>().cloned().expect("`check` stands before every route that is not open")
}

/// All keys that are let in.
#[derive(Clone, Debug)]
pub(super) struct ApiKeys(Arc<[Arc<ApiKey>]>);

impl ApiKeys {
    pub(super) fn new(configured: &[KeyConfig]) -> Self {
        let key = |config: &KeyConfig| {
            let name = config.name.clone();
            let tenant = config.tenant.clone().unwrap_or_else(|| name.clone());
            Arc::new(ApiKey { name, tenant, sha256: config.sha256, limits: Arc::new(Limits::new(config)) })
        };
        Self(configured.iter().map(key).collect())
    }

    /// Whether everybody is let in.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn identify(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        if self.is_empty() {
            return Ok(Caller(None));
        }
        let key = bearer(headers).and_then(|sent| self.find(sent)).ok_or(ApiError::InvalidKey)?;
        Ok(Caller(Some(key.clone())))
    }

    /// Takes as long for any key of the same length: hashes are compared to their ends, and all of them.
    fn find(&self, sent: &[u8]) -> Option<&Arc<ApiKey>> {
        let sent = KeyHash::of(sent);
        let mut found = 0_u64;
        for (position, key) in (1..).zip(self.0.iter()) {
            found.conditional_assign(&position, key.sha256.ct_eq(&sent));
        }
        let index = usize::try_from(found.checked_sub(1)?).ok()?;
        self.0.get(index)
    }
}

/// The key of `Authorization: Bearer KEY`. Of two such headers none counts: a proxy might have read the other one.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut sent = headers.get_all(header::AUTHORIZATION);
    let (Some(only), None) = (sent.next(), sent.next()) else { return None };
    let (scheme, key) = only.as_bytes().split_at_checked("Bearer".len())?;
    let is_bearer = scheme.eq_ignore_ascii_case(b"Bearer") && key.starts_with(b" ");
    is_bearer.then(|| key.trim_ascii())
}

/// The middleware of every route that is not open.
pub(super) async fn check<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    let app = request.app_data::<web::Data<AppState>>().expect("every app has its state");
    let caller = app.keys.identify(request.headers())?;
    request.extensions_mut().insert(caller.clone());
    let mut response = next.call(request).await?;
    if let Some(key) = caller.0 {
        key.limits.add_headers(response.headers_mut());
    }
    Ok(response)
}

/// The middleware of the metrics.
pub(super) async fn check_unless_open<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    let app = request.app_data::<web::Data<AppState>>().expect("every app has its state");
    if app.config.open_metrics {
        return next.call(request).await;
    }
    check(request, next).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::HeaderValue;

    fn keys(keys: &[&str]) -> ApiKeys {
        let config = |key: &&str| KeyConfig {
            name: format!("name of {key}"),
            sha256: KeyHash::of(key.as_bytes()),
            tenant: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            max_streams: None,
        };
        ApiKeys::new(&keys.iter().map(config).collect::<Vec<_>>())
    }

    fn headers(sent: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in sent {
            headers.append(header::AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn a_key_is_found_as_it_is_and_in_no_other_way() {
        let keys = keys(&["Alpha", "beta", "gamma"]);
        let cases: &[(&[&str], Option<&str>)] = &[
            (&["Bearer Alpha"], Some("name of Alpha")),
            (&["bearer gamma"], Some("name of gamma")),
            (&["BEARER   beta "], Some("name of beta")),
            (&["Bearer alpha"], None),
            (&["Bearer Alpha beta"], None),
            (&["Bearer Alph"], None),
            (&["Bearer AlphaAlpha"], None),
            (&["BearerAlpha"], None),
            (&["Bearer"], None),
            (&["Bearer "], None),
            (&["Basic Alpha"], None),
            (&["Alpha"], None),
            (&[""], None),
            (&["Bearé r Alpha"], None),
            (&["Bearer Alpha", "Bearer Alpha"], None),
            (&["Bearer Alpha", "Bearer wrong"], None),
            (&[], None),
        ];
        for (sent, name) in cases {
            let found = keys.identify(&headers(sent)).ok();
            assert_eq!(found.as_ref().and_then(Caller::name), *name, "{sent:?}");
            assert_eq!(found.as_ref().map(Caller::tenant), *name, "{sent:?}");
        }
    }

    #[test]
    fn without_keys_everybody_is_let_in() {
        let caller = keys(&[]).identify(&headers(&["Bearer whatever"])).unwrap();
        assert_eq!((caller.name(), caller.tenant()), (None, "default"));
        caller.admit(Estimate::new(&serde_json::Value::Null)).unwrap().charge(1);
    }

    #[test]
    fn what_is_printed_of_keys_does_not_hold_them() {
        assert!(!format!("{:?}", keys(&["ork_secret"])).replace("name of ork_secret", "").contains("ork_secret"));
    }
}
