//! The key `ladder` of a profile: a word, or a list of rungs.

use std::ops::RangeInclusive;

use schemars::JsonSchema;

use super::{
    file::{CONTEXT, EngineKey, GPU_LAYERS, OWN_DEFAULT, PARALLEL, ProfileFile},
    walk::{At, Walk},
};
use crate::spec::ladder::{CacheType, LadderChoice, Rung};

/// The most rungs that a profile lists.
const MOST: usize = 16;
/// The longest name of a rung, in characters.
const LONGEST_NAME: usize = 40;

const KEYS: [&str; 6] = ["name", "gpu_layers", "context", "parallel", "cache_type", "pinned"];

/// The shape of `ladder`, for the schema alone.
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "read by the schema generator only")]
pub(super) enum LadderShape {
    Word(LadderWord),
    Rungs(#[schemars(length(min = 1, max = 16))] Vec<RungShape>),
}

/// The words that `ladder` takes.
#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case", inline)]
#[expect(dead_code, reason = "read by the schema generator only")]
pub(super) enum LadderWord {
    /// slotd makes the rungs, and may lower what the profile sets too.
    Auto,
    /// The profile as it is, and nothing else.
    Off,
}

/// What a rung changes against the profile.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, inline)]
#[expect(dead_code, reason = "read by the schema generator only")]
pub(super) struct RungShape {
    /// What `slotd ps` calls it, 1 to 40 characters. Default: what it changes.
    #[schemars(with = "String", length(min = 1, max = 40))]
    name: Option<String>,
    /// Layers to hold on the GPU, 0 to 10000.
    #[schemars(with = "u32", range(min = 0, max = 10_000))]
    gpu_layers: Option<u32>,
    /// Context length of one request, in tokens, 256 to 1048576.
    #[schemars(with = "u32", range(min = 256, max = 1_048_576))]
    context: Option<u32>,
    /// How many requests the engine works on at once, 1 to 256.
    #[schemars(with = "u32", range(min = 1, max = 256))]
    parallel: Option<u32>,
    /// What llama-server keeps its KV cache as.
    #[schemars(with = "String", extend("enum" = ["f16", "q8_0", "q4_0"]))]
    cache_type: Option<String>,
    /// Stay on this rung, and never leave it. Default: false.
    #[schemars(extend("default" = false))]
    pinned: bool,
}

/// Takes the key.
pub(super) fn take(walk: &mut Walk<'_>) -> LadderChoice {
    if walk.is_list("ladder") {
        return take_rungs(walk);
    }
    let words = [("auto", Word::Auto), ("off", Word::Off)];
    match walk.take_choice("ladder", &words) {
        Some(Word::Auto) => LadderChoice::Auto,
        Some(Word::Off) => LadderChoice::Off,
        None => LadderChoice::Unsaid,
    }
}

#[derive(Clone, Copy)]
enum Word {
    Auto,
    Off,
}

/// A rung as it was typed.
struct Typed {
    rung: Rung,
    pinned_at: Option<usize>,
}

fn take_rungs(walk: &mut Walk<'_>) -> LadderChoice {
    let Some(typed) = walk.take_tables("ladder", take_rung) else { return LadderChoice::Unsaid };
    let at = walk.offset_of_key("ladder").unwrap_or_default();
    if typed.is_empty() {
        walk.refuse(at, "ladder", "cannot be empty", "for no ladder, write `ladder = \"off\"`");
    }
    if typed.len() > MOST {
        let message = format!("has {} rungs, expected at most {MOST}", typed.len());
        walk.refuse(at, "ladder", message, "leave out those that differ least");
    }
    let mut pinned = typed.iter().filter_map(|one| Some((one, one.pinned_at?)));
    let first = pinned.next().map(|(one, _)| one.rung.clone());
    if let Some((_, at)) = pinned.next() {
        let hint = "keep `pinned` on the rung that the slot shall stay on";
        walk.refuse(at, "ladder", "has more than one pinned rung, expected at most one", hint);
    }
    match first {
        Some(rung) => LadderChoice::Pinned(rung),
        None => LadderChoice::Rungs(typed.into_iter().map(|one| one.rung).collect()),
    }
}

fn take_rung(walk: &mut Walk<'_>) -> Typed {
    walk.refuse_unknown(&KEYS, |_| None);
    let number = |walk: &mut Walk<'_>, key, range: &RangeInclusive<u32>| {
        walk.take_number(key, range, OWN_DEFAULT)
    };
    let rung = Rung {
        name: walk.take_text("name").and_then(|name| checked_name(walk, name)),
        gpu_layers: number(walk, "gpu_layers", &GPU_LAYERS),
        context: number(walk, "context", &CONTEXT),
        parallel: number(walk, "parallel", &PARALLEL),
        cache_type: walk.take_choice("cache_type", &CacheType::ALL.map(|one| (one.as_str(), one))),
    };
    let is_pinned = walk.take_flag("pinned").unwrap_or_default();
    let pinned_at = walk.offset_of_key("pinned").filter(|_| is_pinned);
    let changes = ["gpu_layers", "context", "parallel", "cache_type"];
    if !changes.iter().any(|key| walk.offset_of_key(key).is_some()) {
        let hint = "set one of `gpu_layers`, `context`, `parallel`, `cache_type`; the profile itself is the first rung";
        walk.refuse_here("changes nothing", hint);
    }
    Typed { rung, pinned_at }
}

fn checked_name(walk: &mut Walk<'_>, name: At<String>) -> Option<String> {
    let is_fine =
        name.value.chars().count() <= LONGEST_NAME && !name.value.chars().any(char::is_control);
    if !is_fine {
        let message = format!("expected one line of at most {LONGEST_NAME} characters");
        walk.refuse_value(&name, message, "leave it out to have the rung named by what it changes");
        return None;
    }
    Some(name.value)
}

/// Refuses rungs that the engine cannot be given.
pub(super) fn check(walk: &mut Walk<'_>, typed: &ProfileFile) {
    let rungs: &[Rung] = match &typed.ladder {
        LadderChoice::Rungs(rungs) => rungs,
        LadderChoice::Pinned(rung) => std::slice::from_ref(rung),
        LadderChoice::Unsaid | LadderChoice::Auto | LadderChoice::Off => return,
    };
    let at = walk.offset_of_key("ladder").unwrap_or_default();
    match typed.engine {
        Some(EngineKey::Command) => {
            let hint = "take it out, or write `ladder = \"off\"`";
            walk.refuse(at, "ladder", "has no rungs with `engine = \"command\"`", hint);
        }
        Some(EngineKey::Candle) if rungs.iter().any(|rung| rung.cache_type.is_some()) => {
            let hint = "take `cache_type` out of its rungs, or use llama-server";
            walk.refuse(at, "ladder", "the candle worker has no `cache_type`", hint);
        }
        // `external` refuses the key as a whole.
        Some(
            EngineKey::Auto | EngineKey::LlamaServer | EngineKey::Candle | EngineKey::External,
        )
        | None => {}
    }
}
