//! Why a child died: what is known, and what follows from it.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// The classified cause of a death.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// slotd asked it to stop, or killed it after the grace period.
    StoppedByUs,
    /// A signal that slotd did not send ended it, and nothing points to memory.
    KilledByOther,
    /// The kernel killed it for host memory, or an allocation of host memory failed.
    OomHost,
    /// An allocation on a device failed.
    OomDevice,
    /// It crashed: a signal such as `SIGSEGV` or `SIGABRT`, or an exit code after it was ready.
    Crash,
    /// It did not become ready in time.
    StartTimeout,
    /// The engine refused its arguments.
    BadConfig,
    /// A file that it needs is not there.
    MissingFile,
    /// The model file is damaged or of a kind that the engine cannot load.
    BadModel,
    /// Its address was taken.
    PortBusy,
    /// It ended by itself with exit code 0, or while starting without a text that is known.
    UnexpectedExit,
    /// The program could not be started.
    SpawnFailed,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Self; 12] = [
        Self::StoppedByUs,
        Self::KilledByOther,
        Self::OomHost,
        Self::OomDevice,
        Self::Crash,
        Self::StartTimeout,
        Self::BadConfig,
        Self::MissingFile,
        Self::BadModel,
        Self::PortBusy,
        Self::UnexpectedExit,
        Self::SpawnFailed,
    ];

    /// Returns the name used in the API, in logs and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StoppedByUs => "stopped-by-us",
            Self::KilledByOther => "killed-by-other",
            Self::OomHost => "oom-host",
            Self::OomDevice => "oom-device",
            Self::Crash => "crash",
            Self::StartTimeout => "start-timeout",
            Self::BadConfig => "bad-config",
            Self::MissingFile => "missing-file",
            Self::BadModel => "bad-model",
            Self::PortBusy => "port-busy",
            Self::UnexpectedExit => "unexpected-exit",
            Self::SpawnFailed => "spawn-failed",
        }
    }

    /// Tells whether memory was short, the host's or a device's.
    pub fn is_oom(self) -> bool {
        matches!(self, Self::OomHost | Self::OomDevice)
    }

    /// Tells whether trying again unchanged can only fail again, so that a person is needed.
    pub fn needs_person(self) -> bool {
        matches!(self, Self::BadConfig | Self::MissingFile | Self::BadModel | Self::SpawnFailed)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a child ended, from its wait status.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitStatus {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// The status could not be read.
    Unknown,
}

/// A cause that the engine itself wrote to its log, found by `engine::log`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LogFinding {
    /// What the line says.
    pub cause: LogCause,
    /// The line, at most 300 bytes of it.
    pub line: String,
}

/// What a line of an engine's log says about its death.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogCause {
    /// An allocation of host memory failed, or one that the log does not place on a device.
    OutOfMemory,
    /// An allocation on a device failed.
    OutOfDeviceMemory,
    /// An argument was refused.
    BadConfig,
    /// A file was not found.
    MissingFile,
    /// The model is damaged or of an unknown kind.
    BadModel,
    /// The address is taken.
    PortBusy,
}

/// How far a child had come when it died.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It had not been ready yet.
    Starting,
    /// It had been ready.
    Serving,
}

/// All that is known about one death. Gathered by `process`, judged by `supervisor::verdict`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Evidence {
    /// The wait status.
    pub status: ExitStatus,
    /// Exit codes with a meaning of their own are known for this engine: the candle worker's.
    pub code_cause: Option<LogCause>,
    /// What the engine's last log lines say.
    pub log: Option<LogFinding>,
    /// How many OOM kills the spawn's own cgroup counted; `None` where there is no such counter.
    pub oom_kills: Option<u64>,
    /// The last lines of its log, oldest first; at most 20.
    pub last_lines: Vec<String>,
}

/// One death as history keeps it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Death {
    /// The generation that died.
    pub generation: super::Generation,
    /// Its process id, where it had come that far.
    pub pid: Option<u32>,
    /// The cause.
    pub verdict: Verdict,
    /// One sentence for a person: what happened, and what follows from which fact.
    pub reason: String,
    /// How far it had come.
    pub phase: Phase,
    /// How long it had run.
    pub ran_for: Duration,
    /// Wall-clock time of the death in milliseconds since 1970; for people, never for decisions.
    pub at_unix_ms: u64,
    /// What the verdict rests on; `None` for a child that never was.
    pub evidence: Option<Evidence>,
}
