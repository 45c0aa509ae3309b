//! To which names the server answers. A web page can have its own name resolve to a loopback address and would then be
//! let in as if it came from here (DNS rebinding), so names have to be known; addresses need not be. Where there are keys,
//! such a page has none, and any name will do.

use super::{ApiError, AppState};
use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::header,
    middleware::Next,
    web,
};
use std::net::{IpAddr, Ipv6Addr};

/// The middleware.
pub(super) async fn check<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    let app = request.app_data::<web::Data<AppState>>().expect("every app has its state");
    if !app.keys.is_empty() {
        return next.call(request).await;
    }
    let sent = request.headers().get(header::HOST).map(|host| host.as_bytes());
    let sent = sent.or_else(|| request.uri().authority().map(|authority| authority.as_str().as_bytes()));
    // Only a client that is no browser sends none.
    let Some(sent) = sent.map(String::from_utf8_lossy) else { return next.call(request).await };
    let configured = [&app.config.host].into_iter().chain(&app.config.allowed_hosts);
    if is_known(&sent, configured.map(String::as_str)) {
        return next.call(request).await;
    }
    const MAX_HOST_CHARS: usize = 256;
    Err(ApiError::UnknownHost { host: sent.chars().take(MAX_HOST_CHARS).collect() }.into())
}

fn is_known<'a>(sent: &str, mut configured: impl Iterator<Item = &'a str>) -> bool {
    let name = without_port(sent);
    name.parse::<IpAddr>().is_ok()
        || name.strip_prefix('[').and_then(|name| name.strip_suffix(']')?.parse::<Ipv6Addr>().ok()).is_some()
        || name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || configured.any(|known| known.eq_ignore_ascii_case(name))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_known_names_are_answered() {
        for (host, known) in [
            ("127.0.0.1:8080", true),
            ("[::1]:8080", true),
            ("localhost", true),
            ("LOCALHOST:1", true),
            ("app.localhost:3000", true),
            ("box.lan:8080", true),
            ("evil.example", false),
            ("evil.example:8080", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("[::1].evil.example", false),
            ("", false),
        ] {
            assert_eq!(is_known(host, ["box.lan"].into_iter()), known, "{host}");
        }
    }
}
