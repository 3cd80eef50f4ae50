//! Profile, engine and machine to the rungs of a slot.
//!
//! The first rung is the profile as it was written. What slotd adds below it takes the least from
//! people first: a cheaper KV cache, fewer requests at once, half the context, half the layers on
//! the GPU, the CPU. A ladder of slotd's own has at most [`LONGEST`] rungs, so that the usual
//! `max_restarts` reaches its end.

use super::{EngineKind, Flags, launch};
use crate::spec::{
    ladder::{CacheType, LadderChoice, Rung},
    profile::Profile,
};

/// The most rungs of a ladder that slotd makes.
const LONGEST: usize = 6;
/// No context is made smaller than this: clients send system prompts of such a size.
const SMALLEST_CONTEXT: u32 = 1024;

/// Everything that a ladder is made from.
#[derive(Clone, Copy, Debug)]
pub struct LadderInput<'a> {
    /// The profile.
    pub profile: &'a Profile,
    /// The engine.
    pub kind: EngineKind,
    /// The options that this version takes.
    pub flags: &'a Flags,
    /// Tokens that the model was trained for, where its file says so.
    pub trained_context: Option<u32>,
    /// How many layers the model has, where its file says so.
    pub layers: Option<u32>,
    /// Whether the machine has a GPU that engines can use.
    pub has_gpu: bool,
}

/// Makes the rungs, best first; never empty.
pub fn ladder(input: &LadderInput<'_>) -> Vec<Rung> {
    match &input.profile.ladder {
        LadderChoice::Off => vec![Rung::default()],
        LadderChoice::Pinned(rung) => vec![rung.clone()],
        LadderChoice::Rungs(rungs) => {
            [Rung::default()].into_iter().chain(rungs.iter().cloned()).collect()
        }
        LadderChoice::Unsaid | LadderChoice::Auto => derived(input),
    }
}

fn derived(input: &LadderInput<'_>) -> Vec<Rung> {
    let mut rungs = vec![Rung::default()];
    if input.kind == EngineKind::Command {
        return rungs; // Its words for all this are not known.
    }
    let steps = [cheaper_cache, one_at_a_time, half_context, half_context, half_layers, no_layers];
    for step in steps {
        let above = rungs.last().cloned().unwrap_or_default();
        if rungs.len() < LONGEST
            && let Some(lower) = step(input, &above)
        {
            rungs.push(lower);
        }
    }
    rungs
}

fn cheaper_cache(input: &LadderInput<'_>, above: &Rung) -> Option<Rung> {
    let is_known = input.flags.names("--cache-type-k") && input.flags.names("--cache-type-v");
    // Values that are not kept as floats need flash attention.
    let can =
        input.kind == EngineKind::LlamaServer && is_known && input.flags.names("--flash-attn");
    let is_free = !is_given(
        input,
        &["--cache-type-k", "-ctk", "--cache-type-v", "-ctv", "--flash-attn", "-fa"],
    );
    (can && is_free).then(|| Rung { cache_type: Some(CacheType::Q8_0), ..above.clone() })
}

/// Without a context the sequences share one pool, and fewer of them take no less.
fn one_at_a_time(input: &LadderInput<'_>, above: &Rung) -> Option<Rung> {
    let profile = input.profile;
    let parallel = launch::parallel(profile, input.kind);
    let may = may_lower(input, profile.parallel.is_some());
    (may && profile.context.is_some() && parallel > 1)
        .then(|| Rung { parallel: Some(1), ..above.clone() })
}

fn half_context(input: &LadderInput<'_>, above: &Rung) -> Option<Rung> {
    let profile = input.profile;
    let may =
        may_lower(input, profile.context.is_some()) && !is_given(input, &["--ctx-size", "-c"]);
    let half = above.context.or(profile.context).or(input.trained_context)? / 2;
    if !may || half < SMALLEST_CONTEXT {
        return None;
    }
    // A context that is said is one sequence's: what was one pool must not be multiplied.
    let shares_a_pool = profile.context.is_none() && input.kind == EngineKind::LlamaServer;
    let parallel = if shares_a_pool {
        if !may_lower(input, profile.parallel.is_some()) {
            return None;
        }
        Some(1)
    } else {
        above.parallel
    };
    Some(Rung { context: Some(half), parallel, ..above.clone() })
}

fn half_layers(input: &LadderInput<'_>, above: &Rung) -> Option<Rung> {
    let half = on_the_gpu(input)?.filter(|layers| *layers > 1)? / 2;
    Some(Rung { gpu_layers: Some(half), ..above.clone() })
}

fn no_layers(input: &LadderInput<'_>, above: &Rung) -> Option<Rung> {
    on_the_gpu(input)?;
    Some(Rung { gpu_layers: Some(0), ..above.clone() })
}

/// How many layers the first rung has on the GPU, where that may be lowered; `Some(None)` where the
/// number is not known.
#[expect(clippy::option_option, reason = "no layers to lower, and an unknown number of them")]
fn on_the_gpu(input: &LadderInput<'_>) -> Option<Option<u32>> {
    let set = input.profile.gpu_layers;
    let may = may_lower(input, set.is_some())
        && !is_given(input, &["--n-gpu-layers", "--gpu-layers", "-ngl"]);
    if !input.has_gpu || !may || set == Some(0) {
        return None;
    }
    Some(match (set, input.layers) {
        (Some(set), Some(layers)) => Some(set.min(layers)),
        (set, layers) => set.or(layers),
    })
}

/// A number that a person wrote down is theirs, unless they said `ladder = "auto"`.
fn may_lower(input: &LadderInput<'_>, is_set: bool) -> bool {
    !is_set || input.profile.ladder == LadderChoice::Auto
}

/// Tells whether `args` already have one of these options: the engine would get it twice.
fn is_given(input: &LadderInput<'_>, options: &[&str]) -> bool {
    input.profile.args.iter().any(|argument| {
        let option = argument.split('=').next().unwrap_or_default();
        options.contains(&option)
    })
}

#[cfg(test)]
mod tests;
