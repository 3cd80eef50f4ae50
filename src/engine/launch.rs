//! Profile to argument vector.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{
    CoreNeed, CoreShare, Endpoint, EngineKind, Flags, environment, need, spelling::spelled,
};
use crate::spec::{
    ladder::{CacheType, Rung},
    model::ModelFacts,
    profile::{Capability, EngineChoice, Profile},
};

/// How many requests llama-server works on at once when nothing is said.
/// Source: `server.cpp` of llama.cpp b11434: `n_parallel` -1 becomes 4, with a unified KV cache.
const LLAMA_PARALLEL: u32 = 4;
/// Pooling of models that give scores. Source: `enum llama_pooling_type`.
const RANK: u32 = 4;
/// Its own `--ubatch-size`, in tokens.
const USUAL_BATCH: u32 = 512;
/// How many requests the candle worker works on at once when nothing is said.
const CANDLE_PARALLEL: u32 = 1;
/// The same for a command, of which nothing is known.
const COMMAND_PARALLEL: u32 = 8;

/// Everything that an argument vector is made from.
#[derive(Clone, Debug)]
pub struct LaunchInput<'a> {
    /// What to serve.
    pub profile: &'a Profile,
    /// On which rung of its ladder.
    pub rung: &'a Rung,
    /// By which engine.
    pub kind: EngineKind,
    /// The engine's program.
    pub program: &'a Path,
    /// The model file, where the profile names one.
    pub model: Option<&'a Path>,
    /// The projector beside it.
    pub mmproj: Option<&'a Path>,
    /// Where the model itself says how token embeddings become one: `{arch}.pooling_type`.
    pub pooling: Option<u32>,
    /// What the model's header says, where it is known.
    pub facts: Option<&'a ModelFacts>,
    /// The options that this version takes.
    pub flags: &'a Flags,
    /// How many layers the model has, where its file says so.
    pub layers: Option<u32>,
    /// What it is given of the machine.
    pub cores: CoreShare,
    /// Where it shall listen.
    pub endpoint: &'a Endpoint,
    /// The daemon's environment.
    pub environment: &'a [(OsString, OsString)],
}

/// How to start an engine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments, without the program.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: BTreeMap<OsString, OsString>,
    /// The program that ends it, with its arguments; empty where signals do.
    pub stop: Vec<OsString>,
    /// How many requests it works on at once.
    pub parallel: u32,
    /// How many CPU cores it is counted with.
    pub cores: u32,
}

/// Says why there is no argument vector.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum LaunchFault {
    /// The engine needs a model.
    #[error("engine `{0}` needs a `model`")]
    NoModel(EngineKind),
    /// The context of all sequences together is beyond what can be asked for.
    #[error(
        "`context` {context} × `parallel` {parallel} is more than can be asked of llama-server, lower one of them"
    )]
    TooLarge {
        /// Tokens of one sequence.
        context: u32,
        /// Sequences.
        parallel: u32,
    },
    /// llama-server would take the path for something else.
    #[error(
        "llama-server cannot listen on `{0}`: a socket's path must end in `.sock` and have no comma, choose another runtime directory"
    )]
    SocketPath(PathBuf),
    /// The version is too old for what the profile asks for.
    #[error("this llama-server has no `{0}`, use a newer one: `make engine` builds it")]
    UnknownFlag(&'static str),
    /// Its arguments say where tensors are kept, and not so that it would be understood.
    #[error(transparent)]
    Override(#[from] need::OverrideFault),
}

/// Makes the argument vector.
///
/// # Errors
/// [`LaunchFault`], each variant as it says.
pub fn launch(input: &LaunchInput<'_>) -> Result<Launch, LaunchFault> {
    let profile = &input.rung.apply(input.profile);
    let input = &LaunchInput { profile, ..*input };
    let parallel = parallel(profile, input.kind);
    let need = CoreNeed::of(profile, input.kind, (input.cores.machine, input.layers));
    let threads = match need {
        CoreNeed::Share => Some(input.cores.threads),
        CoreNeed::Said(_) | CoreNeed::Feeder | CoreNeed::Unknown => profile.threads,
    };
    let mut args = match input.kind {
        EngineKind::LlamaServer => llama_server(input, parallel, threads)?,
        EngineKind::Candle => candle(input, parallel, threads)?,
        EngineKind::Command => match &profile.engine {
            EngineChoice::Command(words) => filled(input, words.get(1..).unwrap_or_default()),
            EngineChoice::Auto
            | EngineChoice::LlamaServer
            | EngineChoice::Candle
            | EngineChoice::External(_) => Vec::new(),
        },
    };
    // Other engines have said nothing of their options, and nothing is changed.
    args.extend(spelled(&profile.args, input.flags).into_iter().map(OsString::from));
    let env = environment::for_engine(input.environment, &profile.env);
    let cores = need.counted(input.cores.threads);
    let stop = filled(input, &profile.stop_command);
    Ok(Launch { program: input.program.to_owned(), args, env, stop, parallel, cores })
}

/// Returns how many requests the engine works on at once.
pub(super) fn parallel(profile: &Profile, kind: EngineKind) -> u32 {
    profile.parallel.unwrap_or(match kind {
        EngineKind::LlamaServer => LLAMA_PARALLEL,
        EngineKind::Candle => CANDLE_PARALLEL,
        EngineKind::Command => COMMAND_PARALLEL,
    })
}

/// Source: `--help` and `server.cpp` of llama.cpp b11434.
fn llama_server(
    input: &LaunchInput<'_>,
    parallel: u32,
    threads: Option<u32>,
) -> Result<Vec<OsString>, LaunchFault> {
    let profile = input.profile;
    let model = input.model.ok_or(LaunchFault::NoModel(input.kind))?;
    let mut args = Arguments { flags: input.flags, list: Vec::new() };
    args.option("--model", model)?;
    args.option("--alias", profile.slot.as_str())?;
    match input.endpoint {
        Endpoint::Unix(path) => args.option("--host", llama_socket(path)?)?,
        Endpoint::Tcp(address) => {
            args.option("--host", address.ip().to_string())?;
            args.option("--port", address.port().to_string())?;
        }
    }
    args.option("--parallel", parallel.to_string())?;
    match profile.context {
        // `--ctx-size` is shared out among the sequences; a profile says what one of them gets.
        Some(context) => {
            let too_large = LaunchFault::TooLarge { context, parallel };
            let total = context.checked_mul(parallel).filter(|total| i32::try_from(*total).is_ok());
            args.option("--ctx-size", total.ok_or(too_large)?.to_string())?;
        }
        // The model's own context is one pool, and each sequence may use all of it. Without this,
        // a `--parallel` that is given makes four quarters of it.
        None => args.if_named("--kv-unified"),
    }
    if let Some(threads) = threads {
        args.option("--threads", threads.to_string())?;
    }
    if let Some(layers) = profile.gpu_layers {
        args.option("--n-gpu-layers", layers.to_string())?;
    }
    if let Some(cache) = input.rung.cache_type {
        args.cache(cache, profile)?;
    }
    if let Some(mmproj) = input.mmproj {
        args.option("--mmproj", mmproj)?;
    }
    // What nobody asked for is left out where the program does not know it.
    let may_rank = profile.capabilities.is_empty() && input.flags.names("--reranking");
    let is_ranker = may_rank && input.pooling == Some(RANK);
    if profile.may(Capability::Rerank) || is_ranker {
        // Embeddings with a pooling of its own.
        args.switch("--reranking")?;
    } else if profile.offers(Capability::Embed) {
        args.switch("--embeddings")?;
        // A chat model has no pooling of its own, and without one the endpoint refuses.
        if input.pooling.is_none() && !is_given(profile, "--pooling") {
            args.option("--pooling", "mean")?;
        }
        // Pooling aborts while it loads where the sequences do not share a batch evenly.
        // Seen with llama.cpp b11434: `GGML_ASSERT(ggml_can_mul_mat(a, b))` at `--parallel 20`.
        if !USUAL_BATCH.is_multiple_of(parallel) && !is_given(profile, "--ubatch-size") {
            let batch = USUAL_BATCH.next_multiple_of(parallel);
            args.option("--ubatch-size", batch.to_string())?;
        }
    }
    if let Some(facts) = input.facts {
        args.bounds(input, facts)?;
    }
    need::check_overrides(&profile.args)?;
    // Nobody sees its pages behind slotd.
    args.if_named(if input.flags.names("--no-ui") { "--no-ui" } else { "--no-webui" });
    Ok(args.list)
}

/// llama-server warns of options that it is given twice.
fn is_given(profile: &Profile, flag: &str) -> bool {
    profile.args.iter().any(|argument| argument == flag)
}

/// `--host` takes addresses with commas between them, and a path only by its ending.
fn llama_socket(path: &Path) -> Result<&Path, LaunchFault> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.ends_with(b".sock") && !bytes.contains(&b',') {
        Ok(path)
    } else {
        Err(LaunchFault::SocketPath(path.to_owned()))
    }
}

fn candle(
    input: &LaunchInput<'_>,
    parallel: u32,
    threads: Option<u32>,
) -> Result<Vec<OsString>, LaunchFault> {
    let profile = input.profile;
    let model = input.model.ok_or(LaunchFault::NoModel(input.kind))?;
    let mut args: Vec<OsString> = vec!["worker".into()];
    let mut push = |flag: &str, value: &OsStr| args.extend([flag.into(), value.to_owned()]);
    push("--model", model.as_os_str());
    push("--alias", profile.slot.as_str().as_ref());
    match input.endpoint {
        Endpoint::Unix(path) => push("--socket", path.as_os_str()),
        Endpoint::Tcp(address) => push("--listen", address.to_string().as_ref()),
    }
    push("--parallel", parallel.to_string().as_ref());
    let numbers = [
        ("--context", profile.context),
        ("--threads", threads),
        ("--gpu-layers", profile.gpu_layers),
    ];
    for (flag, value) in numbers {
        if let Some(value) = value {
            push(flag, value.to_string().as_ref());
        }
    }
    Ok(args)
}

/// Fills the placeholders of a command in.
fn filled(input: &LaunchInput<'_>, words: &[String]) -> Vec<OsString> {
    let (port, socket) = match input.endpoint {
        Endpoint::Unix(path) => (OsString::new(), path.as_os_str().to_owned()),
        Endpoint::Tcp(address) => (address.port().to_string().into(), OsString::new()),
    };
    let model = input.model.map_or_else(OsString::new, |path| path.as_os_str().to_owned());
    let values = [("{port}", port), ("{socket}", socket), ("{model}", model)];
    words.iter().map(|word| fill(word, &values)).collect()
}

/// Puts each value in the place of its name. A value is not searched for names.
fn fill(word: &str, values: &[(&str, OsString)]) -> OsString {
    let mut filled = OsString::new();
    let mut done = 0;
    for (start, _) in word.match_indices('{') {
        let value = values.iter().find(|(name, _)| is_name_at(word, start, name));
        if let Some((name, value)) = value {
            filled.push(word.get(done..start).unwrap_or_default());
            filled.push(value);
            done = start + name.len();
        }
    }
    filled.push(word.get(done..).unwrap_or_default());
    filled
}

/// Tells whether `word` has a place for `name`, such as `{port}`.
pub(super) fn names(word: &str, name: &str) -> bool {
    word.match_indices('{').any(|(start, _)| is_name_at(word, start, name))
}

/// Doubled braces are a template's, and left alone.
fn is_name_at(word: &str, start: usize, name: &str) -> bool {
    let (before, rest) = word.split_at_checked(start).unwrap_or((word, ""));
    !before.ends_with('{') && rest.strip_prefix(name).is_some_and(|after| !after.starts_with('}'))
}

/// Arguments for a program whose options are known.
struct Arguments<'a> {
    flags: &'a Flags,
    list: Vec<OsString>,
}

impl Arguments<'_> {
    fn option(&mut self, flag: &'static str, value: impl AsRef<OsStr>) -> Result<(), LaunchFault> {
        self.switch(flag)?;
        self.list.push(value.as_ref().to_owned());
        Ok(())
    }

    /// Both halves of the KV cache. Quantised values need flash attention.
    /// Source: `llama_init_from_model` of llama.cpp b11434.
    fn cache(&mut self, cache: CacheType, profile: &Profile) -> Result<(), LaunchFault> {
        if cache != CacheType::F16
            && !is_given(profile, "--flash-attn")
            && !is_given(profile, "-fa")
        {
            self.option("--flash-attn", "on")?;
        }
        self.option("--cache-type-k", cache.as_str())?;
        self.option("--cache-type-v", cache.as_str())
    }

    /// What grows with use gets a bound that the need counts: its own is 8 GiB for prompts put aside,
    /// and 32 checkpoints a sequence.
    fn bounds(&mut self, input: &LaunchInput<'_>, facts: &ModelFacts) -> Result<(), LaunchFault> {
        let profile = input.profile;
        let (prompts_mib, checkpoints) =
            need::limits(input.kind, (profile, input.rung), input.flags, facts);
        if self.flags.names("--cache-ram")
            && !is_given(profile, "--cache-ram")
            && !is_given(profile, "-cram")
        {
            self.option("--cache-ram", prompts_mib.to_string())?;
        }
        let names = ["--ctx-checkpoints", "-ctxcp", "--swa-checkpoints"];
        if let Some(checkpoints) = checkpoints
            && self.flags.names("--ctx-checkpoints")
            && !names.iter().any(|name| is_given(profile, name))
        {
            self.option("--ctx-checkpoints", checkpoints.to_string())?;
        }
        Ok(())
    }

    fn switch(&mut self, flag: &'static str) -> Result<(), LaunchFault> {
        if !self.flags.takes(flag) {
            return Err(LaunchFault::UnknownFlag(flag));
        }
        self.list.push(flag.into());
        Ok(())
    }

    fn if_named(&mut self, flag: &str) {
        if self.flags.names(flag) {
            self.list.push(flag.into());
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
