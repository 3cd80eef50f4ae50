//! What slotd knows of engines, pure: a profile becomes an argument vector, a log line a meaning.
//!
//! It starts nothing and reads nothing: programs, files and the daemon's environment come in as
//! arguments.

mod environment;
mod flags;
mod launch;
pub mod log;

use std::{fmt, net::SocketAddr, path::PathBuf};

pub use self::{
    flags::Flags,
    launch::{Launch, LaunchFault, LaunchInput, launch},
};
use crate::spec::death::LogCause;

/// Where an engine listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// A loopback address.
    Tcp(SocketAddr),
}

/// The engines that slotd can start.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EngineKind {
    /// llama.cpp's server.
    LlamaServer,
    /// The worker inside slotd.
    Candle,
    /// Any program.
    Command,
}

impl EngineKind {
    /// Returns the name that profiles and the API use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LlamaServer => "llama-server",
            Self::Candle => "candle",
            Self::Command => "command",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Returns what an exit code says where the engine gives its codes a meaning: the candle worker's
/// follow sysexits.
pub fn code_cause(kind: EngineKind, code: i32) -> Option<LogCause> {
    match (kind, code) {
        (EngineKind::Candle, 64) => Some(LogCause::BadConfig),
        (EngineKind::Candle, 65) => Some(LogCause::BadModel),
        (EngineKind::Candle, 66) => Some(LogCause::MissingFile),
        (EngineKind::Candle, 69) => Some(LogCause::PortBusy),
        (EngineKind::Candle, 71) => Some(LogCause::OutOfMemory),
        (EngineKind::Candle | EngineKind::LlamaServer | EngineKind::Command, _) => None,
    }
}
