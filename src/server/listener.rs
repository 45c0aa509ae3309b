//! Takes the port, or says in one sentence why not.

use super::ServerConfig;
use std::{
    io,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
};

/// Why the server cannot listen where it should.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Neither an address nor a name that resolves to one.
    #[error("`server.host` is `{host}`, which is no address and no name that resolves to one")]
    UnknownHost {
        /// `server.host`
        host: String,
    },
    /// Whoever reaches the port may use the model.
    #[error(
        "`server.host` is `{host}`, which others can reach, and there are no API keys; run `ortolan key NAME` and add the \
         entry that it prints to the configuration"
    )]
    NotLoopback {
        /// `server.host`
        host: String,
    },
    /// Another program has it.
    #[error("port {port} on {host} is in use; stop the program that has it or set another `server.port`")]
    PortInUse {
        /// `server.host`
        host: String,
        /// `server.port`
        port: u16,
    },
    /// Usually a port below 1024.
    #[error("this user may not listen on port {port}; set a `server.port` of 1024 or more")]
    PortForbidden {
        /// `server.port`
        port: u16,
    },
    /// Anything else, such as an address that no interface has.
    #[error("cannot listen on {host} port {port}")]
    Failed {
        /// `server.host`
        host: String,
        /// `server.port`
        port: u16,
        /// The system's words.
        source: io::Error,
    },
}

/// Connections queue up from here on; [`serve`](super::serve) answers them.
///
/// # Errors
/// See [`BindError`].
pub fn bind(config: &ServerConfig) -> Result<TcpListener, BindError> {
    TcpListener::bind(&*resolve(config)?).map_err(|source| explain(config, source))
}

/// The addresses to listen on.
///
/// # Errors
/// [`BindError::UnknownHost`], or [`BindError::NotLoopback`] where the configuration does not allow them.
pub fn resolve(config: &ServerConfig) -> Result<Vec<SocketAddr>, BindError> {
    let ServerConfig { host, port, .. } = config;
    let resolved = (host.as_str(), *port).to_socket_addrs();
    let addresses: Vec<SocketAddr> = resolved.map(Iterator::collect).unwrap_or_default();
    if addresses.is_empty() {
        return Err(BindError::UnknownHost { host: host.clone() });
    }
    let may_be_reached = !config.api_keys.is_empty() || config.insecure_no_auth;
    if !may_be_reached && !addresses.iter().all(|address| address.ip().is_loopback()) {
        return Err(BindError::NotLoopback { host: host.clone() });
    }
    Ok(addresses)
}

fn explain(config: &ServerConfig, source: io::Error) -> BindError {
    let (host, port) = (config.host.clone(), config.port);
    if source.kind() == io::ErrorKind::AddrInUse {
        BindError::PortInUse { host, port }
    } else if source.kind() == io::ErrorKind::PermissionDenied {
        BindError::PortForbidden { port }
    } else {
        BindError::Failed { host, port, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::config::tests::parse;

    fn bind_on(host: &str, port: u16) -> Result<TcpListener, BindError> {
        bind(&ServerConfig { host: host.to_owned(), port, ..parse("").unwrap() })
    }

    #[test]
    fn port_zero_is_any_free_port() {
        assert_ne!(bind_on("localhost", 0).unwrap().local_addr().unwrap().port(), 0);
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = bind_on("127.0.0.1", 0).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(matches!(bind_on("127.0.0.1", port), Err(BindError::PortInUse { port: named, .. }) if named == port));
    }

    #[test]
    fn others_are_let_in_only_with_keys() {
        assert!(matches!(bind_on("0.0.0.0", 0), Err(BindError::NotLoopback { .. })));
        assert!(matches!(bind_on("::", 0), Err(BindError::NotLoopback { .. })));
        let hash = "0".repeat(64);
        let key = format!("api_keys = [{{ name = \"ci\", sha256 = \"{hash}\" }}]");
        for setting in [key.as_str(), "insecure_no_auth = true"] {
            let config = parse(&format!("[server]\nhost = \"0.0.0.0\"\nport = 0\n{setting}")).unwrap();
            bind(&config).unwrap();
        }
    }

    #[test]
    fn a_host_that_is_none_is_named() {
        let error = bind_on("not a host", 0).unwrap_err().to_string();
        insta::assert_snapshot!(error, @"`server.host` is `not a host`, which is no address and no name that resolves to one");
    }
}
