//! The daemon as scripts see it, with the faults of profiles that are not in force.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{GpuObject, State, slot::ms};
use crate::{
    config::{Fault, rules},
    spec::{
        Bytes,
        pressure::{Pressure, Strain},
    },
};

/// The answer of `GET /v1/daemon`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DaemonObject {
    /// The version of slotd.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// How many programs were before this one in its process: one more after each `slotd upgrade`.
    #[serde(default)]
    pub images: u32,
    /// The CPU cores that engines share; 0 where an older daemon does not tell.
    #[serde(default)]
    pub cores: u32,
    /// How long it has run.
    pub uptime_ms: u64,
    /// Where the endpoint listens: `ADDR:PORT`.
    pub listen: String,
    /// Where Ollama's clients come, if they may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ollama_listen: Option<String>,
    /// The socket of the control API.
    pub control: PathBuf,
    /// Where state and logs are kept.
    pub state_dir: PathBuf,
    /// Where profiles are read.
    pub profile_dirs: Vec<PathBuf>,
    /// Where models and engines are found; `null` where an older daemon does not tell.
    #[serde(default)]
    pub places: Option<PlacesObject>,
    /// What all engines together may take of the host's memory (`memory_limit`).
    #[serde(default)]
    pub memory_limit_bytes: Option<Bytes>,
    /// How short the machine is of what engines live on; `null` where an older daemon does not tell.
    #[serde(default)]
    pub pressure: Option<PressureObject>,
    /// The GPUs that count; none where there is no NVIDIA driver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuObject>,
    /// What takes no writes at present: a full disk, one that is read-only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub storage: Vec<StorageObject>,
    /// What is wrong with profiles: what worked before is in force in their place.
    pub faults: Vec<FaultObject>,
}

/// Where the daemon finds models and engines: what a name in a profile means depends on it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct PlacesObject {
    /// The `slotd.toml` that was read, if there is one.
    pub config: Option<PathBuf>,
    /// What `~/` stands for.
    pub home: Option<PathBuf>,
    /// Where model files are looked up.
    pub model_dirs: Vec<PathBuf>,
    /// Its cache, with engines in it.
    pub cache_dir: PathBuf,
    /// The Hugging Face cache.
    pub hub_cache: Option<PathBuf>,
    /// The `llama-server` to use before any other.
    pub llama_server: Option<PathBuf>,
}

/// Something that slotd writes to, and that takes nothing.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StorageObject {
    /// What it is for: `state`, `state file`, `engine logs`, `cache`.
    pub place: String,
    /// The folder.
    pub path: PathBuf,
    /// Why it takes nothing.
    pub reason: String,
    /// Since when, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// What goes without meanwhile.
    pub costs: String,
}

/// How short the machine is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PressureObject {
    /// The highest level: `normal`, `elevated` or `critical`.
    pub level: String,
    /// How much of their usual pace clients that can wait should keep, 0 to 1.
    pub throttle: f64,
    /// The level of each: `memory`, `gpu-0` and so on, `cpu`, `disk`.
    pub sources: BTreeMap<String, String>,
}

/// One fault of a profile; see [`Fault`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FaultObject {
    /// The file or directory.
    pub file: Option<PathBuf>,
    /// The line, from 1.
    pub line: Option<usize>,
    /// The column, from 1.
    pub column: Option<usize>,
    /// The key's path.
    pub key: Option<String>,
    /// What is wrong and what is allowed.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// All of it for a person; the hint is on a line of its own.
    pub text: String,
}

impl DaemonObject {
    /// Shows the daemon as it is.
    pub(super) fn of(state: &State) -> Self {
        let daemon = &state.daemon;
        Self {
            version: daemon.version.to_owned(),
            pid: daemon.pid,
            images: daemon.images,
            cores: daemon.cores,
            uptime_ms: ms((state.now)().since(daemon.started)),
            listen: daemon.listen.to_string(),
            ollama_listen: daemon.ollama_listen.map(|address| address.to_string()),
            control: daemon.control.clone(),
            state_dir: daemon.state_dir.clone(),
            profile_dirs: daemon.profile_dirs.clone(),
            places: Some(daemon.places.clone()),
            memory_limit_bytes: daemon.memory_limit,
            pressure: Some(PressureObject::of(&state.strain.borrow())),
            gpus: GpuObject::all(&state.gpus.borrow()),
            storage: state.storage.borrow().clone(),
            faults: state.faults.load().iter().map(FaultObject::of).collect(),
        }
    }
}

impl DaemonObject {
    /// Tells whether only what serving needs is written to the disk.
    pub fn holds_history_back(&self) -> bool {
        let level = self.pressure.as_ref().and_then(|pressure| pressure.sources.get("disk"));
        level.is_some_and(|level| level == Pressure::Critical.as_str())
    }

    /// Tells whether a fault is of the file of rules, which stands beside the first folder of profiles.
    pub fn is_of_rules(&self, fault: &FaultObject) -> bool {
        let folder = self.profile_dirs.first().and_then(|profiles| profiles.parent());
        let file = folder.map(|folder| folder.join(rules::FILE_NAME));
        fault.file.is_some() && fault.file == file
    }
}

impl PressureObject {
    fn of(strain: &Strain) -> Self {
        let levels = strain.each().map(|(source, level)| (source.to_string(), level.as_str()));
        Self {
            level: strain.worst().as_str().to_owned(),
            throttle: f64::from(strain.throttle_percent()) / 100.0,
            sources: levels.map(|(source, level)| (source, level.to_owned())).collect(),
        }
    }
}

impl FaultObject {
    fn of(fault: &Fault) -> Self {
        Self {
            file: fault.file.clone(),
            line: fault.line,
            column: fault.column,
            key: fault.key.clone(),
            message: fault.message.clone(),
            hint: fault.hint.clone(),
            text: fault.to_string(),
        }
    }
}
