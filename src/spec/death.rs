//! Why a child died: what is known, and what follows from it.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Bytes, Generation, gpu::XidBefore};

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
    /// It stood still or spun: no answer, no token, no use, for `hang_timeout`.
    Hung,
    /// It failed every request, whatever its health said.
    Poisoned,
    /// The engine refused its arguments.
    BadConfig,
    /// A file that it needs is not there.
    MissingFile,
    /// Its model has to be fetched: what a pull can mend.
    ModelNotFetched,
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
    pub const ALL: [Self; 15] = [
        Self::StoppedByUs,
        Self::KilledByOther,
        Self::OomHost,
        Self::OomDevice,
        Self::Crash,
        Self::StartTimeout,
        Self::Hung,
        Self::Poisoned,
        Self::BadConfig,
        Self::MissingFile,
        Self::ModelNotFetched,
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
            Self::Hung => "hung",
            Self::Poisoned => "poisoned",
            Self::BadConfig => "bad-config",
            Self::MissingFile => "missing-file",
            Self::ModelNotFetched => "model-not-fetched",
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

    /// Tells whether slotd itself ended it, because it was past saving.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::StartTimeout | Self::Hung | Self::Poisoned)
    }

    /// Tells whether trying again unchanged can only fail again, so that a person is needed.
    pub fn needs_person(self) -> bool {
        matches!(
            self,
            Self::BadConfig
                | Self::MissingFile
                | Self::ModelNotFetched
                | Self::BadModel
                | Self::SpawnFailed
        )
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How much a verdict can be relied on.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// The most plausible reading of little evidence. Also what a verdict counts as that was
    /// recorded without a confidence.
    #[default]
    Guessed,
    /// The engine's own words, or several hints that agree.
    Likely,
    /// The kernel, our own record or a code with a defined meaning says so.
    Certain,
}

impl Confidence {
    /// Returns the name used in the API and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guessed => "guessed",
            Self::Likely => "likely",
            Self::Certain => "certain",
        }
    }
}

impl fmt::Display for Confidence {
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
    /// Whether the line names a cause, or says only that something failed.
    #[serde(default)]
    pub confidence: Confidence,
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

/// What the kernel's log says about one child.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelLog {
    /// It cannot be read here.
    #[default]
    Unreadable,
    /// It was read, and does not name the child.
    Silent,
    /// It says that the child, or a process of its group, was killed for want of memory.
    OomKill {
        /// The line, at most 300 bytes of it.
        line: String,
    },
    /// It says that the child made a fault that it could not survive.
    Fault {
        /// The line, at most 300 bytes of it.
        line: String,
    },
}

/// Memory in the last seconds of a child.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct MemoryTimeline {
    /// What the machine has; `None` if it is not known.
    pub total_bytes: Option<Bytes>,
    /// The limit of the child's cgroup and those above it; `None` without one.
    pub limit_bytes: Option<Bytes>,
    /// Oldest first, at most 12.
    pub samples: Vec<MemorySample>,
}

/// Memory at one moment.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct MemorySample {
    /// How long before the death became known.
    pub before_ms: u64,
    /// Resident memory of the child; `None` if it could not be read.
    pub rss_bytes: Option<Bytes>,
    /// What the machine could still give without swapping; `None` if it is not known.
    pub available_bytes: Option<Bytes>,
}

impl MemoryTimeline {
    /// Returns the last known resident memory.
    pub fn last_rss(&self) -> Option<Bytes> {
        self.samples.iter().rev().find_map(|sample| sample.rss_bytes)
    }

    /// Tells whether the machine had less than a sixteenth of its memory left at the end; `None` if
    /// that is not known.
    pub fn was_scarce(&self) -> Option<bool> {
        let total = self.total_bytes.filter(|total| total.0 > 0)?;
        let available = self.samples.iter().rev().find_map(|sample| sample.available_bytes)?;
        Some(available.0 < total.0 / 16)
    }
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
    /// How many OOM kills the spawn's own cgroup counted in its last seconds; `None` where there is
    /// no such counter.
    pub oom_kills: Option<u64>,
    /// How many OOM kills the daemon's own cgroup counted in these seconds, children without a
    /// cgroup among them; `None` where there is no such counter.
    #[serde(default)]
    pub daemon_oom_kills: Option<u64>,
    /// How many OOM kills the whole machine counted in these seconds; `None` where nobody counts.
    #[serde(default)]
    pub machine_oom_kills: Option<u64>,
    /// What the kernel's log says.
    #[serde(default)]
    pub kernel_log: KernelLog,
    /// Memory in its last seconds.
    #[serde(default)]
    pub memory: Box<MemoryTimeline>,
    /// What the driver reported, in its last seconds, of the GPUs that it was on; oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xids: Vec<XidBefore>,
    /// The last lines of its log, oldest first; at most 20.
    pub last_lines: Vec<String>,
}

impl Evidence {
    /// Knows nothing but the wait status.
    pub fn of(status: ExitStatus) -> Self {
        Self {
            status,
            code_cause: None,
            log: None,
            oom_kills: None,
            daemon_oom_kills: None,
            machine_oom_kills: None,
            kernel_log: KernelLog::Unreadable,
            memory: Box::default(),
            xids: Vec::new(),
            last_lines: Vec::new(),
        }
    }
}

/// One death as history keeps it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Death {
    /// The generation that died.
    pub generation: Generation,
    /// Its process id, where it had come that far.
    pub pid: Option<u32>,
    /// The cause.
    pub verdict: Verdict,
    /// How much the verdict can be relied on.
    #[serde(default)]
    pub confidence: Confidence,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_death_that_was_kept_before_there_were_confidences_is_read() {
        let kept = r#"{"generation":2,"pid":411,"verdict":"bad-model","reason":"so","phase":"starting",
            "ran_for":{"secs":1,"nanos":0},"at_unix_ms":7,"evidence":{"status":{"code":1},
            "code_cause":null,"log":{"cause":"bad-model","line":"x"},"oom_kills":0,
            "last_lines":["x"]}}"#;
        let death: Death = serde_json::from_str(kept).unwrap();
        assert_eq!(death.confidence, Confidence::Guessed);
        let evidence = death.evidence.unwrap();
        assert_eq!((evidence.kernel_log, evidence.oom_kills), (KernelLog::Unreadable, Some(0)));
    }

    #[test]
    fn memory_is_scarce_below_a_sixteenth_by_the_last_reading() {
        let sample = |available| MemorySample {
            available_bytes: Some(Bytes(available)),
            ..MemorySample::default()
        };
        let timeline =
            |samples| MemoryTimeline { total_bytes: Some(Bytes(1600)), limit_bytes: None, samples };
        assert_eq!(timeline(vec![sample(900), sample(99)]).was_scarce(), Some(true));
        assert_eq!(timeline(vec![sample(9), sample(100)]).was_scarce(), Some(false));
        assert_eq!(timeline(Vec::new()).was_scarce(), None);
        assert_eq!(MemoryTimeline::default().was_scarce(), None);
    }
}
