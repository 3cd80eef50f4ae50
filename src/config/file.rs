//! The shape of a profile as it is typed. What it means is [`super::profile`]'s business.
//!
//! The documentation of each field is the description of its key in the JSON Schema, and with that
//! what an editor shows. Every number in it is held by a test against what the loader takes.

use std::{ops::RangeInclusive, time::Duration};

use schemars::JsonSchema;

use super::{
    ladder::{self, LadderShape},
    params::{self, ParamsShape},
    requests,
    residence::{self, NeedsShape},
    walk::{At, MayBeEmpty, Walk},
};
use crate::spec::{
    Bytes,
    ladder::LadderChoice,
    params::Params,
    profile::{Capability, OnExit, Pull},
    requests::{Lane, OnClientGone, Requests},
    residence::{Asks, Restore, WhenFull},
};

/// A slotd profile: the file NAME.toml describes the slot NAME. One line is enough: `model = "…"`.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "slotd profile", deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "a profile is a list of independent keys")]
pub(super) struct ProfileFile {
    /// The model to serve: a GGUF file, or a repository of the Hugging Face hub in the hub's cache
    /// on this machine, written `org/repo` or `org/repo:QUANT`, either with `@REVISION`. A file name
    /// without a path is looked up beside the profile, then in the model directories; `~/` is the home
    /// directory. Needed unless `engine = "command"`. With `engine = "external"` it is the name that the engine knows its
    /// model by, and can be left out.
    #[schemars(with = "String", length(min = 1), example = "SmolLM2-135M-Instruct.Q4_1.gguf")]
    pub(super) model: Option<At<String>>,

    /// The program that serves the model. Default: `auto`.
    #[schemars(with = "EngineKey", extend("default" = "auto"))]
    pub(super) engine: Option<EngineKey>,

    /// The program and its arguments, one string each, started as they are and without a shell; only
    /// and always with `engine = "command"`. Exactly one of `{port}` (a loopback port picked by
    /// slotd) and `{socket}` (the path of a Unix socket) has to be in it, because that is where the
    /// engine has to listen; `{model}` stands for the model's path.
    #[schemars(with = "Vec<String>", length(min = 1))]
    pub(super) command: Option<Vec<At<String>>>,

    /// A program and its arguments that end the engine, for one that a signal to `command` does not
    /// reach, a container say; with the placeholders of `command`, and only with `engine = "command"`.
    /// Run before `SIGTERM`, and once more after an end that it did not bring about, for `stop_timeout`
    /// each. Default: none, signals alone.
    #[schemars(with = "Vec<String>", length(min = 1))]
    pub(super) stop_command: Vec<At<String>>,

    /// Where an engine listens that somebody else runs: `http://` with an IP address and a port, or
    /// `unix:` and the path of a socket; only and always with `engine = "external"`. slotd sends requests
    /// there while it answers, and neither starts nor ends it.
    #[schemars(
        with = "String",
        regex(pattern = r"^(http://|unix:/)"),
        example = "http://127.0.0.1:8080"
    )]
    pub(super) url: Option<At<String>>,

    /// More arguments for the engine, one string each, after slotd's own. Those that slotd sets
    /// itself (`--host`, `--port`, `--model`, `--alias`, `--api-key`, …) are refused. Default: none.
    #[schemars(with = "Vec<String>", extend("default" = []))]
    pub(super) args: Vec<At<String>>,

    /// Environment variables for the engine, a table of strings. Default: none; the engine gets them
    /// on top of the few that slotd passes on.
    #[schemars(with = "std::collections::BTreeMap<String, String>", extend("default" = {}))]
    pub(super) env: Vec<(At<String>, At<String>)>,

    /// Other names that clients may put into `model`: 1 to 128 characters of `a-z A-Z 0-9` and
    /// `. _ - / : @ +` each, at most 64 of them. No other slot may have the name. Default: none.
    #[schemars(with = "Vec<String>", length(max = 64), inner(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9._/:@+-]+$")), extend("default" = []))]
    pub(super) aliases: Vec<At<String>>,

    /// Names that lead to this slot and to every other slot that lists them: a request goes to one
    /// that is ready, the least busy of them, or the one that knows its beginning. Written as aliases
    /// are; no slot or alias may have the name. Default: none.
    #[schemars(with = "Vec<String>", length(max = 64), inner(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9._/:@+-]+$")), extend("default" = []))]
    pub(super) routes: Vec<At<String>>,

    /// Whether a streamed chat or completion goes on when its engine dies: the slot's next engine, or
    /// another slot of the route, writes on where the text ended. Default: no.
    #[schemars(with = "bool", extend("default" = false))]
    pub(super) resume: bool,

    /// What the slot is offered for: `chat`, `completion`, `embed`, `rerank`, `transcribe`, `speech`,
    /// `image`. Default: what the engine can do, or what its model does alone once the files were looked at;
    /// `rerank` is to be named.
    #[schemars(with = "Vec<String>", extend("items" = { "enum": ["chat", "completion", "embed", "rerank", "transcribe", "speech", "image"] }, "default" = []))]
    pub(super) capabilities: Vec<Capability>,

    /// Context length of one request, in tokens, 256 to 1048576. Default: the engine's own.
    #[schemars(with = "u32", range(min = 256, max = 1_048_576))]
    pub(super) context: Option<u32>,

    /// How many requests the engine works on at once, 1 to 256; `command` and `external` engines up to
    /// 16384. Default: the engine's own.
    #[schemars(with = "u32", range(min = 1, max = 16_384))]
    pub(super) parallel: Option<u32>,

    /// CPU threads of the engine, 1 to 1024. Default: its share of the machine's cores.
    #[schemars(with = "u32", range(min = 1, max = 1024))]
    pub(super) threads: Option<u32>,

    /// Layers of the model to hold on the GPU, 0 to 10000; 0 keeps it on the CPU. Default: the
    /// engine's own.
    #[schemars(with = "u32", range(min = 0, max = 10_000))]
    pub(super) gpu_layers: Option<u32>,

    /// What the slot may come down to where memory is short: a list of rungs below the profile
    /// itself, best first, each with what it changes against the profile; or `auto`: slotd makes the
    /// rungs and may lower what the profile sets too; or `off`. Default: slotd makes the rungs and
    /// lowers only what the profile leaves open.
    #[schemars(with = "LadderShape")]
    pub(super) ladder: LadderChoice,

    /// Load the slot when the daemon starts, and keep it loaded, instead of on the first request.
    /// Default: false.
    #[schemars(extend("default" = false))]
    pub(super) autostart: bool,

    /// Never give up on the slot: after `max_restarts` it is retried for ever at the longest delay.
    /// Default: false.
    #[schemars(extend("default" = false))]
    pub(super) essential: bool,

    /// Restarts in a row, without a healthy run in between, before the slot has failed, 0 to 1000.
    /// Default: 5.
    #[schemars(range(min = 0, max = 1000), extend("default" = 5))]
    pub(super) max_restarts: u32,

    /// How long a load may take, `100ms` to `24h`: a whole number and one of `ms`, `s`, `m`, `h`,
    /// `d`. It counts anew with each step forward of an engine that tells how far it is. Default:
    /// `10m`.
    #[schemars(with = "String", regex(pattern = r"^[0-9]+ ?(ms|s|m|h|d)$"), extend("default" = "10m"))]
    pub(super) start_timeout: Duration,

    /// How long requests in flight, and then the engine after `SIGTERM`, are given to end, `0s` to
    /// `1h`. Default: `10s`.
    #[schemars(with = "String", regex(pattern = r"^[0-9]+ ?(ms|s|m|h|d)$"), extend("default" = "10s"))]
    pub(super) stop_timeout: Duration,

    /// How long an engine may show no sign of life (no answer to a look at its health, no token, no
    /// use of the CPU) before it is replaced, `2s` to `24h`, or `off`. A long prompt is no hang.
    /// Default: `60s`.
    #[schemars(with = "String", regex(pattern = r"^([0-9]+ ?(ms|s|m|h|d)|off)$"), extend("default" = "60s"))]
    pub(super) hang_timeout: Option<Duration>,

    /// How long without a request before the slot is unloaded, `100ms` to `365d`; the next request
    /// loads it again. Default: never.
    #[schemars(with = "String", regex(pattern = r"^[0-9]+ ?(ms|s|m|h|d)$"))]
    pub(super) idle_timeout: Option<Duration>,

    /// What becomes of a loaded engine when the daemon ends: `stop`, or `keep`, which lets it run on
    /// until the next daemon adopts it. Default: `stop`.
    #[schemars(with = "String", extend("enum" = ["stop", "keep"], "default" = "stop"))]
    pub(super) on_exit: OnExit,

    /// What becomes of a start whose model, of the hub, is not whole on this disk: `never`, it fails and
    /// says how to fetch it; `auto`, it is fetched first. Default: `never`.
    #[schemars(with = "String", extend("enum" = ["never", "auto"], "default" = "never"))]
    pub(super) pull: Pull,

    /// What the engine takes of the host's memory, once it serves with its caches full, `1MiB` to
    /// `1024TiB`: a whole number and one of `B`, `KiB`, `MiB`, `GiB`, `TiB`. Default: what slotd finds
    /// out by itself.
    #[schemars(with = "String", regex(pattern = r"^[0-9]+ ?(B|KiB|MiB|GiB|TiB)$"))]
    pub(super) memory: Option<Bytes>,

    /// The same of the memory of GPUs, all of them together. Default: what slotd finds out by itself.
    #[schemars(with = "String", regex(pattern = r"^[0-9]+ ?(B|KiB|MiB|GiB|TiB)$"))]
    pub(super) gpu_memory: Option<Bytes>,

    /// Never unload the slot for another one. Default: false.
    #[schemars(extend("default" = false))]
    pub(super) pinned: bool,

    /// Unload the slot only when memory runs out, and never for another one. Default: false.
    #[schemars(extend("default" = false))]
    pub(super) pressure_evict_only: bool,

    /// Which slots make room first, 0 to 100: those with less. Default: 50.
    #[schemars(with = "u32", range(min = 0, max = 100))]
    pub(super) priority: Option<u32>,

    /// How long the slot stays once it is ready, whoever waits for its memory, `0s` to `24h`. Default:
    /// `10s`.
    #[schemars(with = "String", regex(pattern = r"^[0-9]+ ?(ms|s|m|h|d)$"))]
    pub(super) min_residency: Option<Duration>,

    /// What the slot does where it does not fit beside those that are loaded: `swap` has others make
    /// room for it, `refuse` turns its requests away. Default: `swap`.
    #[schemars(with = "String", extend("enum" = ["swap", "refuse"], "default" = "swap"))]
    pub(super) when_full: WhenFull,

    /// When the slot comes back after it has made room for another: `when-idle`, once that one is idle,
    /// in its place if need be; `when-room`, once there is room; `never` before the next request.
    /// Default: `when-idle` with `autostart` or `essential`, else `when-room`.
    #[schemars(with = "String", extend("enum" = ["when-idle", "when-room", "never"]))]
    pub(super) restore: Option<Restore>,

    /// What the machine has to have: `gpus`, `gpu_memory` of all of them, `memory` of the host. On a machine
    /// with less the slot is skipped: neither started nor failed, and it says why. Default: nothing.
    #[schemars(with = "NeedsShape", extend("default" = {}))]
    pub(super) needs: Asks,

    /// Which lane the slot's requests wait in that do not say by the header `x-slotd-lane`:
    /// `interactive`, or `batch`, which lets those go first. Default: `interactive`.
    #[schemars(with = "String", extend("enum" = ["interactive", "batch"], "default" = "interactive"))]
    pub(super) lane: Lane,

    /// How long a request may wait for the slot to load and for its turn, `1s` to `1h`. Default: the
    /// daemon's own `queue_timeout`.
    #[schemars(with = "String", regex(pattern = r"^[0-9]+ ?(ms|s|m|h|d)$"))]
    pub(super) queue_timeout: Option<Duration>,

    /// What the engine is told when a client leaves: `cancel` hangs up, so that it stops working on
    /// the request; `drain` lets it end what it has begun, for engines that a hang-up hurts. Default:
    /// `cancel`.
    #[schemars(with = "String", extend("enum" = ["cancel", "drain"], "default" = "cancel"))]
    pub(super) on_client_gone: OnClientGone,

    /// What is changed at the top of each request's JSON object before the engine gets it: `default`
    /// adds what the request does not say, `set` overrides what it says, `strip` takes out. Default:
    /// nothing; every byte goes on as it came.
    #[schemars(with = "ParamsShape", extend("default" = {}))]
    pub(super) params: Params,

    /// More aliases, each with `default`, `set` and `strip` of its own on top of `params`:
    /// `[variants.NAME]`. Default: none.
    #[schemars(with = "std::collections::BTreeMap<String, ParamsShape>", extend("default" = {}))]
    pub(super) variants: Vec<(At<String>, Params)>,
}

/// The word in `engine`.
#[derive(Clone, Copy, Debug, Eq, JsonSchema, PartialEq)]
#[schemars(rename_all = "kebab-case", inline)]
pub(super) enum EngineKey {
    /// `llama-server` where one is found, else the candle worker inside slotd.
    Auto,
    /// `llama-server` of llama.cpp.
    LlamaServer,
    /// The candle worker inside slotd; no other program is needed.
    Candle,
    /// Any program that serves an OpenAI-compatible API over HTTP: see `command`.
    Command,
    /// A program that somebody else runs: see `url`.
    External,
}

/// Every key of a profile, in the order that documents use.
pub(super) const KEYS: [&str; 39] = [
    "model",
    "engine",
    "command",
    "stop_command",
    "url",
    "args",
    "env",
    "aliases",
    "routes",
    "resume",
    "capabilities",
    "context",
    "parallel",
    "threads",
    "gpu_layers",
    "ladder",
    "autostart",
    "essential",
    "max_restarts",
    "start_timeout",
    "stop_timeout",
    "hang_timeout",
    "idle_timeout",
    "on_exit",
    "pull",
    "memory",
    "gpu_memory",
    "pinned",
    "pressure_evict_only",
    "priority",
    "min_residency",
    "when_full",
    "restore",
    "needs",
    "lane",
    "queue_timeout",
    "on_client_gone",
    "params",
    "variants",
];

impl ProfileFile {
    /// Takes every key out of a file. A key with a fault is as good as absent, except `engine`: it
    /// is `None` only when its value was refused.
    pub(super) fn take(walk: &mut Walk<'_>) -> Self {
        walk.refuse_unknown(&KEYS, better_key);
        let Requests { lane, queue_timeout, on_client_gone, .. } = requests::take(walk);
        let residence = residence::take(walk);
        let engine = take_engine(walk);
        let is_other = matches!(engine, Some(EngineKey::Command | EngineKey::External));
        let parallel = if is_other { &PARALLEL_OF_OTHERS } else { &PARALLEL };
        Self {
            model: walk.take_text("model"),
            engine,
            command: walk.take_texts("command", MayBeEmpty::Yes),
            stop_command: walk.take_texts("stop_command", MayBeEmpty::Yes).unwrap_or_default(),
            url: walk.take_text("url"),
            args: walk.take_texts("args", MayBeEmpty::Yes).unwrap_or_default(),
            env: walk.take_pairs("env").unwrap_or_default(),
            aliases: walk.take_texts("aliases", MayBeEmpty::No).unwrap_or_default(),
            routes: walk.take_texts("routes", MayBeEmpty::No).unwrap_or_default(),
            resume: walk.take_flag("resume").unwrap_or_default(),
            capabilities: walk
                .take_choices("capabilities", &Capability::ALL.map(|c| (c.as_str(), c)))
                .unwrap_or_default(),
            context: walk.take_number("context", &CONTEXT, OWN_DEFAULT),
            parallel: walk.take_number("parallel", parallel, OWN_DEFAULT),
            threads: walk.take_number("threads", &THREADS, OWN_DEFAULT),
            gpu_layers: walk.take_number("gpu_layers", &GPU_LAYERS, OWN_DEFAULT),
            ladder: ladder::take(walk),
            autostart: walk.take_flag("autostart").unwrap_or_default(),
            essential: walk.take_flag("essential").unwrap_or_default(),
            max_restarts: walk
                .take_number("max_restarts", &MAX_RESTARTS, NEVER_GIVE_UP)
                .unwrap_or(5),
            start_timeout: walk
                .take_duration("start_timeout", &START_TIMEOUT)
                .unwrap_or(Duration::from_mins(10)),
            stop_timeout: walk
                .take_duration("stop_timeout", &STOP_TIMEOUT)
                .unwrap_or(Duration::from_secs(10)),
            hang_timeout: walk.take_duration_or_off(
                "hang_timeout",
                &HANG_TIMEOUT,
                Duration::from_mins(1),
            ),
            idle_timeout: walk.take_duration("idle_timeout", &IDLE_TIMEOUT),
            on_exit: walk.take_choice("on_exit", &ON_EXIT).unwrap_or_default(),
            pull: walk.take_choice("pull", &PULL).unwrap_or_default(),
            memory: residence.memory,
            gpu_memory: residence.gpu_memory,
            pinned: residence.pinned,
            pressure_evict_only: residence.pressure_evict_only,
            priority: residence.priority,
            min_residency: residence.min_residency,
            when_full: residence.when_full,
            restore: residence.restore,
            needs: residence.asks,
            lane,
            queue_timeout,
            on_client_gone,
            params: params::take(walk),
            variants: params::take_variants(walk),
        }
    }

    /// Returns how the slot's requests are treated.
    pub(super) fn requests(&self) -> Requests {
        let Self { lane, queue_timeout, on_client_gone, .. } = *self;
        let variants = self.variants.iter();
        let variants = variants.map(|(name, params)| (name.value.clone(), params.clone()));
        let params = self.params.clone();
        Requests { lane, queue_timeout, on_client_gone, params, variants: variants.collect() }
    }
}

/// Takes the engine; `None` where its value was refused.
fn take_engine(walk: &mut Walk<'_>) -> Option<EngineKey> {
    if walk.offset_of_key("engine").is_none() {
        return Some(EngineKey::Auto);
    }
    walk.take_choice("engine", &ENGINES)
}

/// Knows what people type who come from other programs.
fn better_key(typed: &str) -> Option<String> {
    let key = match typed {
        "ctx" | "ctx_size" | "n_ctx" | "context_size" | "context_length" | "max_model_len" => {
            "context"
        }
        "ngl" | "n_gpu_layers" => "gpu_layers",
        "np" | "concurrency" | "slots" => "parallel",
        "cmd" | "exec" => "command",
        "ttl" | "keep_alive" => "idle_timeout",
        "liveness_timeout" | "watchdog" => "hang_timeout",
        "preload" => "autostart",
        "path" | "file" | "model_path" | "gguf" => "model",
        "backend" | "runtime" => "engine",
        "base_url" | "endpoint" | "address" | "upstream" => "url",
        "environment" => "env",
        "timeout" => "start_timeout",
        "extra_args" | "flags" | "arguments" => "args",
        "name" | "slot" | "id" => {
            return Some("the slot's name is the name of the file".to_owned());
        }
        "queue_limit" | "max_body" | "climb_after" | "state_dir" | "model_dirs"
        | "llama_server" | "memory_limit" | "memory_reserve" | "max_resident" => {
            return Some(format!("`{typed}` is a key of the daemon's own file, `slotd.toml`"));
        }
        "host" | "port" | "listen" => {
            return Some("slotd picks where an engine listens: take the key out".to_owned());
        }
        _ => return None,
    };
    Some(format!("did you mean `{key}`?"))
}

const ENGINES: [(&str, EngineKey); 5] = [
    ("auto", EngineKey::Auto),
    ("llama-server", EngineKey::LlamaServer),
    ("candle", EngineKey::Candle),
    ("command", EngineKey::Command),
    ("external", EngineKey::External),
];

const ON_EXIT: [(&str, OnExit); 2] = [("stop", OnExit::Stop), ("keep", OnExit::Keep)];
const PULL: [(&str, Pull); 2] = [("never", Pull::Never), ("auto", Pull::Auto)];

pub(super) const OWN_DEFAULT: &str = "leave the key out to use the engine's own default";
const NEVER_GIVE_UP: &str = "to never give up on the slot, set `essential = true`";

pub(super) const CONTEXT: RangeInclusive<u32> = 256..=1_048_576;
/// Source: llama.cpp, `LLAMA_MAX_SEQ`.
pub(super) const PARALLEL: RangeInclusive<u32> = 1..=256;
const PARALLEL_OF_OTHERS: RangeInclusive<u32> = 1..=16_384;
const THREADS: RangeInclusive<u32> = 1..=1024;
pub(super) const GPU_LAYERS: RangeInclusive<u32> = 0..=10_000;
const MAX_RESTARTS: RangeInclusive<u32> = 0..=1000;
const START_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_hours(24);
const STOP_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);
const HANG_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_hours(24);
const IDLE_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_hours(24 * 365);
