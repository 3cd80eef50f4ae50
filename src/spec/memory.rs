//! Memory as slots need it and as the machine has it: what predictions, sensors and the core share.
//!
//! Host and GPUs are different pools. Unknown is a value everywhere: nobody acts on a figure that is
//! not there, and nobody takes it for nothing.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Bytes, Generation};

/// What an engine takes on one rung, once it serves with its caches full.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Need {
    /// Host memory: resident bytes of all its processes, mapped weights included.
    pub host: Bytes,
    /// What it takes on GPUs; `None` where it computes on the CPU alone.
    pub gpu: Option<GpuNeed>,
    /// What the figures come from.
    pub basis: Basis,
}

impl Need {
    /// Returns the need on a machine whose GPU has no memory of its own: what it holds there is the host's, too.
    #[must_use]
    pub fn within_host(self) -> Self {
        let on_gpu = self.gpu.as_ref().map_or(0, |gpu| gpu.least().0);
        Self { host: Bytes(self.host.0.saturating_add(on_gpu)), ..self }
    }
}

/// What an engine takes on GPUs.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct GpuNeed {
    /// What may be spread over several GPUs: weights and caches by layer.
    pub spread: Bytes,
    /// What each GPU in use takes on top: the driver's context, compute buffers.
    pub each: Bytes,
}

impl GpuNeed {
    /// Returns what it takes where one GPU is enough.
    pub fn least(&self) -> Bytes {
        Bytes(self.spread.0.saturating_add(self.each.0))
    }
}

/// The most that an engine took in earlier runs.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Peak {
    /// Of the host's memory: resident bytes of all its processes, mapped files included.
    pub host: Bytes,
    /// Of each GPU that it was on, by UUID; empty where that is not known of every one of them.
    pub gpus: BTreeMap<String, Bytes>,
}

/// What a need was worked out from.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// Nothing is known: the engine takes what it takes, and is measured.
    #[default]
    Unknown,
    /// The size of the files alone.
    Files,
    /// The header of the model file.
    Header,
    /// The peak of an earlier run of the same file, engine and arguments.
    Measured,
    /// A person wrote it into the profile.
    Profile,
}

/// Memory of the machine at one moment.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct MemoryReading {
    /// What engines can be given of the host's; `None` if it is not known.
    pub host: Option<Room>,
    /// The GPUs by their index in the order of the driver's bus addresses. One that is lost keeps its
    /// place.
    pub gpus: BTreeMap<u32, GpuReading>,
}

/// One pool at one moment.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Room {
    /// All of it, strangers' share included; for the host no more than the cgroups above us allow.
    pub total: Bytes,
    /// What nobody uses now.
    pub free: Bytes,
}

/// One GPU at one moment.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GpuReading {
    /// What stays the same when the order of GPUs changes: NVIDIA's UUID.
    pub uuid: String,
    /// Its name, for people.
    pub name: String,
    /// Its memory, or why that is not known.
    pub state: GpuState,
}

/// What is known of a GPU's memory.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpuState {
    /// It answers.
    Present(Room),
    /// It does not answer in time; what was last read is `last`.
    Silent {
        /// The last reading, however old.
        last: Option<Room>,
    },
    /// The driver says that it is gone: no engine may be placed there, and those that are there are dead.
    Lost {
        /// One clause for people.
        reason: String,
    },
}

/// One of our engines at the moment of a [`MemoryReading`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct EngineReading {
    /// The child.
    pub generation: Generation,
    /// Requests being served.
    pub in_flight: u32,
    /// How long since the last one ended, or since it became ready.
    pub idle_for: Duration,
    /// What of the host's used memory is this engine's; `None` if it is not known.
    pub host: Option<Bytes>,
    /// What of the GPUs' used memory is this engine's, where that is known.
    pub gpus: BTreeMap<u32, Bytes>,
}

/// Bytes of each pool that one slot is counted with.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Share {
    /// Of the host's memory.
    pub host: Bytes,
    /// Of the memory of GPUs, by their index.
    pub gpus: BTreeMap<u32, Bytes>,
}

impl Share {
    /// Adds another share to this one.
    pub fn add(&mut self, other: &Self) {
        self.host.grow(other.host);
        for (gpu, bytes) in &other.gpus {
            self.gpus.entry(*gpu).or_default().grow(*bytes);
        }
    }

    /// Takes what was measured into account where it is more than what was promised.
    #[must_use]
    pub fn at_least(mut self, measured: &Self) -> Self {
        self.host = self.host.max(measured.host);
        for (gpu, bytes) in &measured.gpus {
            let promised = self.gpus.entry(*gpu).or_default();
            *promised = (*promised).max(*bytes);
        }
        self
    }

    /// Returns what of this goes beyond another share.
    #[must_use]
    pub fn beyond(&self, other: &Self) -> Self {
        let less = |bytes: Bytes, other: Bytes| Bytes(bytes.0.saturating_sub(other.0));
        let gpus = self.gpus.iter().map(|(gpu, bytes)| {
            let other = other.gpus.get(gpu).copied().unwrap_or_default();
            (*gpu, less(*bytes, other))
        });
        Self { host: less(self.host, other.host), gpus: gpus.collect() }
    }
}
