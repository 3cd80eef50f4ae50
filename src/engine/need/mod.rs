//! How much memory an engine will take, before it is started: from its model's header and from what it
//! is told to do. Pure.
//!
//! An engine is taken as it is when it has served long prompts: weights in memory, caches full. What is
//! summed up is what the engine allocates, and for llama-server how it does that stands in its source;
//! `docs/MEMORY.md` compares the sums with what was measured.

mod arguments;
mod cache;
mod compute;
mod llama;
mod overrides;
mod peak;
mod worker;

use serde::{Deserialize, Serialize};

pub(super) use self::llama::limits;
use self::{arguments::Arguments, overrides::Overrides};
pub use self::{overrides::OverrideFault, peak::peak_key};
use super::{EngineKind, Flags, Launch};
use crate::spec::{
    Bytes,
    ladder::Rung,
    memory::{Basis, GpuNeed, Need, Peak},
    model::ModelFacts,
    profile::Profile,
};

/// Apple's GPUs have no memory of their own.
const HAS_SHARED_GPU: bool = cfg!(all(target_os = "macos", target_arch = "aarch64"));

/// Everything that a need is worked out from.
#[derive(Clone, Copy, Debug)]
pub struct NeedInput<'a> {
    /// What is served.
    pub profile: &'a Profile,
    /// On which rung of its ladder.
    pub rung: &'a Rung,
    /// By which engine.
    pub kind: EngineKind,
    /// The options that this version takes.
    pub flags: &'a Flags,
    /// What the header of the model file says, where it could be read.
    pub facts: Option<&'a ModelFacts>,
    /// What the files of the model take on the disk, where it has any.
    pub files: Option<Bytes>,
    /// What the projector beside it takes on the disk.
    pub projector: Option<Bytes>,
    /// Whether the machine has a GPU that the engine can use.
    pub has_gpu: bool,
}

/// A need with its parts.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Estimate {
    /// What it takes of the host's memory.
    pub host: HostParts,
    /// What it takes of GPUs; `None` where it computes on the CPU alone.
    pub gpu: Option<GpuParts>,
    /// What the figures come from.
    pub basis: Basis,
    /// The most that it took in earlier runs.
    pub measured: Option<Peak>,
}

/// What an engine takes of the host's memory.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct HostParts {
    /// Weights, mapped from the file or copied.
    pub weights: Bytes,
    /// Keys and values of all positions that fit, and the states of recurrent layers.
    pub cache: Bytes,
    /// Prompts that are kept beside the cache, to be taken up again.
    pub prompts: Bytes,
    /// What computing takes.
    pub compute: Bytes,
    /// The program, its vocabulary, its threads.
    pub rest: Bytes,
}

/// What an engine takes of GPUs.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct GpuParts {
    /// Weights of the layers that are there, on all GPUs together.
    pub weights: Bytes,
    /// Their keys and values, on all GPUs together.
    pub cache: Bytes,
    /// What computing takes on each GPU.
    pub compute: Bytes,
    /// What the driver takes on each GPU for a process.
    pub context: Bytes,
}

impl HostParts {
    /// Returns the sum.
    pub fn sum(&self) -> Bytes {
        total([self.weights, self.cache, self.prompts, self.compute, self.rest])
    }
}

impl Estimate {
    /// Returns what is to be kept free for the engine.
    pub fn need(&self) -> Need {
        let gpu = self.gpu.map(|gpu| {
            let need = GpuNeed {
                spread: total([gpu.weights, gpu.cache]),
                each: total([gpu.compute, gpu.context]),
            };
            self.measured.as_ref().map_or(need.clone(), |peak| peak::gpu_need(&need, &peak.gpus))
        });
        let (host, basis) = self.host_need();
        let need = Need { host, gpu, basis };
        if HAS_SHARED_GPU { need.within_host() } else { need }
    }
}

/// Works out what an engine will take. Where its model's header is not known, the size of the files
/// stands for all; where there are no files either, or `args` place tensors by a pattern that is not
/// understood, nothing is known.
pub fn need(input: &NeedInput<'_>) -> Estimate {
    let profile = &input.rung.apply(input.profile);
    let input = &NeedInput { profile, ..*input };
    match (input.kind, input.facts) {
        (EngineKind::LlamaServer, Some(facts)) => llama::estimate(input, facts).unwrap_or_default(),
        (EngineKind::Candle, Some(facts)) => worker::estimate(input, facts),
        (EngineKind::Command, _) | (EngineKind::LlamaServer | EngineKind::Candle, None) => {
            of_files(input.files)
        }
    }
}

/// Checks what a profile's `args` say of where llama-server keeps tensors.
///
/// # Errors
/// [`OverrideFault`].
pub(super) fn check_overrides(args: &[String]) -> Result<(), OverrideFault> {
    Overrides::read(Arguments(args)).map(drop)
}

fn of_files(files: Option<Bytes>) -> Estimate {
    match files {
        Some(weights) => Estimate {
            host: HostParts { weights, ..HostParts::default() },
            basis: Basis::Files,
            ..Estimate::default()
        },
        None => Estimate::default(),
    }
}

fn total<const N: usize>(parts: [Bytes; N]) -> Bytes {
    Bytes(parts.iter().fold(0, |sum, part| sum.saturating_add(part.0)))
}

/// Multiplies without a limit that could be met: what is too large for 64 bits fits nowhere.
fn product<const N: usize>(factors: [u64; N]) -> u64 {
    factors.iter().fold(1, |product, factor| product.saturating_mul(*factor))
}

#[cfg(test)]
mod tests;
