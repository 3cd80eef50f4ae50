//! What slotd knows of engines, pure: a profile becomes an argument vector, a log line a meaning.
//!
//! It starts nothing and reads nothing: programs, files and the daemon's environment come in as
//! arguments.

mod cores;
mod environment;
mod flags;
mod ladder;
mod launch;
mod need;
pub mod log;
mod spelling;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::{
    cores::{CoreNeed, CoreShare, Machine},
    environment::{for_engine, inherited},
    flags::Flags,
    ladder::{LadderInput, ladder},
    launch::{Launch, LaunchFault, LaunchInput, launch},
    need::{Estimate, GpuParts, HostParts, NeedInput, OverrideFault, need, peak_key},
};
pub use crate::spec::Endpoint;
use crate::spec::{death::LogCause, profile::EngineChoice};

/// The engines that slotd can start.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
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

/// Tells whether an engine must be given a TCP port: a command with `{port}`. All others listen on
/// a Unix socket.
pub fn wants_port(engine: &EngineChoice) -> bool {
    match engine {
        EngineChoice::Command(words) => words.iter().any(|word| launch::names(word, "{port}")),
        EngineChoice::Auto
        | EngineChoice::LlamaServer
        | EngineChoice::Candle
        | EngineChoice::External(_) => false,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_command_that_names_its_port_gets_one() {
        let command = |word: &str| EngineChoice::Command(vec!["serve".into(), word.into()]);
        assert!(wants_port(&command("--listen=127.0.0.1:{port}")));
        assert!(!wants_port(&command("{socket}")));
        assert!(!wants_port(&command("{{port}}")));
        assert!(!wants_port(&EngineChoice::Auto));
    }

    #[test]
    fn only_the_workers_exit_codes_have_a_meaning() {
        assert_eq!(code_cause(EngineKind::Candle, 71), Some(LogCause::OutOfMemory));
        assert_eq!(code_cause(EngineKind::Candle, 1), None);
        assert_eq!(code_cause(EngineKind::LlamaServer, 71), None);
    }
}
