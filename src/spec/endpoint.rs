//! Where an engine listens.

use std::{fmt, net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Where an engine listens.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// An address; of loopback, but for an engine that somebody else runs.
    Tcp(SocketAddr),
}

impl Endpoint {
    /// Tells whether it is on this machine.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
        }
    }

    /// Returns it as profiles write it.
    pub fn url(&self) -> String {
        match self {
            Self::Unix(_) => self.to_string(),
            Self::Tcp(address) => format!("http://{address}"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}
